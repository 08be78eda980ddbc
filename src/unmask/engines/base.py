"""The seam between the training loop and a framework.

The seam is the whole train step: MindSpore differentiates a jitted function, PyTorch compiles and shards differently,
and neither shows outside. Engines never loop, never log, never touch files, and draw no random numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unmask.data.batch import Batch
from unmask.errors import CheckpointError

Tensors = dict[str, NDArray[Any]]
StepResult = Mapping[str, Any]
"""Named scalars that stay on the device until `Engine.read` asks for them."""


@dataclass(frozen=True)
class EngineState:
    """Everything a step changes, in canonical names: enough for either engine to go on as if nothing had happened."""

    weights: Tensors
    """fp32 master weights, in the naming of the official MAE code (`blocks.0.attn.qkv.weight`)."""
    optimizer: Tensors = field(default_factory=dict)
    """`exp_avg.NAME` and `exp_avg_sq.NAME` for each weight that is trained."""
    ema: Tensors = field(default_factory=dict)
    """Moving average of the weights; empty when it is off."""
    scalars: dict[str, float] = field(default_factory=dict)
    """`updates` (applied so far), and for fp16 `loss_scale` and `good_steps`."""


class Engine(Protocol):
    """One model on one framework and device; of several processes each has its own, and they stay equal."""

    def train_step(self, batches: Sequence[Batch], *, lr: float) -> StepResult:
        """One update from the mean gradient of equally large micro-batches, over all processes of the run.

        `loss`: mean over these micro-batches; `grad_norm`: global, before clipping; `skipped`: 1 when a non-finite
        gradient left weights, moments and average untouched; fp16 also `loss_scale`. Does not wait for the device.
        """
        ...

    def eval_step(self, batch: Batch) -> StepResult:
        """Sums over the valid rows of this process, with the averaged weights if there are any.

        `count`, `loss` and, for a classifier, `top1` and `top5`. Does not wait for the device.
        """
        ...

    def sum(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum over all processes of the run, each of which must call this; the same array where there is one.

        The same bits in every process. Waits for the others.
        """
        ...

    def read(self, result: StepResult) -> dict[str, float]:
        """The numbers of a step; waits for the device, as nothing else here does."""
        ...

    def logits(self, batch: Batch) -> NDArray[np.float32]:
        """(B, num_classes), before the softmax."""
        ...

    def embed(self, batch: Batch) -> NDArray[np.float32]:
        """(B, width): pooled features of the whole, unmasked image."""
        ...

    def predict_patches(self, batch: Batch) -> NDArray[np.float32]:
        """(B, L, patch_dim): the decoder's output for `ids_keep`, then `ids_mask`, in the units of the loss."""
        ...

    def state(self) -> EngineState:
        """A copy on the host; later steps do not change it."""
        ...

    def load(self, state: EngineState) -> None:
        """Take over a state from this or the other engine.

        Raises CheckpointError listing every missing, unexpected or differently shaped tensor.
        """
        ...

    def close(self) -> None:
        """Release the device."""
        ...


def check_names_and_shapes(expected: Mapping[str, tuple[int, ...]], state: EngineState, trained: Iterable[str]) -> None:
    """Raise CheckpointError with every difference between the tensors a model has and those a state brings."""
    moments = {f"{moment}.{name}": expected[name] for name in trained for moment in ("exp_avg", "exp_avg_sq")}
    problems = list(_differences(expected, state.weights))
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
