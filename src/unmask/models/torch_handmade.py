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
from unmask.models.torch_layers import constant, parameter


class Handmade(nn.Module):
    """What `unmask.evaluate.handmade` computes in NumPy and `evaluate.ridge` fits; in fp32, and without a gradient.

    Its matrices lie where its weights do, so that nothing is copied to the device in a batch.
    """

    def __init__(self, model: ModelConfig, classes: int, *, mirrored: bool) -> None:
        """`mirrored`: features are the mean over an image and its mirror image."""
        super().__init__()
        (height, width), self.mirrored, self.channels = size_of(model), mirrored, model.channels
        self.has_dictionary = has_dictionary((height, width))
        if self.has_dictionary:
            self.filters, self.threshold = parameter(WORDS, model.channels, PATCH, PATCH), parameter(WORDS)
            down, across = (shares(PARTS, side - PATCH + 1) for side in (height, width))
            self.in_parts = constant(np.kron(down, across))
        self.head = Head(sum(widths(model)), classes)
        self.shrunk = EachWay(*(resampling(*sizes) for sizes in zip((height, width), model.image_size, strict=True)))
        self.in_cells, self.in_fields = (means(parts, (height, width)) for parts in (CELLS, FIELDS))
        self.down, self.across = Gradient(height, 1), Gradient(width, 2)
        self.orientations = constant(np.arange(ORIENTATIONS))
        self.colours = constant(np.arange(LEVELS ** min(model.channels, 3)))

    @torch.no_grad()
    def forward(self, images_BHWC: Tensor) -> Tensor:
        """Log-probabilities (B, classes) of images whose channels are in 0..1."""
        x = self.shrunk(images_BHWC.float()).clamp(0, 1)
        features = self.features(x)
        if self.mirrored:
            features = (features + self.features(x.flip(2))) / 2
        return F.log_softmax(self.head(features), 1)

    def features(self, x_BHWC: Tensor) -> Tensor:
        kinds = [self.oriented_gradients(x_BHWC), *self.fields(x_BHWC)]
        if self.has_dictionary:
            kinds.append(self.answers(x_BHWC))
        return torch.cat([kind.flatten(1) for kind in kinds], 1)

    def oriented_gradients(self, x_BHWC: Tensor) -> Tensor:
        """(B, 7, 7, 36): each block's four histograms, its length 1."""
        down, across = self.down(x_BHWC).unbind(-1), self.across(x_BHWC).unbind(-1)
        y, x = down[0], across[0]
        for each_y, each_x in zip(down[1:], across[1:], strict=True):  # of the channel where it is the strongest
            stronger = each_y**2 + each_x**2 > y**2 + x**2
            y, x = torch.where(stronger, each_y, y), torch.where(stronger, each_x, x)
        size = (y**2 + x**2).sqrt()
        turn = torch.atan2(y, x) * (ORIENTATIONS / math.pi)
        lower = turn.floor()
        share = turn - lower  # between the two orientations that are nearest
        to_lower, to_upper = (each[..., None] % ORIENTATIONS == self.orientations for each in (lower, lower + 1))
        votes = size[..., None] * (to_lower * (1 - share)[..., None] + to_upper * share[..., None])
        cells, last = self.in_cells(votes), CELLS - 1
        blocks = torch.cat([cells[:, i : i + last, j : j + last] for i in (0, 1) for j in (0, 1)], -1)
        return unit(unit(blocks).clamp(max=CLIP))

    def fields(self, x_BHWC: Tensor) -> tuple[Tensor, ...]:
        """Means, deviations, and the roots of the shares that colours have."""
        mean = self.in_fields(x_BHWC)
        deviation = (self.in_fields(x_BHWC**2) - mean**2).clamp(min=0).sqrt()
        if self.channels > 3:
            return mean, deviation
        levels = (x_BHWC * LEVELS + ROUNDING).floor().clamp(max=LEVELS - 1).unbind(-1)
        colour = torch.stack([level * LEVELS**i for i, level in enumerate(levels)]).sum(0)
        return mean, deviation, (colour[..., None] == self.colours).float().mean((1, 2)).sqrt()

    def answers(self, x_BHWC: Tensor) -> Tensor:
        """(B, 9, words): how strongly words answer in each of 3 x 3 fields to patches, normalised in contrast."""
        patches = F.unfold(x_BHWC.permute(0, 3, 1, 2).contiguous(), PATCH).transpose(1, 2)
        patches = patches - patches.mean(-1, keepdim=True)
        patches = patches * ((patches**2).mean(-1, keepdim=True) + CONTRAST).rsqrt()
        return (self.in_parts @ F.relu(F.linear(patches, self.filters.flatten(1), -self.threshold))).sqrt()


class Head(nn.Module):
    """Linear, and in fp32 also where the network's layers are not."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.weight, self.bias = parameter(fan_out, fan_in), parameter(fan_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


def means(parts: int, size: tuple[int, int]) -> EachWay:
    """Over each of parts x parts fields of equal size."""
    return EachWay(*(shares(parts, side) for side in size))


class Gradient(nn.Module):
    """Half the difference of the two neighbours; at the edge, of a pixel and its neighbour the whole."""

    def __init__(self, size: int, axis: int) -> None:
        super().__init__()
        place = np.arange(size)
        before, after = np.maximum(place - 1, 0), np.minimum(place + 1, size - 1)
        self.before, self.after, self.axis = constant(before), constant(after), axis
        self.gap = constant((after - before).astype(np.float32).reshape(-1, *(1,) * (3 - axis)))

    def forward(self, x_BHWC: Tensor) -> Tensor:
        difference = x_BHWC.index_select(self.axis, self.after) - x_BHWC.index_select(self.axis, self.before)
        return difference / self.gap


class EachWay(nn.Module):
    """Rows and columns, each times a matrix."""

    def __init__(self, down: NDArray[np.float32], across: NDArray[np.float32]) -> None:
        super().__init__()
        self.down, self.across = constant(down), constant(across)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return torch.einsum("iy,jx,byxc->bijc", self.down, self.across, x_BHWC)


def unit(blocks: Tensor) -> Tensor:
    return blocks / ((blocks**2).sum(-1, keepdim=True) + EPS).sqrt()
