"""The classifier in PyTorch. The MindSpore twin beside it has the same names in the same order."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.config.schema import ModelConfig
from unmask.data.batch import Pixels
from unmask.models.torch_handmade import Handmade
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
        handmade = partial(Handmade, model, model.num_classes, mirrored=pixels.mirrored)
        self.teacher_share = getattr(section, "teacher_share", 0.0)
        self.handmade = handmade() if self.teacher_share else None

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, num_classes) of normalised images."""
        logits = self.head(super().forward(images_BCHW))
        if self.handmade is None:
            return logits
        return self._with_teacher(logits, images_BCHW.permute(0, 2, 3, 1).float() * self.std + self.mean)

    def loss(self, pixels_BHWC: Tensor, targets: Tensor, keep_path: Tensor | None = None) -> dict[str, Tensor]:
        logits = self._logits(pixels_BHWC, keep_path)
        if self.binary:
            return {"loss": F.binary_cross_entropy_with_logits(logits, targets)}
        return {"loss": -(targets * F.log_softmax(logits, 1)).sum(1).mean()}

    def logits(self, pixels_BHWC: Tensor, keep_path: Tensor | None = None) -> Tensor:
        """(B, num_classes) fp32, before the softmax."""
        logits = self._logits(pixels_BHWC, keep_path)
        return logits if self.handmade is None else self._with_teacher(logits, pixels_BHWC.float() / self.full_range)

    def _logits(self, pixels_BHWC: Tensor, keep_path: Tensor | None) -> Tensor:
        """The network's own."""
        tokens = self.encode(self.patches(pixels_BHWC), keep_path=keep_path)
        return self.head(self.pooled(tokens, self.pool)).float()

    def _with_teacher(self, logits: Tensor, images_BHWC: Tensor) -> Tensor:
        """The weighted mean of both log-probabilities."""
        assert self.handmade is not None
        return torch.lerp(F.log_softmax(logits.float(), 1), self.handmade(images_BHWC), self.teacher_share)
