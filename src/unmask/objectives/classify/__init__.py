"""Classification: fine-tuning and training from scratch, against soft targets."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from unmask.config.schema import Config, ObjectiveSection, OptimizerConfig
from unmask.data.batch import Batch, ClassTargets, Needs
from unmask.data.masking import DropPath
from unmask.metrics import classification_sums, multi_label_sums
from unmask.models.handmade import PREFIX, handmade_shapes
from unmask.models.parameters import Shapes, encoder_shapes, linear_shapes, norm_shapes
from unmask.objectives.base import READ_OUTS, Objective, valid_rows

HANDMADE, NETWORK = "handmade", "network"
"""Teachers that a run makes itself."""


class LabelledSection(ObjectiveSection):
    """Of objectives that train on classes."""

    task: ClassVar = "finetune"
    labelled: ClassVar = True
    class_weights: Literal["balanced"] | tuple[float, ...] | None = None
    """Factor on each class in the cross entropy: in their order, or `balanced`: inversely to their number of images."""

    def check(self, config: Config) -> None:
        if isinstance(self.class_weights, tuple) and min(self.class_weights, default=-1) < 0:
            raise ValueError("objective.class_weights must not be negative")


class HeadSection(LabelledSection):
    """Of objectives that fine-tune a network and a head."""

    head: Literal["auto", "drawn", "probe"] = "auto"
    """What the head begins as; probe: fitted to the features of the network as it starts (Kumar et al. 2022, LP-FT).

    auto: with `init` and up to 10,000 labelled images the probe, and the network is fine-tuned only if that is better
    on images set aside (`unmask.trial`); else drawn.
    """

    @property
    def starts_at_probe(self) -> bool:
        return self.head == "probe"


class ClassifySection(HeadSection):
    name: str = "classify"
    loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    """Against soft targets; bce: a yes or no to each class, averaged over the classes."""
    teacher: tuple[str, ...] = ()
    """Who tells the classes of images without labels (`data.unlabelled`; by default those of `data.train` that
    `data.labels_per_class` leaves out), which are then trained on beside the others: [handmade], a linear classifier on
    gradients, colours and a dictionary of the images' own patches that is fitted to the labelled images, or
    classifiers, such as [runs/first]; of several the mean. [handmade, network]: from 500 labelled images on also this
    network, trained beforehand on four fifths of them alone, and the rest tells how much each of the two counts. They
    are asked once, before the first step."""
    teacher_share: float = Field(default=0.0, ge=0, lt=1)
    """Above 0 the teacher `handmade` becomes part of the classifier, which answers with the weighted mean of both
    log-probabilities, of which this is the teacher's weight: what the two get wrong is not the same."""

    @property
    def teachers(self) -> tuple[str, ...]:
        return self.teacher

    @property
    def keeps_teacher(self) -> bool:
        return self.teacher_share > 0

    @property
    def takes_several_classes(self) -> bool:
        return self.loss == "bce"

    def check(self, config: Config) -> None:
        super().check(config)
        if self.head == "probe" and self.loss == "bce":
            raise ValueError("objective.head=probe is for objective.loss=cross_entropy; set it to drawn")
        if self.teacher and self.loss == "bce":
            raise ValueError("objective.teacher is for objective.loss=cross_entropy; leave it out")
        if NETWORK in self.teacher and HANDMADE not in self.teacher:
            raise ValueError(f"objective.teacher: {NETWORK} is asked beside {HANDMADE}; name both")
        if self.teacher_share and HANDMADE not in self.teacher:
            raise ValueError(
                f"objective.teacher_share is what {HANDMADE} counts: name it in objective.teacher, or leave this out"
            )
        if self.teacher_share and config.data.eval_crop != 1:
            raise ValueError(f"objective.teacher_share: {HANDMADE} looks at whole images; set data.eval_crop=1")
        if self.class_weights is not None and self.loss == "bce":
            raise ValueError("objective.class_weights is for objective.loss=cross_entropy; leave it out")


class Classification(Objective):
    Section = ClassifySection
    networks: ClassVar = {
        "torch": "unmask.objectives.classify.torch:Classifier",
        "mindspore": "unmask.objectives.classify.mindspore:Classifier",
    }
    outputs: ClassVar = {**READ_OUTS, "logits": ()}
    evaluated = "logits"

    section: LabelledSection

    def shapes(self) -> Shapes:
        model = self.model
        if model.num_classes is None:
            raise ValueError("model.num_classes is not set")
        norm = norm_shapes("fc_norm" if model.pool == "mean" else "norm", model.width)
        shapes = encoder_shapes(model) | norm | linear_shapes("head", model.feature_width, model.num_classes)
        return shapes | (handmade_shapes(model, model.num_classes) if self.section.keeps_teacher else {})

    def is_trained(self, name: str, optimizer: OptimizerConfig) -> bool:
        return not name.startswith(PREFIX) and super().is_trained(name, optimizer)

    def needs(self, *, training: bool) -> Needs:
        drop_path = (DropPath(self.model.depth, self.model.drop_path),) if training and self.model.drop_path else ()
        return Needs(drop_path, ClassTargets(self.model.num_classes, self.section.class_weights))

    def sums(self, values: NDArray[np.float32], batch: Batch) -> dict[str, float]:
        if batch.labels is None:
            raise ValueError("the batch has no labels")
        valid = valid_rows(batch)
        measure = multi_label_sums if batch.labels.ndim == 2 else classification_sums
        return measure(values[valid], batch.labels[valid])
