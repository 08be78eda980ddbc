"""The classifier that learns from images without labels, in PyTorch. The MindSpore twin has the same names in the same
order.

B labelled images, U without labels beside each, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.config.schema import ModelConfig
from unmask.data.batch import Pixels
from unmask.objectives.classify.torch import Classifier
from unmask.objectives.semi import SemiSection


class SemiSupervisedClassifier(Classifier):
    def __init__(self, model: ModelConfig, section: SemiSection, pixels: Pixels, dtype: torch.dtype) -> None:
        super().__init__(model, section, pixels, dtype)
        self.others, self.confidence, self.weight = (
            section.unlabelled_ratio,
            section.confidence,
            section.unlabelled_weight,
        )

    def loss(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        pixels_BVHWC: Tensor,
        targets: Tensor,
        weak_probabilities: Tensor,
        keep_path: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """`pixels_BVHWC`: of each row the labelled image, U strong and U weak views of others, see `Needs.pictures`."""
        trained = pixels_BVHWC[:, : 1 + self.others]
        keep_path = None if keep_path is None else keep_path.flatten(0, 1)
        logits_BVK = self.logits(trained.flatten(0, 1), keep_path).unflatten(0, trained.shape[:2])
        scores_BVK = F.log_softmax(logits_BVK, -1)
        labelled = -(targets * scores_BVK[:, 0]).sum(-1).mean()
        confidence_BU, class_BU = weak_probabilities.max(-1)
        counts_BU = (confidence_BU >= self.confidence).float()
        errors_BU = -scores_BVK[:, 1:].gather(-1, class_BU[..., None])[..., 0]
        unlabelled = (errors_BU * counts_BU).mean()
        return {
            "loss": labelled + self.weight * unlabelled,
            "labelled": labelled,
            "unlabelled": unlabelled,
            "confident": counts_BU.mean(),
        }

    def weak_probabilities(self, pixels_BVHWC: Tensor) -> Tensor:
        """(B, U, K) fp32, of the weak views."""
        weak = pixels_BVHWC[:, 1 + self.others :]
        return self.logits(weak.flatten(0, 1)).softmax(-1).unflatten(0, weak.shape[:2])
