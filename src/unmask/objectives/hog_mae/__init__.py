"""Histograms of oriented gradients in place of pixels (MaskFeat, Wei et al. 2021, arXiv 2112.09133), in an MAE.

As there: 9 orientations without sign, cells of about 8 x 8 pixels, each channel by itself, each histogram of length 1.
Other than there: gradients are differences of the two neighbours, and stay within a patch, at whose border a pixel
counts as its own neighbour; MAE's asymmetric encoder and decoder. A patch in which any value is no data is left out.
"""

from __future__ import annotations

from typing import ClassVar

from unmask.config.schema import ModelConfig
from unmask.models.parameters import Shapes, linear_shapes
from unmask.objectives.base import READ_OUTS, MaskingSection
from unmask.objectives.mae import MaskedAutoencoding

ORIENTATIONS = 9
EPS = 1e-6
"""Smallest length that a histogram is divided by."""


def cells(model: ModelConfig) -> int:
    """Of a patch, down and across."""
    return max(1, model.patch_size // 8)


def target_dim(model: ModelConfig) -> int:
    """Values that are predicted of a patch."""
    return cells(model) ** 2 * model.channels * ORIENTATIONS


class HogMaeSection(MaskingSection):
    name: str = "hog_mae"


class MaskedHogPrediction(MaskedAutoencoding):
    Section = HogMaeSection
    networks: ClassVar = {
        "torch": "unmask.objectives.hog_mae.torch:MaskedHogPredictor",
        "mindspore": "unmask.objectives.hog_mae.mindspore:MaskedHogPredictor",
    }
    outputs: ClassVar = {**READ_OUTS, "losses": ("ids_keep", "ids_mask", "valid_pixels")}

    def shapes(self) -> Shapes:
        return super().shapes() | linear_shapes("decoder_pred", self.model.decoder_width, target_dim(self.model))
