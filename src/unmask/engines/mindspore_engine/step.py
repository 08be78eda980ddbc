"""The parts of a training step, each one compiled graph: gradients of a micro-batch, their sum, the update."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, float32, ops

from unmask.config.schema import TrainConfig
from unmask.engines.loss_scale import GROWTH_INTERVAL, MIN_LOSS_SCALE
from unmask.engines.mindspore_engine.optimizer import Optimizer
from unmask.models.mindspore_operators import Cell

value_and_grad: Any = ms.value_and_grad


def _add(one: Tensor, other: Tensor) -> Tensor:
    return one + other


def _follow(step: Tensor, average: Parameter, weight: Parameter) -> Any:
    return ops.assign_add(average, (weight - average) * step)


class Graph(Cell):
    """A method of a network as a graph of its own, in fp32; `options` are keyword arguments that it is compiled for.

    Tensors enter a graph one by one: MindSpore takes a tuple for a constant, and compiles again for every other one.
    Graphs are cells, called in graph mode: a function under `ms.jit` (MindSpore 2.10, CPU) goes on with the weights
    of its first call when others are loaded.
    """

    def __init__(self, network: Cell, method: str, **options: Any) -> None:
        super().__init__(auto_prefix=False)  # the weights keep the names they have in the network
        self.network = network
        self.method = getattr(network, method)
        self.options = options

    def construct(self, *inputs: Tensor) -> Tensor:
        return self.method(*inputs, **self.options).astype(float32)


class Gradients(Cell):
    """Of the loss times `loss_scale`."""

    def __init__(self, network: Any, weights: Iterable[Parameter], loss_scale: Parameter | None) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.loss = network.loss
        self.loss_scale = loss_scale
        self.value_and_grad = value_and_grad(self.scaled, None, ParameterTuple(weights), has_aux=True)

    def construct(self, share: Tensor, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Terms of the loss and gradients of a micro-batch, times its `share` of the whole batch."""
        (_, terms), gradients = self.value_and_grad(share, *inputs)
        return (*terms, *gradients)

    def scaled(self, share: Tensor, *inputs: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        terms = tuple([term * share for term in self.loss(*inputs)])
        return terms[0] if self.loss_scale is None else terms[0] * self.loss_scale, terms


class Accumulate(Cell):
    def __init__(self) -> None:
        super().__init__()
        self.map = ops.HyperMap()

    def construct(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The sums of the first half and the second."""
        half = len(tensors) // 2
        return self.map(_add, tensors[:half], tensors[half:])


class Update(Cell):
    """Optimizer, moving average of the weights, loss scale: what changes after a step."""

    def __init__(
        self,
        optimizer: Optimizer,
        averages: Mapping[str, Parameter],
        weights: Mapping[str, Parameter],
        loss_scale: Parameter | None,
        good_steps: Parameter,
        train: TrainConfig,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.optimizer = optimizer
        self.averages, self.weights = ParameterTuple(averages.values()), ParameterTuple(weights.values())
        self.map = ops.HyperMap()
        self.ema_step = None if train.ema_decay is None else 1 - train.ema_decay
        self.ema_warmup = train.ema_warmup
        self.loss_scale, self.good_steps = loss_scale, good_steps
        self.dynamic = train.loss_scale == "dynamic"

    def construct(self, lr: Tensor, *gradients: Tensor) -> tuple[Tensor, Tensor, Any]:
        """Returns the global norm (before clipping), 1.0 if the update was skipped, and the loss scale it was for."""
        loss_scale = None if self.loss_scale is None else self.loss_scale + 0  # a copy
        norm, finite = self.optimizer(gradients, lr, loss_scale)
        if self.ema_step is not None:
            step = self.ema_step
            if self.ema_warmup:
                step = ops.maximum(9 / (10 + self.optimizer.updates), step)
            self.map(ops.partial(_follow, step * finite.astype(float32)), self.averages, self.weights)
        if loss_scale is not None and self.dynamic:
            self._adjust_loss_scale(finite, loss_scale)
        return norm, 1 - finite.astype(float32), loss_scale

    def _adjust_loss_scale(self, finite: Tensor, loss_scale: Any) -> None:
        good_steps = ops.where(finite, self.good_steps + 1, 0.0)
        grow = good_steps >= GROWTH_INTERVAL
        changed = ops.where(finite, ops.where(grow, loss_scale * 2, loss_scale), loss_scale / 2)
        ops.assign(self.loss_scale, ops.maximum(changed, MIN_LOSS_SCALE))
        ops.assign(self.good_steps, ops.where(grow, 0.0, good_steps))
