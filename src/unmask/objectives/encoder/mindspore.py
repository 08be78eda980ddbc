"""The encoder alone in MindSpore."""

from __future__ import annotations

from typing import Any

from unmask.config.schema import ModelConfig
from unmask.data.batch import Pixels
from unmask.models.mindspore_vit import VisionTransformer
from unmask.objectives.encoder import EncoderSection


class Encoder(VisionTransformer):
    def __init__(self, model: ModelConfig, section: EncoderSection, pixels: Pixels, dtype: Any) -> None:
        super().__init__(model, pixels, dtype, pool=model.pool, fc_norm=section.fc_norm)
