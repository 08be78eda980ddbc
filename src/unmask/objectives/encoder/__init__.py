"""The encoder alone, as public weights often come: for reading features, not for training."""

from __future__ import annotations

from typing import ClassVar

from unmask.config.schema import ObjectiveSection
from unmask.data.batch import Needs
from unmask.models.parameters import Shapes, encoder_shapes, norm_shapes
from unmask.objectives.base import Objective


class EncoderSection(ObjectiveSection):
    task: ClassVar = None
    name: str = "encoder"
    fc_norm: bool = False
    """The last norm comes after the pooling, as in a classifier that pools by the mean."""


class EncoderAlone(Objective):
    Section = EncoderSection
    networks: ClassVar = {
        "torch": "unmask.objectives.encoder.torch:Encoder",
        "mindspore": "unmask.objectives.encoder.mindspore:Encoder",
    }

    section: EncoderSection

    def shapes(self) -> Shapes:
        norm = norm_shapes("fc_norm" if self.section.fc_norm else "norm", self.model.width)
        return encoder_shapes(self.model) | norm

    def needs(self, *, training: bool) -> Needs:
        return Needs()
