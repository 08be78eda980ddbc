"""The encoder alone in PyTorch."""

from __future__ import annotations

import torch

from unmask.config.schema import ModelConfig
from unmask.data.batch import Pixels
from unmask.models.torch_vit import VisionTransformer
from unmask.objectives.encoder import EncoderSection


class Encoder(VisionTransformer):
    def __init__(self, model: ModelConfig, section: EncoderSection, pixels: Pixels, dtype: torch.dtype) -> None:
        super().__init__(model, pixels, dtype, pool=model.pool, fc_norm=section.fc_norm)
