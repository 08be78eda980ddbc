"""From pixels to tokens, in PyTorch; shapes and dtypes as in `unmask.models.torch_vit`."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.config.schema import ModelConfig
from unmask.models.parameters import STANDARDIZED_EPS
from unmask.models.torch_layers import LayerNorm, parameter


class PatchEmbed(nn.Module):
    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.patch_size, self.channels, self.grid = model.patch_size, model.channels, model.grid
        pairs = list(pairwise((model.channels, *model.stem_widths)))
        self.stem = nn.ModuleList([StemLayer(*pair, model.norm_eps, first=i == 0) for i, pair in enumerate(pairs)])
        self.proj = None if pairs else PatchProjection(model)
        self.norm = LayerNorm(model.width, model.norm_eps) if model.patch_norm else None

    def forward(self, x_BLP: Tensor, ids: Tensor | None = None) -> Tensor:
        """Tokens of patches; `ids` (B, L) says which these are, None: all, row by row."""
        x = self._stem(x_BLP, ids) if self.proj is None else self.proj(x_BLP)
        return x if self.norm is None else self.norm(x)

    def _stem(self, x_BLP: Tensor, ids: Tensor | None) -> Tensor:
        """Tokens as the convolutions leave them: (B, L, D). Patches that are not given are empty after each."""
        B, _, P = x_BLP.shape
        (h, w), side = self.grid, self.patch_size
        given = None
        if ids is not None:
            given = x_BLP.new_zeros(B, h * w, 1).scatter(1, ids[:, :, None], 1.0)
            x_BLP = x_BLP.new_zeros(B, h * w, P).scatter(1, ids[:, :, None].expand(-1, -1, P), x_BLP)
        x = x_BLP.reshape(B, h, w, side, side, self.channels).transpose(2, 3).reshape(B, h * side, w * side, -1)
        for layer in self.stem:
            side //= 2
            x = layer(x, None if given is None else self._spread(given, side))
        x = x.flatten(1, 2)
        return x if ids is None else select(x, ids)

    def _spread(self, given_BL1: Tensor, side: int) -> Tensor:
        """(B, H, W, 1) of (B, L, 1): the same in all of a patch, which has `side` places down and across here."""
        h, w = self.grid
        places = given_BL1.view(-1, h, 1, w, 1, 1).expand(-1, -1, side, -1, side, -1)
        return places.reshape(-1, h * side, w * side, 1)


class PatchProjection(nn.Conv2d):
    """The convolution that makes tokens of patches, as the matrix product over patches that it equals."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__(model.channels, model.width, kernel_size=model.patch_size, stride=model.patch_size)

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, torch.nan)
        if self.bias is not None:
            nn.init.constant_(self.bias, torch.nan)

    def forward(self, input: Tensor) -> Tensor:
        """Patches (B, L, P) to tokens (B, L, D)."""
        weight_DP = self.weight.permute(0, 2, 3, 1).flatten(1)
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, weight_DP.to(input.dtype), bias)


class StemLayer(nn.Module):
    """A convolution that halves an image: the first by its stride, the others by the largest of each 2 x 2 places, with
    a second convolution behind them.

    Their weights are standardised and each has a norm over all places after it (Qiao et al. 2019): with a LayerNorm at
    each place instead, training on a thousand images took more than twice as long (docs/log.md). Places that are not
    given are empty after each and do not count.
    """

    def __init__(self, fan_in: int, fan_out: int, eps: float, *, first: bool) -> None:
        super().__init__()
        self.conv1, self.norm1 = StemConvolution(fan_in, fan_out, stride=2 if first else 1), StemNorm(fan_out, eps)
        self.conv2 = None if first else StemConvolution(fan_out, fan_out)
        self.norm2 = None if first else StemNorm(fan_out, eps)

    def forward(self, x_BHWC: Tensor, given_BHW1: Tensor | None) -> Tensor:
        x = self.conv1(x_BHWC)
        if self.conv2 is None or self.norm2 is None:
            return F.relu(self.norm1(x, given_BHW1))
        x = F.relu(self.norm1(max_pool(x), given_BHW1))
        return F.relu(self.norm2(self.conv2(x), given_BHW1))


def max_pool(x_BHWC: Tensor) -> Tensor:
    """(B, H, W, C) to (B, H / 2, W / 2, C)."""
    return F.max_pool2d(x_BHWC.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


class StemConvolution(nn.Conv2d):
    def __init__(self, fan_in: int, fan_out: int, stride: int = 1) -> None:
        super().__init__(fan_in, fan_out, kernel_size=3, stride=stride, padding=1, bias=False)

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, torch.nan)

    def forward(self, input: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H / stride, W / stride, C)."""
        x_BCHW = input.permute(0, 3, 1, 2)
        weight = standardized(self.weight).to(input.dtype)
        return F.conv2d(x_BCHW, weight, stride=self.stride, padding=self.padding).permute(0, 2, 3, 1)


class StemNorm(nn.Module):
    """Of all values at all places of an image that are given; the others become 0. A factor and a bias each channel."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = parameter(dim), parameter(dim), eps

    def forward(self, x_BHWC: Tensor, given_BHW1: Tensor | None) -> Tensor:
        weight, bias = self.weight.to(x_BHWC.dtype), self.bias.to(x_BHWC.dtype)
        if given_BHW1 is None:  # one group is all channels
            return F.group_norm(x_BHWC.permute(0, 3, 1, 2), 1, weight, bias, self.eps).permute(0, 2, 3, 1)
        x, given = x_BHWC.float(), given_BHW1.float()
        share = given.mean((1, 2, 3), keepdim=True)
        x = (x - (x * given).mean((1, 2, 3), keepdim=True) / share) * given
        x = x * (x.square().mean((1, 2, 3), keepdim=True) / share + self.eps).rsqrt()
        return (x.to(x_BHWC.dtype) * weight + bias) * given_BHW1


def standardized(weight: Tensor) -> Tensor:
    """(out, in, kh, kw) to mean 0 and variance 1 / fan-in of each output."""
    flat = weight.flatten(1)
    fan_in = flat.shape[1]
    return (F.layer_norm(flat, (fan_in,), eps=STANDARDIZED_EPS / fan_in) * fan_in**-0.5).view_as(weight)


def patchify(images_BHWC: Tensor, patch_size: int) -> Tensor:
    """(B, L, P): patches row by row, the values of each in the order row, column, channel."""
    B, H, W, C = images_BHWC.shape
    p = patch_size
    return images_BHWC.reshape(B, H // p, p, W // p, p, C).transpose(2, 3).reshape(B, -1, p * p * C)


def select(x_BLP: Tensor, ids_BK: Tensor) -> Tensor:
    """(B, K, P): the patches with these numbers."""
    return x_BLP.gather(1, ids_BK[:, :, None].expand(-1, -1, x_BLP.shape[-1]))
