"""LeJEPA in PyTorch, alone and with masked autoencoding. The MindSpore twin has the same names in the same order.

Shapes as in `unmask.objectives.mae.torch`, and V views, Z values of a projection, S directions.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.nn.functional as differentiable
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.config.schema import ModelConfig
from unmask.data.batch import Pixels
from unmask.models.torch_layers import Linear, constant, parameter
from unmask.models.torch_patches import patchify
from unmask.models.torch_vit import VisionTransformer
from unmask.objectives.lejepa import EPS, GAUSSIAN, KNOTS, QUADRATURE, AgreementSection, LeJepaSection, MaeLeJepaSection
from unmask.objectives.mae.torch import MaskedAutoencoder


class BatchNorm(nn.Module):
    """By the rows of a micro-batch, all views of its images, over all processes; in fp32. It keeps no averages, because
    after training the projector is gone."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight, self.bias = parameter(dim), parameter(dim)

    def forward(self, x_ND: Tensor) -> Tensor:
        x = x_ND.float()
        x = x - over_all(x.mean(0))
        x = x * (over_all(x.square().mean(0)) + EPS).rsqrt()
        return (x * self.weight + self.bias).to(x_ND.dtype)


class Projector(nn.Module):
    def __init__(self, model: ModelConfig, section: AgreementSection) -> None:
        super().__init__()
        hidden = section.projector_width
        self.fc1 = Linear(model.width, hidden, bias=False)
        self.norm1 = BatchNorm(hidden)
        self.fc2 = Linear(hidden, hidden, bias=False)
        self.norm2 = BatchNorm(hidden)
        self.fc3 = Linear(hidden, section.projection_width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.fc1(x)))
        x = F.relu(self.norm2(self.fc2(x)))
        return self.fc3(x)


class ViewEncoder(VisionTransformer):
    def __init__(self, model: ModelConfig, section: LeJepaSection, pixels: Pixels, dtype: torch.dtype) -> None:
        super().__init__(model, pixels, dtype, pool="mean", fc_norm=False)
        self.projector = Projector(model, section)
        self.agreement = Agreement(section.gaussian_weight)

    def loss(self, pixels_BVHWC: Tensor, directions: Tensor) -> dict[str, Tensor]:
        features = self.features(pixels_BVHWC.flatten(0, 1))
        projections = self.projector(features).unflatten(0, pixels_BVHWC.shape[:2])
        return self.agreement(projections, directions)


class MaskedViewAutoencoder(MaskedAutoencoder):
    def __init__(self, model: ModelConfig, section: MaeLeJepaSection, pixels: Pixels, dtype: torch.dtype) -> None:
        super().__init__(model, section, pixels, dtype)
        self.agreement_weight = section.agreement_weight
        self.projector = Projector(model, section)
        self.agreement = Agreement(section.gaussian_weight)

    def loss(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        pixels_BVHWC: Tensor,
        ids_keep: Tensor,
        ids_mask: Tensor,
        directions: Tensor,
        valid_pixels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        patches = patchify(pixels_BVHWC.flatten(0, 1), self.patch_size)
        ids_keep, ids_mask = ids_keep.flatten(0, 1), ids_mask.flatten(0, 1)
        x = self.encode_kept(patches, ids_keep)
        valid = None if valid_pixels is None else valid_pixels.flatten(0, 1)
        reconstruction = self.errors_of(x, patches, ids_keep, ids_mask, valid).mean()
        projections = self.projector(self.pooled(x, self.pool)).unflatten(0, pixels_BVHWC.shape[:2])
        agreed = self.agreement(projections, directions)
        loss = reconstruction + self.agreement_weight * agreed["loss"]
        return {**agreed, "loss": loss, "reconstruction": reconstruction}


class Agreement(nn.Module):
    """The loss of LeJEPA and its terms, in fp32."""

    def __init__(self, gaussian_weight: float) -> None:
        super().__init__()
        self.gaussian_weight = gaussian_weight
        self.epps_pulley = EppsPulley()

    def forward(self, projections_BVZ: Tensor, directions_ZS: Tensor) -> dict[str, Tensor]:
        z = projections_BVZ.float()
        invariance = (z - z.mean(1, keepdim=True)).square().mean()
        gaussian = self.epps_pulley(z @ directions_ZS).mean()
        loss = (1 - self.gaussian_weight) * invariance + self.gaussian_weight * gaussian
        return {"loss": loss, "invariance": invariance, "gaussian": gaussian}


class EppsPulley(nn.Module):
    """How far from a standard Gaussian samples along the first axis are, for each of the others; fp32.

    Of several processes each has as many of the samples.
    """

    def __init__(self) -> None:
        super().__init__()
        self.knots, self.gaussian, self.quadrature = (
            constant(values.astype(np.float32)) for values in (KNOTS, GAUSSIAN, QUADRATURE)
        )

    def forward(self, x: Tensor) -> Tensor:
        angles = x[..., None] * self.knots
        cos, sin = over_processes(torch.stack((angles.cos().mean(0), angles.sin().mean(0))))
        distance = (cos - self.gaussian).square() + sin.square()
        return len(x) * (dist.get_world_size() if dist.is_initialized() else 1) * (distance @ self.quadrature)


def over_processes(mean: Tensor) -> Tensor:
    """The mean over all processes. Its gradient is that of this one's own: the engine averages gradients."""
    if not dist.is_initialized():
        return mean
    total = mean.detach().clone()
    dist.all_reduce(total)
    return mean + (total / dist.get_world_size() - mean.detach())


def over_all(mean: Tensor) -> Tensor:
    """The mean over all processes, with the gradients of all: unlike the Gaussian, the losses differ."""
    return differentiable.all_reduce(mean) / dist.get_world_size() if dist.is_initialized() else mean
