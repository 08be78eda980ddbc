"""Masked autoencoding: hide most patches, encode the others, paint what was hidden (He et al. 2021)."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from unmask.config.schema import ModelConfig
from unmask.data.batch import Batch, Needs
from unmask.data.masking import RandomMask
from unmask.models.parameters import Shapes, block_shapes, encoder_shapes, linear_shapes, norm_shapes
from unmask.objectives.base import READ_OUTS, MaskingSection, Objective, PaintingSection, valid_rows

EPS = 1e-6
"""What `norm_pix_loss` adds to the variance of a patch."""


class MaeSection(PaintingSection):
    name: str = "mae"


class MaskedAutoencoding(Objective):
    Section = MaeSection
    networks: ClassVar = {
        "torch": "unmask.objectives.mae.torch:MaskedAutoencoder",
        "mindspore": "unmask.objectives.mae.mindspore:MaskedAutoencoder",
    }
    outputs: ClassVar = {
        **READ_OUTS,
        "losses": ("ids_keep", "ids_mask", "valid_pixels"),
        "reconstruction": ("ids_keep", "ids_mask"),
    }
    evaluated = "losses"

    section: MaskingSection

    def shapes(self) -> Shapes:
        return encoder_shapes(self.model) | norm_shapes("norm", self.model.width) | decoder_shapes(self.model)

    def needs(self, *, training: bool) -> Needs:
        return Needs((RandomMask(self.model.num_patches, self.section.num_keep(self.model)),), valid_pixels=True)

    def sums(self, values: NDArray[np.float32], batch: Batch) -> dict[str, Any]:
        valid = valid_rows(batch)
        return {"count": float(valid.sum()), "loss": float(values[valid].sum(dtype=np.float64))}


def decoder_shapes(model: ModelConfig) -> Shapes:
    """Of plain blocks, whatever those of the encoder are, which are given cls and patches but no registers."""
    E = model.decoder_width
    shapes = linear_shapes("decoder_embed", model.width, E)
    shapes |= {"mask_token": (1, 1, E), "decoder_pos_embed": (1, model.num_patches + int(model.cls_token), E)}
    for i in range(model.decoder_depth):
        shapes |= block_shapes(f"decoder_blocks.{i}", E, int(E * model.mlp_ratio))
    return shapes | norm_shapes("decoder_norm", E) | linear_shapes("decoder_pred", E, model.patch_dim)
