"""The PyTorch engine: CPU, CUDA, Ascend where torch_npu is installed, and Apple's MPS."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unmask.config.schema import DataConfig, OptimizerConfig, TrainConfig
from unmask.data.batch import Batch, Pixels
from unmask.engines.base import EngineState, StepResult, Tensors, check_names_and_shapes, network_of
from unmask.engines.loss_scale import GROWTH_INTERVAL, INITIAL_LOSS_SCALE, MIN_LOSS_SCALE
from unmask.engines.torch_engine.device import pick_device
from unmask.engines.torch_engine.optimizer import Optimizer
from unmask.engines.torch_engine.parallel import (
    Replicas,
    Shards,
    answer,
    average,
    begin_sum,
    blocks,
    is_loss,
    local,
    on_host,
    part,
    split_again,
)
from unmask.models.torch_vit import cast_once
from unmask.objectives.base import Objective
from unmask.plugins import resolve

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchEngine:
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
        if self.device.type == "cpu":
            _keep_freed_memory()
        network = partial(resolve(network_of(objective, "torch")), objective.model, objective.section, Pixels.of(data))
        with self.device:  # an average is made likewise: a copy of a tensor that is counted is none (`account`)
            self.network: Any = network(DTYPES[train.precision])
            averaged: Any = network(DTYPES[train.precision]) if train.ema_decay else None
        weights = dict[str, nn.Parameter](self.network.named_parameters())
        for name, weight in weights.items():
            weight.requires_grad_(objective.is_trained(name, optimizer))
        self.averaged = None if averaged is None else averaged.requires_grad_(False)
        self.loss_scale, self.good_steps = self._initial_loss_scale()
        self._optimizer_config = optimizer
        if train.activation_checkpointing:
            for block in blocks(self.network):
                forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
                block.forward = forward  # draws no random numbers
        self._parallel = None if world == 1 else self._spread()
        self.trained = {n: w for n, w in self.network.named_parameters() if w.requires_grad}
        self._compile = train.compile
        self._cast: tuple[list[int], nn.Module] | None = None

    def _spread(self) -> Replicas | Shards:
        """The network over the processes."""
        dtype = DTYPES[self.train.exchange_dtype]
        if not self.train.shard:
            return Replicas(self.network, dtype)
        outputs = [*self.objective.outputs, *filter(None, [self.objective.taught])]
        if self.averaged is not None:
            Shards(self.averaged, dtype, outputs)
        return Shards(self.network, dtype, outputs)

    @cached_property
    def _loss(self) -> Callable[..., dict[str, Tensor]]:
        """When training needs it: an encoder alone has none."""
        loss: Callable[..., dict[str, Tensor]] = self._parallel or self.network.loss
        return torch.compile(loss, dynamic=False) if self._compile else loss

    @cached_property
    def optimizer(self) -> Optimizer:
        """Made when training needs it: its moments are twice the model."""
        return Optimizer(self.trained, self.objective.model.depth, self._optimizer_config)

    # --- steps ---

    def train_step(self, batches: Sequence[Batch], hyper: Mapping[str, float]) -> StepResult:
        self.network.train()
        self._cast = None  # not beside the activations
        values = {name: torch.full((), value, device=self.device) for name, value in hyper.items() if name != "lr"}
        total: dict[str, Tensor] = {}
        for i, batch in enumerate(batches):
            with nullcontext() if self._parallel is None else self._parallel.exchange(i == len(batches) - 1):
                images = self._images(batch)
                terms = self._loss(images, **self._inputs(batch), **self._taught(images), **values)
                terms = {name: term / len(batches) for name, term in terms.items()}
                loss = terms["loss"]
                (loss if self.loss_scale is None else loss * self.loss_scale).backward()
            for name, term in terms.items():
                total[name] = total[name] + term.detach() if name in total else term.detach()
        if self._parallel is not None:
            average(total)
        norm, finite = self.optimizer.update(hyper["lr"], self.loss_scale)
        result = {**total, "grad_norm": norm, "skipped": ~finite}
        if self.loss_scale is not None:
            result["loss_scale"] = self.loss_scale.clone()
            self._adjust_loss_scale(finite)
        if self.averaged is not None:
            self._average(finite)
        return result

    @torch.no_grad()
    def _taught(self, images: Tensor) -> dict[str, Tensor]:
        if (name := self.objective.taught) is None:
            return {}
        taught = {name: getattr(self.module, name)(images)}
        split_again(self.module)
        return taught

    def read(self, result: StepResult) -> dict[str, float]:
        return {name: float(value) for name, value in result.items()}

    @torch.no_grad()
    def output(self, name: str, batch: Batch, **options: Any) -> NDArray[np.float32]:
        network = self._read()
        inputs = [self._to(batch.inputs[each]) for each in self.objective.outputs[name] if each in batch.inputs]
        found = getattr(network, name)(self._images(batch), *inputs, **options).float().cpu().numpy()
        split_again(network)
        return found

    def _read(self) -> nn.Module:
        """`module`, its weights cast once for as long as nobody changes them; shares are gathered in any case."""
        network = self.module.eval()
        if self.train.precision == "fp32" or self.train.shard:
            return network
        versions = [weight._version for weight in network.parameters()]
        if self._cast is None or self._cast[0] != versions:
            self._cast = versions, cast_once(network, DTYPES[self.train.precision])
        return self._cast[1]

    def sum(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.begin_sum(values)()

    def begin_sum(self, values: NDArray[np.float64]) -> Callable[[], NDArray[np.float64]]:
        return (lambda: values) if self.world == 1 else begin_sum(values)

    @property
    def module(self) -> nn.Module:
        """The network that is evaluated: the average of the weights where there is one."""
        return self.averaged or self.network

    # --- state ---

    def is_as_before(self, error: Exception) -> bool:
        # An accelerator is ahead of the host, and goes on to the update with what a broken exchange has left.
        whole = is_loss(error) and self.device.type == "cpu" and not self.train.shard and not self._buffers()
        if whole:
            answer()
        return whole

    def state(self) -> EngineState:
        moments, updates = self.optimizer.state()
        scalars: dict[str, float] = {"updates": updates}
        if self.loss_scale is not None:
            scalars |= {"loss_scale": float(self.loss_scale), "good_steps": float(self.good_steps)}
        ema = {} if self.averaged is None else _arrays(self.averaged.named_parameters())
        return EngineState(
            _arrays(self.network.named_parameters()), moments, ema, _arrays(self._buffers()), scalars=scalars
        )

    def load(self, state: EngineState) -> None:
        shapes = {name: tuple(weight.shape) for name, weight in self.network.named_parameters()}
        buffers = {name: tuple(buffer.shape) for name, buffer in self._buffers()}
        check_names_and_shapes(shapes, state, self.trained, buffers)
        _load(self.network.named_parameters(), state.weights)
        _load(self._buffers(), state.buffers)
        if self.averaged is not None:
            _load(self.averaged.named_parameters(), state.ema or state.weights)
            _load(self._buffers(self.averaged), state.buffers)
        if state.optimizer:
            self.optimizer.load(state.optimizer, int(state.scalars["updates"]))
        if self.loss_scale is not None and "loss_scale" in state.scalars:
            self.loss_scale.fill_(state.scalars["loss_scale"])
            self.good_steps.fill_(state.scalars["good_steps"])

    def close(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()

    def _buffers(self, network: nn.Module | None = None) -> list[tuple[str, Tensor]]:
        """Those of the objective, without what the network keeps for itself."""
        names = self.objective.buffers()
        return [(name, buffer) for name, buffer in (network or self.network).named_buffers() if name in names]

    # --- precision and averaging ---

    def _initial_loss_scale(self) -> tuple[Tensor | None, Tensor]:
        good_steps = torch.zeros((), device=self.device)
        if self.train.precision != "fp16":
            return None, good_steps
        fixed = self.train.loss_scale
        return torch.tensor(INITIAL_LOSS_SCALE if fixed == "dynamic" else fixed, device=self.device), good_steps

    def _adjust_loss_scale(self, finite: Tensor) -> None:
        if self.loss_scale is None or self.train.loss_scale != "dynamic":
            return
        self.good_steps = torch.where(finite, self.good_steps + 1, 0)
        grow = self.good_steps >= GROWTH_INTERVAL
        changed = torch.where(finite, torch.where(grow, self.loss_scale * 2, self.loss_scale), self.loss_scale / 2)
        self.loss_scale = changed.clamp(min=MIN_LOSS_SCALE)
        self.good_steps = torch.where(grow, 0, self.good_steps)

    @torch.no_grad()
    def _average(self, finite: Tensor) -> None:
        if self.averaged is None or self.train.ema_decay is None:
            return
        step = (1 - self.train.ema_decay) * finite
        if self.train.ema_warmup:
            step = torch.maximum(step, 9 / (10 + self.optimizer.updates) * finite)
        for averaged, weight in zip(self.averaged.parameters(), self.network.parameters(), strict=True):
            local(averaged).lerp_(local(weight), step)
        for (_, averaged), (_, buffer) in zip(self._buffers(self.averaged), self._buffers(), strict=True):
            averaged.copy_(buffer)

    # --- inputs ---

    def _inputs(self, batch: Batch) -> dict[str, Tensor]:
        return {name: self._to(array) for name, array in batch.inputs.items()}

    def _images(self, batch: Batch) -> Tensor:
        images = self._to(batch.images)
        return images.float() if images.dtype == torch.uint16 else images  # few operators take uint16

    def _to(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array.astype(np.int64) if array.dtype == np.int32 else array)  # indices
        if self.device.type != "cuda":
            return tensor.to(self.device)
        with torch.cuda.stream(self._copies):
            there = tensor.pin_memory().to(self.device, non_blocking=True)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self._copies)
        there.record_stream(computing)  # its memory is not given to the next copy before it is read
        return there

    @cached_property
    def _copies(self) -> torch.cuda.Stream:
        """A stream of its own: as no step is waited for, its images are copied while the one before computes."""
        return torch.cuda.Stream(self.device)


def _keep_freed_memory() -> None:
    """Have glibc reuse what a step or a batch frees; mapping each large tensor anew costs 7 or 8 % in page faults."""
    if sys.platform != "linux" or (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is None:
        return
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_threshold, 2**30)


def _arrays(tensors: Iterable[tuple[str, Tensor]]) -> Tensors:
    """On the host, of the first process; each must call this."""
    return {name: array for name, tensor in tensors if (array := on_host(tensor)) is not None}


@torch.no_grad()
def _load(tensors: Iterable[tuple[str, Tensor]], arrays: Tensors) -> None:
    for name, tensor in tensors:
        local(tensor).copy_(part(torch.from_numpy(np.ascontiguousarray(arrays[name])), tensor))
