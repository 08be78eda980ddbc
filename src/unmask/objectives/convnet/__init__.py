"""A small residual network, trained from scratch: what a Vision Transformer has to be better than when labels are few.

Basic blocks of two 3 x 3 convolutions (He et al. 2016), one for each of three widths. In place of batch normalisation,
whose figures depend on how a batch is spread over processes, group normalisation with standardised weights (Qiao et
al. 2019, arXiv 1903.10520), which is as good. Of `model` it takes the images, their channels and the classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from unmask.config.schema import Config, ModelConfig
from unmask.data.batch import ClassTargets, Needs
from unmask.models.parameters import Shapes, linear_shapes, norm_shapes
from unmask.objectives.classify import Classification, LabelledSection

GROUPS = 8
EPS = 1e-5
STAGES = 3
SIDE = 32
"""Pixels of the longer side, at most, from which on the blocks work; what brings images there is the stem."""


class ConvNetSection(LabelledSection):
    name: str = "convnet"
    width: int = Field(default=40, ge=GROUPS, multiple_of=GROUPS)
    """Channels of the first block; each further one has twice as many. 40: 0.48 M weights."""

    def check(self, config: Config) -> None:
        super().check(config)
        if config.init is not None:
            raise ValueError("objective.name=convnet is trained from scratch; leave out init")
        if config.evaluate.every is not None:
            raise ValueError("evaluate.every looks at features, and objective.name=convnet gives none; leave it out")


def stem_layers(model: ModelConfig) -> int:
    """The first keeps the size, each further one halves it."""
    layers, side = 1, max(model.image_size)
    while side > SIDE:
        layers, side = layers + 1, side // 2
    return layers


class ConvNet(Classification):
    Section = ConvNetSection
    networks: ClassVar = {
        "torch": "unmask.objectives.convnet.torch:ResidualNetwork",
        "mindspore": "unmask.objectives.convnet.mindspore:ResidualNetwork",
    }
    outputs: ClassVar[Mapping[str, tuple[str, ...]]] = {"logits": ()}

    def __init__(self, model: ModelConfig, section: ConvNetSection) -> None:
        super().__init__(model, section)
        self.width = section.width

    def shapes(self) -> Shapes:
        if self.model.num_classes is None:
            raise ValueError("model.num_classes is not set")
        width, shapes = self.width, Shapes()
        for i in range(stem_layers(self.model)):
            shapes |= _conv(f"stem.{i}", width if i else self.model.channels, width)
        before = width
        for i in range(STAGES):
            after = width << i
            shapes |= _conv(f"stages.{i}.first", before, after) | _conv(f"stages.{i}.second", after, after)
            shapes |= {f"stages.{i}.shortcut.weight": (after, before, 1, 1)} if i else {}
            before = after
        return shapes | linear_shapes("head", before, self.model.num_classes)

    def needs(self, *, training: bool) -> Needs:
        return Needs(targets=ClassTargets(self.model.num_classes, self.section.class_weights))


def _conv(name: str, fan_in: int, fan_out: int) -> Shapes:
    return {f"{name}.conv.weight": (fan_out, fan_in, 3, 3)} | norm_shapes(f"{name}.norm", fan_out)
