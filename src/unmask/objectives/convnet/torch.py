"""The small residual network in PyTorch. The MindSpore twin beside it has the same names in the same order."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.config.schema import ModelConfig
from unmask.data.batch import Pixels
from unmask.models.torch_layers import Linear, parameter
from unmask.models.torch_patches import standardized
from unmask.objectives.convnet import EPS, GROUPS, STAGES, ConvNetSection, stem_layers


class Conv(nn.Module):
    """3 x 3, its weights standardised, and the norm after it."""

    def __init__(self, fan_in: int, fan_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = Weight(fan_out, fan_in, 3, 3)
        self.norm = GroupNorm(fan_out)
        self.stride = stride

    def forward(self, x_BCHW: Tensor) -> Tensor:
        weight = standardized(self.conv.weight).to(x_BCHW.dtype)
        return self.norm(F.conv2d(x_BCHW, weight, stride=self.stride, padding=1))


class Weight(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = parameter(*shape)


class GroupNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = parameter(channels), parameter(channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        weight, bias = self.weight.to(x_BCHW.dtype), self.bias.to(x_BCHW.dtype)
        return F.group_norm(x_BCHW, GROUPS, weight, bias, EPS)


class Stage(nn.Module):
    """A basic block; all but the first halve the size."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        stride = 1 if fan_in == fan_out else 2
        self.first, self.second = Conv(fan_in, fan_out, stride), Conv(fan_out, fan_out)
        self.shortcut = None if stride == 1 else Weight(fan_out, fan_in, 1, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x = self.second(F.relu(self.first(x_BCHW)))
        if self.shortcut is not None:
            x_BCHW = F.conv2d(x_BCHW, standardized(self.shortcut.weight).to(x.dtype), stride=2)
        return F.relu(x + x_BCHW)


class ResidualNetwork(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self, model: ModelConfig, section: ConvNetSection, pixels: Pixels, dtype: torch.dtype) -> None:
        super().__init__()
        assert model.num_classes is not None
        width = section.width
        self.dtype, self.full_range = dtype, pixels.full_range
        self.register_buffer("mean", torch.tensor(pixels.mean), persistent=False)
        self.register_buffer("std", torch.tensor(pixels.std), persistent=False)
        layers = range(stem_layers(model))
        self.stem = nn.ModuleList([Conv(width if i else model.channels, width, 2 if i else 1) for i in layers])
        widths = [width, *(width << i for i in range(STAGES))]
        self.stages = nn.ModuleList([Stage(widths[i], widths[i + 1]) for i in range(STAGES)])
        self.head = Linear(widths[-1], model.num_classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, num_classes) of normalised images."""
        x = images_BCHW.to(self.dtype, memory_format=torch.channels_last)
        for layer in self.stem:
            x = F.relu(layer(x))
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((2, 3)))

    def loss(self, pixels_BHWC: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"loss": -(targets * F.log_softmax(self.logits(pixels_BHWC), 1)).sum(1).mean()}

    def logits(self, pixels_BHWC: Tensor) -> Tensor:
        """(B, num_classes) fp32, before the softmax."""
        images = (pixels_BHWC.float() / self.full_range - self.mean) / self.std
        return self(images.permute(0, 3, 1, 2)).float()
