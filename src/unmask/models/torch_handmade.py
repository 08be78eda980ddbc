"""A linear classifier on features by hand, in PyTorch. The MindSpore twin has the same names in the same order."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from unmask.config.schema import ModelConfig
from unmask.models.handmade import (
    CELLS,
    CLIP,
    CONTRAST,
    EPS,
    FIELDS,
    LEVELS,
    ORIENTATIONS,
    PARTS,
    PATCH,
    ROUNDING,
    WORDS,
    has_dictionary,
    resampling,
    shares,
    size_of,
    widths,
)
from unmask.models.torch_layers import parameter


class Handmade(nn.Module):
    """What `unmask.evaluate.handmade` computes in NumPy and `evaluate.ridge` fits; in fp32, and without a gradient."""

    def __init__(self, model: ModelConfig, classes: int, *, mirrored: bool) -> None:
        """`mirrored`: features are the mean over an image and its mirror image."""
        super().__init__()
        self.size, self.channels, self.mirrored = size_of(model), model.channels, mirrored
        self.filters = self.threshold = None
        if has_dictionary(self.size):
            self.filters, self.threshold = parameter(WORDS, model.channels, PATCH, PATCH), parameter(WORDS)
        self.head = Head(sum(widths(model)), classes)

    @torch.no_grad()
    def forward(self, images_BHWC: Tensor) -> Tensor:
        """Log-probabilities (B, classes) of images whose channels are in 0..1."""
        x = _shrunk(images_BHWC.float(), *self.size)
        features = self._features(x)
        if self.mirrored:
            features = (features + self._features(x.flip(2))) / 2
        return F.log_softmax(self.head(features), 1)

    def _features(self, x_BHWC: Tensor) -> Tensor:
        kinds = [oriented_gradients(x_BHWC), fields(x_BHWC)]
        if self.filters is not None and self.threshold is not None:
            kinds.append(answers(x_BHWC, self.filters, self.threshold))
        return torch.cat([kind.flatten(1) for kind in kinds], 1)


class Head(nn.Module):
    """Linear, and in fp32 also where the network's layers are not."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.weight, self.bias = parameter(fan_out, fan_in), parameter(fan_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


def oriented_gradients(x_BHWC: Tensor) -> Tensor:
    """(B, 7, 7, 36): each block's four histograms, its length 1."""
    down, across = _gradient(x_BHWC, 1).unbind(-1), _gradient(x_BHWC, 2).unbind(-1)
    y, x = down[0], across[0]
    for each_y, each_x in zip(down[1:], across[1:], strict=True):  # of the channel where it is the strongest
        stronger = each_y**2 + each_x**2 > y**2 + x**2
        y, x = torch.where(stronger, each_y, y), torch.where(stronger, each_x, x)
    size = (y**2 + x**2).sqrt()
    turn = torch.atan2(y, x) * (ORIENTATIONS / math.pi)
    lower = turn.floor()
    share = turn - lower  # between the two orientations that are nearest
    numbers = torch.arange(ORIENTATIONS, device=size.device)
    to_lower, to_upper = (orientation[..., None] % ORIENTATIONS == numbers for orientation in (lower, lower + 1))
    votes = size[..., None] * (to_lower * (1 - share)[..., None] + to_upper * share[..., None])
    cells, last = _means(votes, CELLS, CELLS), CELLS - 1
    blocks = torch.cat([cells[:, i : i + last, j : j + last] for i in (0, 1) for j in (0, 1)], -1)
    return _unit(_unit(blocks).clamp(max=CLIP))


def fields(x_BHWC: Tensor) -> Tensor:
    """(B, features): means, deviations, and the roots of the shares that colours have."""
    mean = _means(x_BHWC, FIELDS, FIELDS)
    deviation = (_means(x_BHWC**2, FIELDS, FIELDS) - mean**2).clamp(min=0).sqrt()
    parts = [mean.flatten(1), deviation.flatten(1)]
    channels = x_BHWC.shape[-1]
    if channels <= 3:
        levels = (x_BHWC * LEVELS + ROUNDING).floor().clamp(max=LEVELS - 1).unbind(-1)
        colour = torch.stack([level * LEVELS**i for i, level in enumerate(levels)]).sum(0)
        numbers = torch.arange(LEVELS**channels, device=x_BHWC.device)
        parts.append((colour[..., None] == numbers).float().mean((1, 2)).sqrt())
    return torch.cat(parts, 1)


def answers(x_BHWC: Tensor, filters: Tensor, threshold: Tensor) -> Tensor:
    """(B, 9, words): how strongly words answer in each of 3 x 3 fields to patches, normalised in contrast."""
    patches = F.unfold(x_BHWC.permute(0, 3, 1, 2).contiguous(), PATCH).transpose(1, 2)
    patches = patches - patches.mean(-1, keepdim=True)
    patches = patches * ((patches**2).mean(-1, keepdim=True) + CONTRAST).rsqrt()
    said = F.relu(F.linear(patches, filters.flatten(1), -threshold))
    across, down = (shares(PARTS, side - PATCH + 1) for side in (x_BHWC.shape[2], x_BHWC.shape[1]))
    return (torch.from_numpy(np.kron(down, across)).to(said.device) @ said).sqrt()


def _gradient(x_BHWC: Tensor, axis: int) -> Tensor:
    """Half the difference of the two neighbours; at the edge, of a pixel and its neighbour the whole."""
    place, last = torch.arange(x_BHWC.shape[axis], device=x_BHWC.device), x_BHWC.shape[axis] - 1
    before, after = (place - 1).clamp(min=0), (place + 1).clamp(max=last)
    gap = (after - before).float().view(-1, *(1,) * (3 - axis))
    return (x_BHWC.index_select(axis, after) - x_BHWC.index_select(axis, before)) / gap


def _shrunk(x_BHWC: Tensor, height: int, width: int) -> Tensor:
    down, across = resampling(height, x_BHWC.shape[1]), resampling(width, x_BHWC.shape[2])
    return _each_way(x_BHWC, down, across).clamp(0, 1)


def _means(x_BHWC: Tensor, rows: int, columns: int) -> Tensor:
    """Over each of rows x columns fields of equal size."""
    return _each_way(x_BHWC, shares(rows, x_BHWC.shape[1]), shares(columns, x_BHWC.shape[2]))


def _each_way(x_BHWC: Tensor, down: NDArray[np.float32], across: NDArray[np.float32]) -> Tensor:
    tensors = (torch.from_numpy(each).to(x_BHWC.device) for each in (down, across))
    return torch.einsum("iy,jx,byxc->bijc", *tensors, x_BHWC)


def _unit(blocks: Tensor) -> Tensor:
    return blocks / ((blocks**2).sum(-1, keepdim=True) + EPS).sqrt()
