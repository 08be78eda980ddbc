"""From pixels to tokens, in MindSpore; shapes and dtypes as in `unmask.models.mindspore_vit`."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from mindspore import Parameter, Tensor, float32, int32, nn, ops

from unmask.config.schema import ModelConfig
from unmask.models.mindspore_layers import LayerNorm, linear, parameter
from unmask.models.mindspore_operators import Cell
from unmask.models.parameters import STANDARDIZED_EPS

arange: Any = ops.arange
conv2d: Any = ops.conv2d


class PatchEmbed(Cell):
    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.patch_size, self.channels, self.grid = model.patch_size, model.channels, model.grid
        pairs = list(pairwise((model.channels, *model.stem_widths)))
        self.stem = nn.CellList([StemLayer(*pair, model.norm_eps, first=i == 0) for i, pair in enumerate(pairs)])
        self.proj = None if pairs else PatchProjection(model)
        self.norm = LayerNorm(model.width, model.norm_eps) if model.patch_norm else None

    def construct(self, x_BLP: Tensor, ids: Tensor | None = None) -> Tensor:
        """Tokens of patches; `ids` (B, L) says which these are, None: all, row by row."""
        x = self._stem(x_BLP, ids) if self.proj is None else self.proj(x_BLP)
        return x if self.norm is None else self.norm(x)

    def _stem(self, x_BLP: Tensor, ids: Tensor | None) -> Tensor:
        """Tokens as the convolutions leave them: (B, L, D). Patches that are not given are empty after each."""
        B = x_BLP.shape[0]
        (h, w), side = self.grid, self.patch_size
        places = None
        if ids is not None:  # as matrix products, whose gradients are fast
            places = ops.one_hot(ids, h * w, Tensor(1.0, x_BLP.dtype), Tensor(0.0, x_BLP.dtype))
            x_BLP = ops.matmul(places.transpose(0, 2, 1), x_BLP)
        x = x_BLP.reshape(B, h, w, side, side, self.channels).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(B, h * side, w * side, self.channels)
        for layer in self.stem:
            side = side // 2
            x = layer(x, None if places is None else self._spread(places.sum(1), side))
        x = x.reshape(B, h * w, -1)
        return x if places is None else ops.matmul(places, x)

    def _spread(self, given_BL: Tensor, side: int) -> Tensor:
        """(B, H, W, 1) of (B, L): the same in all of a patch, which has `side` places down and across here."""
        B = given_BL.shape[0]
        h, w = self.grid
        places = ops.broadcast_to(given_BL.reshape(B, h, 1, w, 1, 1), (B, h, side, w, side, 1))
        return places.reshape(B, h * side, w * side, 1)


class PatchProjection(Cell):
    """The weight has the layout of the convolution it equals, (D, C, p, p)."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.weight = parameter(model.width, model.channels, model.patch_size, model.patch_size)
        self.bias = parameter(model.width)

    def construct(self, x_BLP: Tensor) -> Tensor:
        weight_DP = self.weight.transpose(0, 2, 3, 1).reshape(self.weight.shape[0], -1)
        return linear(x_BLP, weight_DP.astype(x_BLP.dtype), self.bias.astype(x_BLP.dtype))


class StemLayer(Cell):
    """A convolution that halves an image: the first by its stride, the others by the largest of each 2 x 2 places, with
    a second convolution behind them.

    Their weights are standardised and each has a norm over all places after it (Qiao et al. 2019). Places that are not
    given are empty after each and do not count.
    """

    def __init__(self, fan_in: int, fan_out: int, eps: float, *, first: bool) -> None:
        super().__init__()
        self.conv1, self.norm1 = StemConvolution(fan_in, fan_out, stride=2 if first else 1), StemNorm(fan_out, eps)
        self.conv2 = None if first else StemConvolution(fan_out, fan_out)
        self.norm2 = None if first else StemNorm(fan_out, eps)

    def construct(self, x_BHWC: Tensor, given_BHW1: Tensor | None) -> Tensor:
        x = self.conv1(x_BHWC)
        if self.conv2 is None or self.norm2 is None:
            return ops.relu(self.norm1(x, given_BHW1))
        x = ops.relu(self.norm1(max_pool(x), given_BHW1))
        return ops.relu(self.norm2(self.conv2(x), given_BHW1))


def max_pool(x_BHWC: Tensor) -> Tensor:
    """(B, H, W, C) to (B, H / 2, W / 2, C)."""
    B, H, W, C = x_BHWC.shape
    return x_BHWC.reshape(B, H // 2, 2, W // 2, 2, C).max(4).max(2)


class StemConvolution(Cell):
    def __init__(self, fan_in: int, fan_out: int, stride: int = 1) -> None:
        super().__init__()
        self.weight = parameter(fan_out, fan_in, 3, 3)
        self.stride = stride

    def construct(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H / stride, W / stride, C)."""
        x_BCHW = x_BHWC.transpose(0, 3, 1, 2)
        weight = standardized(self.weight).astype(x_BCHW.dtype)
        x_BCHW = conv2d(x_BCHW, weight, stride=self.stride, pad_mode="pad", padding=1)
        return x_BCHW.transpose(0, 2, 3, 1)


class StemNorm(Cell):
    """Of all values at all places of an image that are given; the others become 0. A factor and a bias each channel."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = parameter(dim), parameter(dim), eps

    def construct(self, x_BHWC: Tensor, given_BHW1: Tensor | None) -> Tensor:
        weight, bias, x = self.weight.astype(x_BHWC.dtype), self.bias.astype(x_BHWC.dtype), x_BHWC.astype(float32)
        if given_BHW1 is None:
            x = x - x.mean((1, 2, 3), keep_dims=True)
            x = x * ops.rsqrt((x * x).mean((1, 2, 3), keep_dims=True) + self.eps)
            return x.astype(x_BHWC.dtype) * weight + bias
        given = given_BHW1.astype(float32)
        share = given.mean((1, 2, 3), keep_dims=True)
        x = (x - (x * given).mean((1, 2, 3), keep_dims=True) / share) * given
        x = x * ops.rsqrt((x * x).mean((1, 2, 3), keep_dims=True) / share + self.eps)
        return (x.astype(x_BHWC.dtype) * weight + bias) * given_BHW1


def standardized(weight: Parameter) -> Tensor:
    """(out, in, kh, kw) to mean 0 and variance 1 / fan-in of each output."""
    flat = weight.reshape(weight.shape[0], -1)
    flat = flat - flat.mean(1, keep_dims=True)
    return (flat / ops.sqrt((flat * flat).sum(1, keepdims=True) + STANDARDIZED_EPS)).reshape(weight.shape)


def patchify(images_BHWC: Tensor, patch_size: int) -> Tensor:
    """(B, L, P): patches row by row, the values of each in the order row, column, channel."""
    B, H, W, C = images_BHWC.shape
    p = patch_size
    patches = images_BHWC.reshape(B, H // p, p, W // p, p, C).transpose(0, 1, 3, 2, 4, 5)
    return patches.reshape(B, (H // p) * (W // p), p * p * C)


def select(x_BLP: Tensor, ids_BK: Tensor) -> Tensor:
    """(B, K, P): the patches with these numbers."""
    B, L, P = x_BLP.shape
    rows_BK = ids_BK + arange(0, B * L, L, dtype=int32).reshape(B, 1)
    return ops.gather(x_BLP.reshape(B * L, P), rows_BK, 0)
