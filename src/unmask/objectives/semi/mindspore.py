"""The classifier that learns from images without labels, in MindSpore. The PyTorch twin has the same names in the same
order.

B labelled images, U without labels beside each, K classes.
"""

from __future__ import annotations

from typing import Any

from mindspore import Tensor, float32, ops

from unmask.config.schema import ModelConfig
from unmask.data.batch import Pixels
from unmask.objectives.classify.mindspore import Classifier
from unmask.objectives.lejepa.mindspore import flat
from unmask.objectives.semi import SemiSection


class SemiSupervisedClassifier(Classifier):
    terms = ("loss", "labelled", "unlabelled", "confident")

    def __init__(self, model: ModelConfig, section: SemiSection, pixels: Pixels, dtype: Any) -> None:
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
    ) -> tuple[Tensor, ...]:
        """`pixels_BVHWC`: of each row the labelled image, U strong and U weak views of others, see `Needs.pictures`."""
        B, V = pixels_BVHWC.shape[0], 1 + self.others
        keep_path = None if keep_path is None else flat(keep_path)
        logits_BVK = self.logits(flat(pixels_BVHWC[:, :V]), keep_path).reshape(B, V, -1)
        scores_BVK = ops.log_softmax(logits_BVK, -1)
        labelled = -(targets * scores_BVK[:, 0]).sum(-1).mean()
        class_BU = weak_probabilities.argmax(-1)
        counts_BU = (weak_probabilities.max(-1) >= self.confidence).astype(float32)
        errors_BU = -ops.gather_d(scores_BVK[:, 1:], 2, class_BU.expand_dims(-1))[..., 0]
        unlabelled = (errors_BU * counts_BU).mean()
        return labelled + self.weight * unlabelled, labelled, unlabelled, counts_BU.mean()

    def weak_probabilities(self, pixels_BVHWC: Tensor) -> Tensor:
        """(B, U, K) fp32, of the weak views."""
        weak = pixels_BVHWC[:, 1 + self.others :]
        logits = self.logits(flat(weak), None)
        return ops.softmax(logits, -1).reshape(pixels_BVHWC.shape[0], self.others, -1)
