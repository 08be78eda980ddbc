"""The seam between the training loop and a framework.

The seam is the whole train step: MindSpore differentiates a jitted function, PyTorch compiles and shards differently,
and neither shows outside. Engines never loop, never log, never touch files, and draw no random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unmask.data.batch import Batch
from unmask.errors import CheckpointError, EngineError
from unmask.models.parameters import Tensors
from unmask.objectives.base import Objective

GraphRunner = Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]
"""A written graph as its own runtime runs it: inputs and outputs by name."""
StepResult = Mapping[str, Any]
"""Named scalars that stay on the device until `Engine.read` asks for them."""


@dataclass(frozen=True)
class EngineState:
    """Everything a step changes, in canonical names: enough for any engine to go on as if nothing had happened."""

    weights: Tensors
    """fp32 master weights, in the naming of the official MAE code (`blocks.0.attn.qkv.weight`)."""
    optimizer: Tensors = field(default_factory=dict)
    """`exp_avg.NAME` and `exp_avg_sq.NAME` for each weight that is trained."""
    ema: Tensors = field(default_factory=dict)
    """Moving average of the weights; empty when it is off."""
    buffers: Tensors = field(default_factory=dict)
    """What the network holds beside weights, such as running statistics."""
    teacher: Tensors = field(default_factory=dict)
    """Weights of another network that an objective learns from; empty where there is none."""
    scalars: dict[str, float] = field(default_factory=dict)
    """`updates` (applied so far), and for fp16 `loss_scale` and `good_steps`."""


@dataclass(frozen=True)
class EngineKind:
    """What can be said of an engine before its framework is loaded; listed in `unmask/plugins.py`.

    Fields of the form `module:name` are imported when they are needed.
    """

    package: str
    """Module of the framework."""
    install: str
    """What brings it: `pip install INSTALL`."""
    create: str
    """Class, made as `Class(objective, data=…, optimizer=…, train=…, device=…, world=…)`."""
    connect: str
    """Context manager `connect(device, timeout)`: join the processes that were launched together. One that is not heard
    of for `timeout` seconds is lost; within the block that raises ProcessError, which names it."""
    devices: str
    """Function without arguments: names of the devices that are there, and what to install for more."""
    precision: str | None = None
    """Function `(device)`: what `train.precision=auto` is there; None: fp32."""
    exports: Mapping[str, str] = field(default_factory=dict[str, str])
    """By suffix of the file: function `(engine, outputs, example, path)` that writes a graph for any number of images
    and returns its GraphRunner. `outputs`: methods of the network, each with the inputs it takes beside the images;
    `example`: `images` and these inputs, in the order in which the graph takes them."""
    account: str | None = None
    """Function `(create, batches, hyper, rank, world)` that gives an Account of a step; None: it cannot count one."""


@dataclass(frozen=True)
class Account:
    """What a training step takes of one of several processes, counted without computing it."""

    weights: int
    """Numbers in the whole network."""
    kept_bytes: int
    """From step to step: weights, gradients' buckets, moments, average."""
    peak_bytes: int
    """The most at a time: what is kept, activations, gradients."""
    flops: int
    """Of matrix products and attention."""
    exchanged_bytes: Mapping[str, int]
    """Size of the whole tensors, by kind of exchange: all-reduce, all-gather, reduce-scatter."""
    exchanges: Mapping[str, int]
    """How many of each kind."""


class Engine(Protocol):
    """One network on one framework and device; of several processes each has its own, and they stay equal."""

    def train_step(self, batches: Sequence[Batch], hyper: Mapping[str, float]) -> StepResult:
        """One update from the mean gradient of equally large micro-batches, over all processes of the run.

        `hyper`: `lr`, and what the objective's loss takes by name. Returns `loss` and other terms of the objective,
        means over these micro-batches; `grad_norm`: global, before clipping; `skipped`: 1 when a non-finite gradient
        left weights, moments and average untouched; fp16 also `loss_scale`. Does not wait for the device.
        """
        ...

    def read(self, result: StepResult) -> dict[str, float]:
        """The numbers of a step; waits for the device."""
        ...

    def output(self, name: str, batch: Batch, **options: Any) -> NDArray[np.float32]:
        """What the network's method `name` (one of `Objective.outputs`) gives for a batch, with the averaged weights if
        there are any. `options` are its keyword arguments, such as pool="cls". Waits for the device.
        """
        ...

    def sum(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum over all processes of the run, each of which must call this; the same array where there is one.

        The same bits in every process. Waits for the others.
        """
        ...

    def begin_sum(self, values: NDArray[np.float64]) -> Callable[[], NDArray[np.float64]]:
        """As `sum`, but only begun: what is returned waits for it and gives it. Sums end in the order they begin."""
        ...

    def is_as_before(self, error: Exception) -> bool:
        """Whether `error`, out of a step or a sum, is the loss of another process, and what this process holds is still
        the whole state of the last step that was done."""
        ...

    def state(self) -> EngineState:
        """A copy on the host; later steps do not change it. Of several processes each must call this, and the first
        gets it; what the others get is empty."""
        ...

    def load(self, state: EngineState) -> None:
        """Take over a state from this or another engine.

        Raises CheckpointError listing every missing, unexpected or differently shaped tensor.
        """
        ...

    def close(self) -> None:
        """Release the device."""
        ...


def network_of(objective: Objective, engine: str) -> str:
    """`module:Class` of an objective's network. Raises EngineError if it has none for this engine."""
    if engine not in objective.networks:
        name, known = objective.section.name, ", ".join(objective.networks)
        raise EngineError(f"objective.name={name} has no network for engine={engine}; it has one for {known}")
    return objective.networks[engine]


def check_names_and_shapes(
    expected: Mapping[str, tuple[int, ...]],
    state: EngineState,
    trained: Iterable[str],
    buffers: Mapping[str, tuple[int, ...]] | None = None,
) -> None:
    """Raise CheckpointError with every difference between the tensors a network has and those a state brings."""
    moments = {f"{moment}.{name}": expected[name] for name in trained for moment in ("exp_avg", "exp_avg_sq")}
    problems = list(_differences(expected, state.weights))
    problems += _differences(buffers or {}, state.buffers)
    if state.ema:
        problems += [f"average of {problem}" for problem in _differences(expected, state.ema)]
    if state.optimizer:
        problems += _differences(moments, state.optimizer)
    if problems:
        raise CheckpointError("the checkpoint does not fit the model: " + "; ".join(problems))


def _differences(expected: Mapping[str, tuple[int, ...]], found: Tensors) -> Iterable[str]:
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            yield f"{name} is missing"
        elif name not in expected:
            yield f"{name} is not expected"
        elif found[name].shape != expected[name]:
            yield f"{name} is {list(found[name].shape)}, the model has {list(expected[name])}"
