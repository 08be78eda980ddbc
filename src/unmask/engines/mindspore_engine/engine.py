"""The MindSpore engine: CPU and Ascend. A step is two compiled graphs; PyNative mode runs the same code uncompiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from inspect import Signature, signature
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore.communication import get_rank
from numpy.typing import NDArray

from unmask.config.schema import DataConfig, OptimizerConfig, TrainConfig
from unmask.data.batch import Batch, Pixels
from unmask.engines.base import EngineState, StepResult, Tensors, check_names_and_shapes, network_of
from unmask.engines.loss_scale import INITIAL_LOSS_SCALE
from unmask.engines.mindspore_engine.device import pick_device
from unmask.engines.mindspore_engine.optimizer import Optimizer, untrained
from unmask.engines.mindspore_engine.parallel import Sum, begin_sum
from unmask.engines.mindspore_engine.step import Accumulate, Gradients, Graph, Update
from unmask.errors import EngineError
from unmask.objectives.base import Objective
from unmask.plugins import resolve

DTYPES = {"fp32": ms.float32, "bf16": ms.bfloat16, "fp16": ms.float16}


class MindSporeEngine:
    """See `unmask.engines.base.Engine`."""

    def __init__(
        self,
        objective: Objective,
        *,
        data: DataConfig,
        optimizer: OptimizerConfig,
        train: TrainConfig,
        device: str,
        world: int = 1,
    ) -> None:
        self.objective = objective
        self.train = train
        self.world = world
        self.device = pick_device(device)
        if train.precision == "bf16" and self.device == "CPU":
            raise EngineError("train.precision=bf16: MindSpore computes it on Ascend only; set train.precision=fp32")
        for key, value in (("shard", False), ("activation_checkpointing", False), ("exchange_dtype", "fp32")):
            if getattr(train, key) != value:
                raise EngineError(f"train.{key} is for engine=torch alone; leave it out, or set engine=torch")
        ms.set_context(mode=ms.PYNATIVE_MODE if train.compile is False else ms.GRAPH_MODE)
        self.pixel_type = ms.uint8 if data.dtype == "uint8" else ms.float32
        network = resolve(network_of(objective, "mindspore"))
        arguments = (objective.model, objective.section, Pixels.of(data), DTYPES[train.precision])
        self.network: Any = network(*arguments)
        self.weights, self.buffers = self._parameters(self.network)
        for name, weight in self.weights.items():
            weight.requires_grad = objective.is_trained(name, optimizer)
        self.trained = {name: weight for name, weight in self.weights.items() if weight.requires_grad}
        self.averaged: Any = network(*arguments) if train.ema_decay else None
        self.averages, _ = ({}, {}) if self.averaged is None else self._parameters(self.averaged, prefix="ema.")
        self.loss_scale = self._initial_loss_scale()
        self.good_steps = untrained("good_steps", 0)
        self._optimizer_config = optimizer
        self._graphs: dict[tuple[Any, ...], Graph] = {}

    @cached_property
    def _loss_signature(self) -> Signature:
        return signature(self.network.loss)  # an encoder alone has none

    # --- graphs, each compiled when it is first called ---

    @cached_property
    def optimizer(self) -> Optimizer:
        """Made when training needs it: its moments are twice the model."""
        return Optimizer(self.trained, self.objective.model.depth, self._optimizer_config)

    @cached_property
    def _gradients(self) -> Gradients:
        return Gradients(self.network, self.trained.values(), self.loss_scale)

    @cached_property
    def _accumulate(self) -> Accumulate:
        return Accumulate()

    @cached_property
    def _sum(self) -> Sum:
        return Sum()

    @cached_property
    def _update(self) -> Update:
        averaged = {name: self.weights[name] for name in self.averages}
        return Update(self.optimizer, self.averages, averaged, self.loss_scale, self.good_steps, self.train)

    def graph(self, name: str, **options: Any) -> Graph:
        """Of a method of the network, such as logits or features, with these keyword arguments."""
        key = (name, *sorted(options.items()))
        if key not in self._graphs:
            self._graphs[key] = Graph(self.module, name, **options)
        return self._graphs[key]

    # --- steps ---

    def train_step(self, batches: Sequence[Batch], hyper: Mapping[str, float]) -> StepResult:
        share = Tensor(np.float32(1 / (len(batches) * self.world)))
        values = {name: Tensor(np.float32(value)) for name, value in hyper.items() if name != "lr"}
        total = self._gradients(share, *self._arguments(batches[0], values))
        for batch in batches[1:]:
            total = self._accumulate(*total, *self._gradients(share, *self._arguments(batch, values)))
        if self.world > 1:
            total = self._sum(*total)
        terms = self.network.terms
        norm, skipped, loss_scale = self._update(Tensor(np.float32(hyper["lr"])), *total[len(terms) :])
        result = dict(zip(terms, total, strict=False)) | {"grad_norm": norm, "skipped": skipped}
        return result if self.loss_scale is None else result | {"loss_scale": loss_scale}

    def read(self, result: StepResult) -> dict[str, float]:
        return {name: float(value.asnumpy()) for name, value in result.items()}

    def output(self, name: str, batch: Batch, **options: Any) -> NDArray[np.float32]:
        inputs = [_tensor(batch.inputs[each]) for each in self.objective.outputs[name] if each in batch.inputs]
        return self.graph(name, **options)(_images(batch), *inputs).asnumpy()

    def sum(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.begin_sum(values)()

    def begin_sum(self, values: NDArray[np.float64]) -> Callable[[], NDArray[np.float64]]:
        return (lambda: values) if self.world == 1 else begin_sum(values)

    @property
    def module(self) -> Any:
        """The network that is evaluated: the average of the weights where there is one."""
        return self.network if self.averaged is None else self.averaged

    # --- state ---

    def is_as_before(self, error: Exception) -> bool:
        return False  # MindSpore says later what went wrong, and msrun ends the others within a second

    def state(self) -> EngineState:
        if self.world > 1 and get_rank() != 0:
            return EngineState({})
        moments, updates = self.optimizer.state()
        scalars: dict[str, float] = {"updates": updates}
        if self.loss_scale is not None:
            scalars |= {"loss_scale": _number(self.loss_scale), "good_steps": _number(self.good_steps)}
        arrays = _arrays(self.weights), moments, _arrays(self.averages), _arrays(self.buffers)
        return EngineState(*arrays, scalars=scalars)

    def load(self, state: EngineState) -> None:
        check_names_and_shapes(_shapes(self.weights), state, self.trained, _shapes(self.buffers))
        _load(self.weights, state.weights)
        _load(self.buffers, state.buffers)
        _load(self.averages, state.ema or state.weights)
        if state.optimizer:
            self.optimizer.load(state.optimizer, int(state.scalars["updates"]))
        if self.loss_scale is not None and "loss_scale" in state.scalars:
            self.loss_scale.set_data(Tensor(np.float32(state.scalars["loss_scale"])))
            self.good_steps.set_data(Tensor(np.float32(state.scalars["good_steps"])))

    def close(self) -> None:
        if self.device != "CPU":  # for which MindSpore prints an error
            ms.runtime.synchronize()
            ms.runtime.empty_cache()

    def _parameters(self, network: nn.Cell, prefix: str = "") -> tuple[dict[str, Parameter], dict[str, Parameter]]:
        """Weights and buffers by canonical name, which MindSpore is told too; in one graph names must differ."""
        named = dict(network.parameters_and_names())
        for name, parameter in named.items():
            parameter.name = prefix + name
        buffers = {name: named.pop(name) for name in self.objective.buffers() if name in named}
        return named, buffers

    def _initial_loss_scale(self) -> Parameter | None:
        if self.train.precision != "fp16":
            return None
        fixed = self.train.loss_scale
        return untrained("loss_scale", INITIAL_LOSS_SCALE if fixed == "dynamic" else fixed)

    # --- inputs ---

    def _arguments(self, batch: Batch, values: Mapping[str, Tensor]) -> tuple[Tensor | None, ...]:
        """What the loss takes, in its order: a graph takes no tensors by name."""
        images, inputs = _images(batch), {name: _tensor(array) for name, array in batch.inputs.items()}
        if (taught := self.objective.taught) is not None:
            inputs[taught] = self.graph(taught)(images)
        bound = self._loss_signature.bind(images, **inputs, **values)
        bound.apply_defaults()
        return bound.args


def _tensor(array: NDArray[Any]) -> Tensor:
    """A copy, unlike `Tensor.from_numpy`: the step may run when the array is already used for something else."""
    return Tensor(array)


def _images(batch: Batch) -> Tensor:
    """uint8 or float32: the frameworks' operators do not take uint16."""
    images = batch.images
    return _tensor(images.astype(np.float32) if images.dtype == np.uint16 else images)


def _number(parameter: Parameter) -> float:
    return float(parameter.asnumpy())


def _shapes(parameters: dict[str, Parameter]) -> dict[str, tuple[int, ...]]:
    return {name: parameter.shape for name, parameter in parameters.items()}


def _arrays(weights: dict[str, Parameter]) -> Tensors:
    return {name: weight.asnumpy().copy() for name, weight in weights.items()}


def _load(weights: dict[str, Parameter], arrays: Tensors) -> None:
    for name, weight in weights.items():
        weight.set_data(Tensor(arrays[name]))
