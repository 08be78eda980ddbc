"""The classifier in MindSpore. The PyTorch twin beside it has the same names in the same order."""

from __future__ import annotations

from typing import Any

from mindspore import Tensor, float32, ops

from unmask.config.schema import ModelConfig
from unmask.data.batch import Pixels
from unmask.models.mindspore_layers import Linear
from unmask.models.mindspore_vit import VisionTransformer
from unmask.objectives.classify import LabelledSection


class Classifier(VisionTransformer):
    def __init__(self, model: ModelConfig, section: LabelledSection, pixels: Pixels, dtype: Any) -> None:
        super().__init__(model, pixels, dtype, pool=model.pool, fc_norm=model.pool == "mean")
        if model.num_classes is None:
            raise ValueError("model.num_classes is not set")
        self.binary = getattr(section, "loss", None) == "bce"  # a linear probe has no choice
        self.head = Linear(model.feature_width, model.num_classes)

    def construct(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, num_classes) of normalised images."""
        return self.head(super().construct(images_BCHW))

    def loss(self, pixels_BHWC: Tensor, targets: Tensor, keep_path: Tensor | None = None) -> tuple[Tensor, ...]:
        logits = self.logits(pixels_BHWC, keep_path)
        if self.binary:
            losses = -(targets * ops.logsigmoid(logits) + (1 - targets) * ops.logsigmoid(-logits))
            return (losses.mean(1).mean(),)
        return (-(targets * ops.log_softmax(logits, 1)).sum(1).mean(),)

    def logits(self, pixels_BHWC: Tensor, keep_path: Tensor | None = None) -> Tensor:
        """(B, num_classes) fp32, before the softmax."""
        tokens = self.encode(self.patches(pixels_BHWC), None, keep_path)
        return self.head(self.pooled(tokens, self.pool)).astype(float32)
