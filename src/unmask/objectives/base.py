"""What an objective is: everything that one way of training the network decides, and nothing else knows.

An objective brings its section of the configuration, the names, shapes and first values of its parameters, what its
batches hold beside images, and for each framework a network that computes the loss. The loop, the data path, the
checkpoints and the engines ask it, and know no objective by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from unmask import plugins
from unmask.config.schema import Config, ModelConfig, ObjectiveSection, OptimizerConfig
from unmask.data.batch import Batch, Needs
from unmask.models.parameters import POSITIONS, Shapes, Tensors, Weights, draw
from unmask.schedules import layer_of

READ_OUTS: Mapping[str, tuple[str, ...]] = {"features": (), "patch_features": (), "attention": ()}
"""What can be asked of every network."""


class MaskingSection(ObjectiveSection):
    """Of objectives that hide patches."""

    task: ClassVar = "pretrain"
    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    """Share of the patches that is hidden from the encoder."""

    def num_keep(self, model: ModelConfig) -> int:
        """Patches the encoder sees."""
        return int(model.num_patches * (1 - self.mask_ratio))

    def check(self, config: Config) -> None:
        keep, patches = self.num_keep(config.model), config.model.num_patches
        if not 0 < keep < patches:
            raise ValueError(
                f"objective.mask_ratio={self.mask_ratio} keeps {keep} of {patches} patches; "
                "at least one must be kept and one masked"
            )


class PaintingSection(MaskingSection):
    """Of objectives that paint what they hide: those whose networks have the output `reconstruction`."""

    norm_pix_loss: bool = True
    """Each patch is compared after it was brought to mean 0 and variance 1."""


class Objective(ABC):
    """One way of training; framework-free. Subclasses are listed in `unmask/plugins.py` or by an entry point."""

    Section: ClassVar[type[ObjectiveSection]]
    networks: ClassVar[Mapping[str, str]]
    """By engine: `module:Class` of the network, made as `Class(model, section, pixels)`."""
    outputs: ClassVar[Mapping[str, tuple[str, ...]]] = READ_OUTS
    """What can be asked of the network: the method's name, and which inputs of a batch it takes beside the images, last
    those that a batch may be without."""
    evaluated: ClassVar[str | None] = None
    """The output that `data.val` is judged by, in `sums`; None: such a loss has no meaning image by image."""
    taught: ClassVar[str | None] = None
    """A method of the network that takes the images of a training batch. What it gives before the step, of the network
    that is evaluated (the average of the weights where there is one) and without a gradient, the loss takes by the
    same name."""
    engine_around: ClassVar[str | None] = None
    """`module:Class` of an engine that trains in place of the configured one, around it; None: that one trains."""

    def __init__(self, model: ModelConfig, section: ObjectiveSection) -> None:
        self.model = model
        self.section = section

    @abstractmethod
    def shapes(self) -> Shapes:
        """Name and shape of every weight, in the order of the forward pass."""

    def buffers(self) -> Shapes:
        """State that belongs to the network but is not trained by gradients, such as running statistics."""
        return {}

    def first_value(self, name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
        """What a weight or buffer starts as; a pure function of (seed, name)."""
        return draw(name, shape, self.model, seed)

    def initial_weights(self, seed: int) -> Weights:
        return {name: self.first_value(name, shape, seed) for name, shape in self.shapes().items()}

    def initial_buffers(self, seed: int) -> Weights:
        return {name: self.first_value(name, shape, seed) for name, shape in self.buffers().items()}

    def is_trained(self, name: str, optimizer: OptimizerConfig) -> bool:
        """Whether a weight is trained at all. Position embeddings stay as they are while pretraining;
        `frozen_blocks` freezes what comes before them too."""
        if self.section.task == "pretrain" and name in POSITIONS:
            return False
        return not optimizer.frozen_blocks or layer_of(name, self.model.depth) > optimizer.frozen_blocks

    @abstractmethod
    def needs(self, *, training: bool) -> Needs:
        """What a batch holds beside images."""

    def hyper(self, step: int, total_steps: int) -> Mapping[str, float]:
        """Values that change from step to step, beside the learning rate; the network's loss takes them by name."""
        return {}

    def finished(self, weights: Tensors, buffers: Tensors) -> tuple[Tensors, ObjectiveSection]:
        """The network as it is used once training is over, and the section of the objective that it then has."""
        return weights, self.section

    def sums(self, values: NDArray[np.float32], batch: Batch) -> dict[str, float]:
        """Figures of the `evaluated` output, summed over the valid rows of a batch; `count` is among them."""
        raise NotImplementedError(f"{type(self).__name__} is not evaluated")


def create_objective(config: Config) -> Objective:
    """The objective that a configuration names."""
    return plugins.find(plugins.OBJECTIVES, config.objective.name)(config.model, config.objective)


def valid_rows(batch: Batch) -> NDArray[Any]:
    """(B,) bool."""
    return np.ones(len(batch), bool) if batch.valid is None else batch.valid
