"""The small residual network in MindSpore. The PyTorch twin beside it has the same names in the same order."""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Tensor, float32, nn, ops

from unmask.config.schema import ModelConfig
from unmask.data.batch import Pixels
from unmask.models.mindspore_layers import Linear, parameter
from unmask.models.mindspore_operators import Cell
from unmask.models.mindspore_patches import standardized
from unmask.objectives.convnet import EPS, GROUPS, STAGES, ConvNetSection, stem_layers

conv2d: Any = ops.conv2d


class Conv(Cell):
    """3 x 3, its weights standardised, and the norm after it."""

    def __init__(self, fan_in: int, fan_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = Weight(fan_out, fan_in, 3, 3)
        self.norm = GroupNorm(fan_out)
        self.stride = stride

    def construct(self, x_BCHW: Tensor) -> Tensor:
        weight = standardized(self.conv.weight).astype(x_BCHW.dtype)
        return self.norm(conv2d(x_BCHW, weight, stride=self.stride, pad_mode="pad", padding=1))


class Weight(Cell):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = parameter(*shape)


class GroupNorm(Cell):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = parameter(channels), parameter(channels)

    def construct(self, x_BCHW: Tensor) -> Tensor:
        B, C, H, W = x_BCHW.shape
        x_BGN = x_BCHW.astype(float32).reshape(B, GROUPS, C // GROUPS * H * W)
        x_BGN = x_BGN - x_BGN.mean(-1, keep_dims=True)
        x_BGN = x_BGN * ops.rsqrt((x_BGN * x_BGN).mean(-1, keep_dims=True) + EPS)
        weight, bias = self.weight.reshape(1, C, 1, 1), self.bias.reshape(1, C, 1, 1)
        return (x_BGN.reshape(B, C, H, W) * weight + bias).astype(x_BCHW.dtype)


class Stage(Cell):
    """A basic block; all but the first halve the size."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        stride = 1 if fan_in == fan_out else 2
        self.first, self.second = Conv(fan_in, fan_out, stride), Conv(fan_out, fan_out)
        self.shortcut = None if stride == 1 else Weight(fan_out, fan_in, 1, 1)

    def construct(self, x_BCHW: Tensor) -> Tensor:
        x = self.second(ops.relu(self.first(x_BCHW)))
        if self.shortcut is not None:
            weight = standardized(self.shortcut.weight).astype(x.dtype)
            x_BCHW = conv2d(x_BCHW, weight, stride=2, pad_mode="valid")
        return ops.relu(x + x_BCHW)


class ResidualNetwork(Cell):
    terms = ("loss",)
    """What `loss` gives."""

    def __init__(self, model: ModelConfig, section: ConvNetSection, pixels: Pixels, dtype: Any) -> None:
        super().__init__()
        assert model.num_classes is not None
        width = section.width
        self.dtype, self.full_range = dtype, pixels.full_range
        self.mean = Tensor(np.array(pixels.mean, np.float32))
        self.std = Tensor(np.array(pixels.std, np.float32))
        layers = range(stem_layers(model))
        self.stem = nn.CellList([Conv(width if i else model.channels, width, 2 if i else 1) for i in layers])
        widths = [width, *(width << i for i in range(STAGES))]
        self.stages = nn.CellList([Stage(widths[i], widths[i + 1]) for i in range(STAGES)])
        self.head = Linear(widths[-1], model.num_classes)

    def construct(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, num_classes) of normalised images."""
        x = images_BCHW.astype(self.dtype)
        for layer in self.stem:
            x = ops.relu(layer(x))
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((2, 3)))

    def loss(self, pixels_BHWC: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        return (-(targets * ops.log_softmax(self.logits(pixels_BHWC), 1)).sum(1).mean(),)

    def logits(self, pixels_BHWC: Tensor) -> Tensor:
        """(B, num_classes) fp32, before the softmax."""
        images = (pixels_BHWC.astype(float32) / self.full_range - self.mean) / self.std
        return self.construct(images.transpose(0, 3, 1, 2)).astype(float32)
