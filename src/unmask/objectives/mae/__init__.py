"""Masked autoencoding: hide most patches, encode the others, paint what was hidden (He et al. 2021)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from unmask.config.schema import Config, ModelConfig, ObjectiveSection
from unmask.data.batch import Batch, Needs
from unmask.data.masking import RandomMask
from unmask.models.parameters import Shapes, block_shapes, encoder_shapes, linear_shapes, norm_shapes
from unmask.objectives.base import READ_OUTS, Objective, valid_rows


class MaeSection(ObjectiveSection):
    task: ClassVar = "pretrain"
    name: Literal["mae"] = "mae"
    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    """Share of the patches that is hidden from the encoder."""
    norm_pix_loss: bool = True
    """Each patch is compared after it was brought to mean 0 and variance 1."""

    def num_keep(self, model: ModelConfig) -> int:
        """Patches the encoder sees."""
        return int(model.num_patches * (1 - self.mask_ratio))

    def check(self, config: Config) -> None:
        keep, patches = self.num_keep(config.model), config.model.num_patches
        if not 0 < keep < patches:
            raise ValueError(
                f"objective.mask_ratio={self.mask_ratio} keeps {keep} of {patches} patches; "
                "at least one must be kept and one masked"
            )


class MaskedAutoencoding(Objective):
    Section = MaeSection
    networks: ClassVar = {
        "torch": "unmask.objectives.mae.torch:MaskedAutoencoder",
        "mindspore": "unmask.objectives.mae.mindspore:MaskedAutoencoder",
    }
    outputs: ClassVar = {
        **READ_OUTS,
        "losses": ("ids_keep", "ids_mask"),
        "reconstruction": ("ids_keep", "ids_mask"),
    }
    evaluated = "losses"

    section: MaeSection

    def shapes(self) -> Shapes:
        return encoder_shapes(self.model) | norm_shapes("norm", self.model.width) | decoder_shapes(self.model)

    def needs(self, *, training: bool) -> Needs:
        return Needs((RandomMask(self.model.num_patches, self.section.num_keep(self.model)),))

    def sums(self, values: NDArray[np.float32], batch: Batch) -> dict[str, Any]:
        valid = valid_rows(batch)
        return {"count": float(valid.sum()), "loss": float(values[valid].sum(dtype=np.float64))}


def decoder_shapes(model: ModelConfig) -> Shapes:
    E = model.decoder_width
    shapes = linear_shapes("decoder_embed", model.width, E)
    shapes |= {"mask_token": (1, 1, E), "decoder_pos_embed": (1, model.num_patches + 1, E)}
    for i in range(model.decoder_depth):
        shapes |= block_shapes(f"decoder_blocks.{i}", E, int(E * model.mlp_ratio))
    return shapes | norm_shapes("decoder_norm", E) | linear_shapes("decoder_pred", E, model.patch_dim)
