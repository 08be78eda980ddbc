"""Fine-tuning with few labels that learns from images without labels too.

As FixMatch (Sohn et al. 2020, arXiv 2001.07685) with the averaged network as the teacher, which Vision Transformers
need (Semi-ViT, Cai et al. 2022, arXiv 2208.05688): the teacher looks at a weakly augmented view of an image without
label, and where it is confident the network is to say the same of a strongly augmented one. With B labelled images and
U others beside each,

    loss = cross entropy of the labelled ones
         + unlabelled_weight / (B U) * sum over the others that the teacher is confident of: cross entropy to its class.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from unmask.config.schema import Config, ObjectiveSection
from unmask.data.batch import Needs
from unmask.models.parameters import Tensors
from unmask.objectives.classify import Classification, ClassifySection, HeadSection


class SemiSection(HeadSection):
    name: str = "semi"
    unlabelled_ratio: int = Field(default=7, ge=1, le=1000)
    """Images without labels beside each labelled one: a step takes that many times train.batch_size of them."""
    confidence: float = Field(default=0.95, ge=0, le=1)
    """Probability of the teacher's class from which on an image without label counts."""
    unlabelled_weight: float = Field(default=1.0, ge=0)
    """Factor on the loss of images without labels."""

    def check(self, config: Config) -> None:
        super().check(config)
        if (smoothing := config.augment.label_smoothing) > 1 - self.confidence:
            raise ValueError(
                f"augment.label_smoothing={smoothing} teaches a probability of {1 - smoothing:g}, so none reaches "
                f"objective.confidence={self.confidence}; lower one of the two"
            )

    @property
    def unlabelled_images(self) -> int:
        return self.unlabelled_ratio


class SemiSupervised(Classification):
    Section = SemiSection
    networks: ClassVar = {
        "torch": "unmask.objectives.semi.torch:SemiSupervisedClassifier",
        "mindspore": "unmask.objectives.semi.mindspore:SemiSupervisedClassifier",
    }
    taught = "weak_probabilities"

    section: SemiSection  # pyright: ignore[reportIncompatibleVariableOverride]

    def needs(self, *, training: bool) -> Needs:
        needs = super().needs(training=training)
        return replace(needs, unlabelled=self.section.unlabelled_ratio) if training else needs

    def finished(self, weights: Tensors, buffers: Tensors) -> tuple[Tensors, ObjectiveSection]:
        """A plain classifier."""
        return weights, ClassifySection()
