"""The classifier in PyTorch. The MindSpore twin beside it has the same names in the same order."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.config.schema import ModelConfig
from unmask.data.batch import Pixels
from unmask.models.torch_layers import Linear
from unmask.models.torch_vit import VisionTransformer
from unmask.objectives.classify import LabelledSection


class Classifier(VisionTransformer):
    def __init__(self, model: ModelConfig, section: LabelledSection, pixels: Pixels, dtype: torch.dtype) -> None:
        super().__init__(model, pixels, dtype, pool=model.pool, fc_norm=model.pool == "mean")
        if model.num_classes is None:
            raise ValueError("model.num_classes is not set")
        self.binary = getattr(section, "loss", None) == "bce"  # a linear probe has no choice
        self.head = Linear(model.feature_width, model.num_classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, num_classes) of normalised images."""
        return self.head(super().forward(images_BCHW))

    def loss(self, pixels_BHWC: Tensor, targets: Tensor, keep_path: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.logits(pixels_BHWC, keep_path)
        if self.binary:
            return {"loss": F.binary_cross_entropy_with_logits(logits, targets)}
        return {"loss": -(targets * F.log_softmax(logits, 1)).sum(1).mean()}

    def logits(self, pixels_BHWC: Tensor, keep_path: Tensor | None = None) -> Tensor:
        """(B, num_classes) fp32, before the softmax."""
        tokens = self.encode(self.patches(pixels_BHWC), keep_path=keep_path)
        return self.head(self.pooled(tokens, self.pool)).float()
