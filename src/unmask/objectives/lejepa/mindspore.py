"""LeJEPA in MindSpore, alone and with masked autoencoding. The PyTorch twin has the same names in the same order.

Shapes as in `unmask.objectives.mae.mindspore`, and V views, Z values of a projection, S directions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Tensor, float32, ops
from mindspore.mint.distributed import get_world_size, is_initialized

from unmask.config.schema import ModelConfig
from unmask.data.batch import Pixels
from unmask.models.mindspore_layers import Linear, parameter
from unmask.models.mindspore_operators import Cell
from unmask.models.mindspore_patches import patchify
from unmask.models.mindspore_vit import VisionTransformer
from unmask.objectives.lejepa import EPS, GAUSSIAN, KNOTS, QUADRATURE, AgreementSection, LeJepaSection, MaeLeJepaSection
from unmask.objectives.mae.mindspore import MaskedAutoencoder


class BatchNorm(Cell):
    """By the rows of a micro-batch, all views of its images, over all processes; in fp32. It keeps no averages, because
    after training the projector is gone."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight, self.bias = parameter(dim), parameter(dim)
        self.world = get_world_size() if is_initialized() else 1
        self.all_reduce: Any = ops.AllReduce() if self.world > 1 else None

    def construct(self, x_ND: Tensor) -> Tensor:
        x = x_ND.astype(float32)
        x = x - self.over_all(x.mean(0))
        x = x * ops.rsqrt(self.over_all(ops.square(x).mean(0)) + EPS)
        return (x * self.weight + self.bias).astype(x_ND.dtype)

    def over_all(self, mean: Tensor) -> Tensor:
        """The mean over all processes, with the gradients of all: unlike the Gaussian, the losses differ."""
        return mean if self.all_reduce is None else self.all_reduce(mean) / self.world


class Projector(Cell):
    def __init__(self, model: ModelConfig, section: AgreementSection) -> None:
        super().__init__()
        hidden = section.projector_width
        self.fc1 = Linear(model.width, hidden, bias=False)
        self.norm1 = BatchNorm(hidden)
        self.fc2 = Linear(hidden, hidden, bias=False)
        self.norm2 = BatchNorm(hidden)
        self.fc3 = Linear(hidden, section.projection_width)

    def construct(self, x: Tensor) -> Tensor:
        x = ops.relu(self.norm1(self.fc1(x)))
        x = ops.relu(self.norm2(self.fc2(x)))
        return self.fc3(x)


class Agreement(Cell):
    def __init__(self, gaussian_weight: float) -> None:
        super().__init__()
        self.gaussian_weight = gaussian_weight
        self.epps_pulley = EppsPulley()
        self.matmul: Any = ops.MatMul()

    def construct(self, projections_NZ: Tensor, views: int, directions_ZS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of LeJEPA, its invariance and its gaussian, in fp32; rows are the images' views, image by image."""
        N, Z = projections_NZ.shape
        z = projections_NZ.astype(float32)
        z_BVZ = z.reshape(N // views, views, Z)
        invariance = ops.square(z_BVZ - z_BVZ.mean(1, keep_dims=True)).mean()
        gaussian = self.epps_pulley(self.matmul(z, directions_ZS).reshape(N // views, views, -1)).mean()
        return (1 - self.gaussian_weight) * invariance + self.gaussian_weight * gaussian, invariance, gaussian


class EppsPulley(Cell):
    """How far from a standard Gaussian samples along the first axis are, for each of the others; fp32.

    Of several processes each has as many of the samples.
    """

    def __init__(self) -> None:
        super().__init__()
        self.knots, self.gaussian, self.quadrature = (
            Tensor(values.astype(np.float32)) for values in (KNOTS, GAUSSIAN, QUADRATURE)
        )
        self.world = get_world_size() if is_initialized() else 1
        self.all_reduce: Any = ops.AllReduce() if self.world > 1 else None

    def construct(self, x: Tensor) -> Tensor:
        angles = x.expand_dims(-1) * self.knots
        cos, sin = self.over_processes(ops.stack((ops.cos(angles).mean(0), ops.sin(angles).mean(0))))
        distance = ops.square(cos - self.gaussian) + ops.square(sin)
        return x.shape[0] * self.world * (distance * self.quadrature).sum(-1)

    def over_processes(self, mean: Tensor) -> Tensor:
        """The mean over all processes. Its gradient is that of this one's own: the engine averages gradients."""
        if self.all_reduce is None:
            return mean
        mine = ops.stop_gradient(mean)
        return mean + (self.all_reduce(mine) / self.world - mine)


class ViewEncoder(VisionTransformer):
    terms = ("loss", "invariance", "gaussian")

    def __init__(self, model: ModelConfig, section: LeJepaSection, pixels: Pixels, dtype: Any) -> None:
        super().__init__(model, pixels, dtype, pool="mean", fc_norm=False)
        self.projector = Projector(model, section)
        self.agreement = Agreement(section.gaussian_weight)

    def loss(self, pixels_BVHWC: Tensor, directions: Tensor) -> tuple[Tensor, ...]:
        features = self.features(flat(pixels_BVHWC))
        return self.agreement(self.projector(features), pixels_BVHWC.shape[1], directions)


class MaskedViewAutoencoder(MaskedAutoencoder):
    terms = ("loss", "invariance", "gaussian", "reconstruction")

    def __init__(self, model: ModelConfig, section: MaeLeJepaSection, pixels: Pixels, dtype: Any) -> None:
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
    ) -> tuple[Tensor, ...]:
        patches = patchify(flat(pixels_BVHWC), self.patch_size)
        ids_keep, ids_mask = flat(ids_keep), flat(ids_mask)
        x = self.encode_kept(patches, ids_keep)
        valid = None if valid_pixels is None else flat(valid_pixels)
        reconstruction = self.errors_of(x, patches, ids_keep, ids_mask, valid).mean()
        projections = self.projector(self.pooled(x, self.pool))
        agreed, invariance, gaussian = self.agreement(projections, pixels_BVHWC.shape[1], directions)
        loss = reconstruction + self.agreement_weight * agreed
        return loss, invariance, gaussian, reconstruction


def flat(x: Tensor) -> Tensor:
    """(B, V, ...) to (B * V, ...)."""
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
