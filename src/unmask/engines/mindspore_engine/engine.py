"""The MindSpore engine: CPU and Ascend. A step is two compiled graphs; PyNative mode runs the same code uncompiled."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stderr, suppress
from functools import cached_property
from io import StringIO
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn
from numpy.typing import NDArray

from unmask.config.schema import Config
from unmask.data.batch import Batch
from unmask.engines.base import EngineState, StepResult, Tensors, check_names_and_shapes
from unmask.engines.loss_scale import INITIAL_LOSS_SCALE
from unmask.engines.mindspore_engine.device import pick_device
from unmask.engines.mindspore_engine.optimizer import Optimizer, untrained
from unmask.engines.mindspore_engine.parallel import Sum, sum_over_processes
from unmask.engines.mindspore_engine.step import Accumulate, Gradients, Graph, Update
from unmask.engines.mindspore_engine.task import Classification, Pretraining, Task
from unmask.errors import EngineError
from unmask.models.mindspore_vit import Classifier, MaskedAutoencoder
from unmask.schedules import is_trained


class MindSporeEngine:
    """See `unmask.engines.base.Engine`."""

    def __init__(self, config: Config, *, world: int = 1) -> None:
        self.config = config
        self.world = world
        self.device = pick_device(config.device)
        if config.train.precision == "bf16" and self.device == "CPU":
            raise EngineError("train.precision=bf16: MindSpore computes it on Ascend only; set train.precision=fp32")
        graph = config.train.compile is not False
        ms.set_context(mode=ms.GRAPH_MODE if graph else ms.PYNATIVE_MODE)
        if not graph:
            _wake_pynative()
        self.pretraining = config.task == "pretrain"
        self.model = self._make_model()
        self.weights = _named(self.model)
        depth, frozen = config.model.depth, config.optimizer.frozen_blocks
        for name, weight in self.weights.items():
            weight.requires_grad = is_trained(name, depth, pretraining=self.pretraining, frozen_blocks=frozen)
        self.trained = {name: weight for name, weight in self.weights.items() if weight.requires_grad}
        self.averaged = self._make_model() if config.train.ema_decay else None
        self.averages = {} if self.averaged is None else _named(self.averaged, prefix="ema.")
        self.loss_scale = self._initial_loss_scale()
        self.good_steps = untrained("good_steps", 0)
        self._graphs: dict[str, Graph] = {}

    def _make_model(self) -> MaskedAutoencoder | Classifier:
        return MaskedAutoencoder(self.config.model) if self.pretraining else Classifier(self.config.model)

    # --- graphs, each compiled when it is first called ---

    @cached_property
    def optimizer(self) -> Optimizer:
        """Made when training needs it: its moments are twice the model."""
        return Optimizer(self.trained, self.config.model.depth, self.config.optimizer)

    @cached_property
    def _gradients(self) -> Gradients:
        return Gradients(self._task(self.model), self.trained.values(), self.loss_scale)

    @cached_property
    def _accumulate(self) -> Accumulate:
        return Accumulate()

    @cached_property
    def _sum(self) -> Sum:
        return Sum()

    @cached_property
    def _update(self) -> Update:
        averaged = {name: self.weights[name] for name in self.averages}
        return Update(self.optimizer, self.averages, averaged, self.loss_scale, self.good_steps, self.config.train)

    @cached_property
    def _evaluated(self) -> Any:
        return self._task(self.averaged or self.model)

    def graph(self, method: str) -> Graph:
        """Of a method of the task: measure, logits, embed or predict_patches."""
        if method not in self._graphs:
            self._graphs[method] = Graph(self._evaluated, method)
        return self._graphs[method]

    def _task(self, model: nn.Cell) -> Task:
        return Pretraining(model, self.config) if self.pretraining else Classification(model, self.config)

    # --- steps ---

    def train_step(self, batches: Sequence[Batch], *, lr: float) -> StepResult:
        share = Tensor(np.float32(1 / (len(batches) * self.world)))
        total = self._gradients(share, *self._inputs(batches[0]))
        for batch in batches[1:]:
            total = self._accumulate(*total, *self._gradients(share, *self._inputs(batch)))
        if self.world > 1:
            total = self._sum(*total)
        loss, *gradients = total
        norm, skipped, loss_scale = self._update(Tensor(np.float32(lr)), *gradients)
        result = {"loss": loss, "grad_norm": norm, "skipped": skipped}
        return result if self.loss_scale is None else result | {"loss_scale": loss_scale}

    def eval_step(self, batch: Batch) -> StepResult:
        valid = np.ones(len(batch)) if batch.valid is None else batch.valid
        names = ("count", "loss") if self.pretraining else ("count", "loss", "top1", "top5")
        inputs = self._inputs(batch) if self.pretraining else (_images(batch), self._labels(batch))
        sums = self.graph("measure")(Tensor(valid.astype(np.float32)), *inputs)
        return dict(zip(names, sums, strict=True))

    def sum(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values if self.world == 1 else sum_over_processes(values)

    def read(self, result: StepResult) -> dict[str, float]:
        return {name: float(value.asnumpy()) for name, value in result.items()}

    def logits(self, batch: Batch) -> NDArray[np.float32]:
        return self.graph("logits")(_images(batch)).asnumpy()

    def embed(self, batch: Batch) -> NDArray[np.float32]:
        return self.graph("embed")(_images(batch)).asnumpy()

    def predict_patches(self, batch: Batch) -> NDArray[np.float32]:
        return self.graph("predict_patches")(*self._inputs(batch)).asnumpy()

    # --- state ---

    def state(self) -> EngineState:
        moments, updates = self.optimizer.state()
        scalars: dict[str, float] = {"updates": updates}
        if self.loss_scale is not None:
            scalars |= {"loss_scale": _number(self.loss_scale), "good_steps": _number(self.good_steps)}
        return EngineState(_arrays(self.weights), moments, _arrays(self.averages), scalars)

    def load(self, state: EngineState) -> None:
        check_names_and_shapes({name: weight.shape for name, weight in self.weights.items()}, state, self.trained)
        _load(self.weights, state.weights)
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

    # --- inputs ---

    def _initial_loss_scale(self) -> Parameter | None:
        if self.config.train.precision != "fp16":
            return None
        fixed = self.config.train.loss_scale
        return untrained("loss_scale", INITIAL_LOSS_SCALE if fixed == "dynamic" else fixed)

    def _inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        images = _images(batch)
        if self.pretraining:
            if batch.ids_keep is None or batch.ids_mask is None:
                raise ValueError("the batch has no mask")
            return images, _tensor(batch.ids_keep), _tensor(batch.ids_mask)
        if batch.targets is None:
            raise ValueError("the batch has no targets")
        targets = _tensor(batch.targets)
        return (images, targets) if batch.keep_path is None else (images, targets, _tensor(batch.keep_path))

    def _labels(self, batch: Batch) -> Tensor:
        if batch.labels is None:
            raise ValueError("the batch has no labels")
        return _tensor(batch.labels.astype(np.int32))


def _wake_pynative() -> None:
    """MindSpore 2.10 is built against NumPy 1: under NumPy 2 the first eager view fails, and the later ones work."""
    with suppress(SystemError), redirect_stderr(StringIO()):
        Tensor(np.zeros(2, np.float32)).reshape(2, 1)


def _tensor(array: NDArray[Any]) -> Tensor:
    """A copy, unlike `Tensor.from_numpy`: the step may run when the array is already used for something else."""
    return Tensor(array)


def _images(batch: Batch) -> Tensor:
    """uint8 or float32: the frameworks' operators do not take uint16."""
    images = batch.images
    return _tensor(images.astype(np.float32) if images.dtype == np.uint16 else images)


def _number(parameter: Parameter) -> float:
    return float(parameter.asnumpy())


def _named(model: nn.Cell, prefix: str = "") -> dict[str, Parameter]:
    """The weights by canonical name, which MindSpore is told too; what enters one graph needs different names."""
    weights = dict(model.parameters_and_names())
    for name, weight in weights.items():
        weight.name = prefix + name
    return weights


def _arrays(weights: dict[str, Parameter]) -> Tensors:
    return {name: weight.asnumpy().copy() for name, weight in weights.items()}


def _load(weights: dict[str, Parameter], arrays: Tensors) -> None:
    for name, weight in weights.items():
        weight.set_data(Tensor(arrays[name]))
