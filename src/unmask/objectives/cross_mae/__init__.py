"""CrossMAE: each mask token by itself reads out of the visible tokens (Fu et al. 2024, arXiv 2401.14391).

As in the paper: a decoder of cross-attention and MLP alone, which takes the encoder's width for its keys and values; a
part of the hidden patches is predicted; each decoder block looks at its own learned sum of what the encoder's blocks
gave. Other than there, those sums go through the encoder's last norm, not through one norm for each block: a linear
layer of the block follows, which can learn the same, and the norm that features are read through is trained.
"""

from __future__ import annotations

import zlib
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from unmask.config.schema import Config, ModelConfig
from unmask.data.batch import Needs
from unmask.data.masking import RandomMask
from unmask.data.rng import Op, generator
from unmask.models.parameters import Shapes, encoder_shapes, linear_shapes, norm_shapes
from unmask.objectives.base import PaintingSection
from unmask.objectives.mae import MaskedAutoencoding

FEATURES = "decoder_features"
"""Weights (decoder_depth, 1 + depth) of the encoder's embedding and blocks in what each decoder block sees."""


class CrossMaeSection(PaintingSection):
    name: str = "cross_mae"
    predict_ratio: float = Field(default=0.25, gt=0, lt=1)
    """Share of all patches that is predicted in training, a random part of the hidden ones; at most mask_ratio."""
    weighted_features: bool = True
    """Each decoder block sees a learned sum of the outputs of all encoder blocks; off: the last one's."""

    def num_predict(self, model: ModelConfig) -> int:
        """Patches that are predicted in training."""
        return model.num_patches - int(model.num_patches * (1 - self.predict_ratio))

    def check(self, config: Config) -> None:
        super().check(config)
        if self.predict_ratio > self.mask_ratio:
            raise ValueError(
                f"objective.predict_ratio={self.predict_ratio} is more than is hidden, "
                f"objective.mask_ratio={self.mask_ratio}"
            )


class CrossMaskedAutoencoding(MaskedAutoencoding):
    Section = CrossMaeSection
    networks: ClassVar = {
        "torch": "unmask.objectives.cross_mae.torch:CrossMaskedAutoencoder",
        "mindspore": "unmask.objectives.cross_mae.mindspore:CrossMaskedAutoencoder",
    }

    section: CrossMaeSection  # pyright: ignore[reportIncompatibleVariableOverride]

    def shapes(self) -> Shapes:
        model, D, E = self.model, self.model.width, self.model.decoder_width
        hidden = int(E * model.mlp_ratio)
        shapes = encoder_shapes(model)
        if self.section.weighted_features:
            shapes |= {f"{FEATURES}.weight": (model.decoder_depth, 1 + model.depth)}
        shapes |= norm_shapes("norm", D)
        shapes |= {"mask_token": (1, 1, E), "decoder_pos_embed": (1, model.num_patches + int(model.cls_token), E)}
        for i in range(model.decoder_depth):
            block = f"decoder_blocks.{i}"
            shapes |= norm_shapes(f"{block}.norm1", E) | linear_shapes(f"{block}.attn.q", E, E)
            shapes |= linear_shapes(f"{block}.attn.kv", D, 2 * E) | linear_shapes(f"{block}.attn.proj", E, E)
            shapes |= norm_shapes(f"{block}.norm2", E)
            shapes |= linear_shapes(f"{block}.mlp.fc1", E, hidden) | linear_shapes(f"{block}.mlp.fc2", hidden, E)
        return shapes | norm_shapes("decoder_norm", E) | linear_shapes("decoder_pred", E, model.patch_dim)

    def first_value(self, name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
        """As in the paper: weights of n features are normal, variance 1/n; the rest as for masked autoencoding."""
        if name != f"{FEATURES}.weight":
            return super().first_value(name, shape, seed)
        rng = generator(seed, 0, zlib.crc32(name.encode()), Op.INIT)
        return rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[1]))

    def needs(self, *, training: bool) -> Needs:
        """In training `ids_mask` holds the patches to predict; in evaluation all hidden ones."""
        model, section = self.model, self.section
        num_predict = section.num_predict(model) if training else None
        return Needs((RandomMask(model.num_patches, section.num_keep(model), num_predict),), valid_pixels=True)
