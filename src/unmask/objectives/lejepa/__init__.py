"""LeJEPA: views of an image agree, and all features together are a standard Gaussian (arXiv 2511.08544).

Balestriero and LeCun 2025. Without a teacher, a queue or stopped gradients: the Gaussian keeps features from becoming
all the same. It is asked for in random directions (SIGReg), in each by the statistic of Epps and Pulley,

    B * integral of |mean of exp(i t x) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt over [-3, 3],

of the B images of a micro-batch, over all processes: with more micro-batches each of them is judged by itself.

Knots, range, number of directions, weight, views and projector are those of the authors' minimal example. Other than
there: all views are of one size, and the projector takes the mean of the patch tokens, which is what features are read
out of. Its BatchNorm is over all processes too. With LayerNorm in its place the features were hardly better than those
of fresh weights (docs/log.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import Field

from unmask.config.schema import ModelConfig, ObjectiveSection, OptimizerConfig
from unmask.data.batch import Arrays, Needs
from unmask.data.rng import Op, generator
from unmask.models.parameters import Shapes, Tensors, encoder_shapes, linear_shapes, norm_shapes
from unmask.objectives.base import Objective, PaintingSection
from unmask.objectives.encoder import EncoderSection
from unmask.objectives.mae import MaeSection, MaskedAutoencoding

EPS = 1e-5
"""Of the projector's BatchNorm."""
KNOTS = np.linspace(0, 3, 17)
"""Where the statistic compares; the half of its range, because what it integrates is even."""
GAUSSIAN = np.exp(-(KNOTS**2) / 2)
"""Characteristic function of the standard Gaussian, and the weight of each knot."""
QUADRATURE = GAUSSIAN * 2 * 3 / 16 * np.where((KNOTS == 0) | (KNOTS == 3), 0.5, 1.0)
"""Of the trapezoidal rule over both halves."""


class AgreementSection(ObjectiveSection):
    """Of objectives in which views of an image agree."""

    task: ClassVar = "pretrain"
    views: int = Field(default=4, ge=2)
    """Of each image, each cropped and augmented by itself."""
    gaussian_weight: float = Field(default=0.02, ge=0, le=1)
    """Share of the Gaussian in the loss; the rest is the agreement of views (lambda of the paper)."""
    directions: int = Field(default=256, ge=1)
    """In which features are looked at, other ones in every step."""
    projector_width: int = Field(default=2048, ge=1)
    """Values in the hidden layers of the projector, which is thrown away after training."""
    projection_width: int = Field(default=16, ge=1)
    """Values in which views agree."""


class LeJepaSection(AgreementSection):
    name: str = "lejepa"


class MaeLeJepaSection(AgreementSection, PaintingSection):
    name: str = "mae_lejepa"
    agreement_weight: float = Field(default=1.0, ge=0)
    """Factor on the loss of LeJEPA, which is added to that of the reconstruction."""


@dataclass(frozen=True)
class Directions:
    """`directions` (width, count) of a step: columns of length 1, uniformly random."""

    width: int
    count: int

    def __call__(self, seed: int, step: int) -> Arrays:
        normal = generator(seed, 0, step, Op.DIRECTIONS).standard_normal((self.width, self.count), np.float32)
        return {"directions": normal / np.linalg.norm(normal, axis=0)}


class ViewAgreement(Objective):
    Section = LeJepaSection
    networks: ClassVar = {
        "torch": "unmask.objectives.lejepa.torch:ViewEncoder",
        "mindspore": "unmask.objectives.lejepa.mindspore:ViewEncoder",
    }

    section: LeJepaSection

    def shapes(self) -> Shapes:
        return (
            encoder_shapes(self.model)
            | norm_shapes("norm", self.model.width)
            | projector_shapes(self.model, self.section)
        )

    def is_trained(self, name: str, optimizer: OptimizerConfig) -> bool:
        """Not `norm.bias`, which the projector's BatchNorm takes away: its gradient is nothing but rounding."""
        return name != "norm.bias" and super().is_trained(name, optimizer)

    def needs(self, *, training: bool) -> Needs:
        section = self.section
        if not training:
            return Needs()
        return Needs(views=section.views, step=Directions(section.projection_width, section.directions))

    def finished(self, weights: Tensors, buffers: Tensors) -> tuple[Tensors, ObjectiveSection]:
        """The encoder; the projector has done its work."""
        return without_projector(weights), EncoderSection()


class MaskedViewAgreement(MaskedAutoencoding):
    """Masked views, each painted again, whose visible tokens agree. Evaluated by the reconstruction alone."""

    Section = MaeLeJepaSection
    networks: ClassVar = {
        "torch": "unmask.objectives.lejepa.torch:MaskedViewAutoencoder",
        "mindspore": "unmask.objectives.lejepa.mindspore:MaskedViewAutoencoder",
    }

    section: MaeLeJepaSection  # pyright: ignore[reportIncompatibleVariableOverride]

    def shapes(self) -> Shapes:
        return super().shapes() | projector_shapes(self.model, self.section)

    def needs(self, *, training: bool) -> Needs:
        section, masks = self.section, super().needs(training=training)
        if not training:
            return masks
        directions = Directions(section.projection_width, section.directions)
        return Needs(masks.rows, views=section.views, valid_pixels=True, step=directions)

    def finished(self, weights: Tensors, buffers: Tensors) -> tuple[Tensors, ObjectiveSection]:
        """A masked autoencoder; the projector has done its work."""
        section = self.section
        return without_projector(weights), MaeSection(
            mask_ratio=section.mask_ratio, norm_pix_loss=section.norm_pix_loss
        )


def without_projector(weights: Tensors) -> Tensors:
    return {name: tensor for name, tensor in weights.items() if not name.startswith("projector.")}


def projector_shapes(model: ModelConfig, section: AgreementSection) -> Shapes:
    H = section.projector_width
    return (
        {"projector.fc1.weight": (H, model.width)}  # the norms would take a bias away again
        | norm_shapes("projector.norm1", H)
        | {"projector.fc2.weight": (H, H)}
        | norm_shapes("projector.norm2", H)
        | linear_shapes("projector.fc3", H, section.projection_width)
    )
