"""The PyTorch engine: CPU, CUDA, Ascend where torch_npu is installed, and Apple's MPS."""

from __future__ import annotations

import copy
import ctypes
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from unmask.config.schema import Config
from unmask.data.batch import FULL_RANGE, Batch
from unmask.engines.base import EngineState, StepResult, Tensors, check_names_and_shapes
from unmask.engines.loss_scale import GROWTH_INTERVAL, INITIAL_LOSS_SCALE, MIN_LOSS_SCALE
from unmask.engines.torch_engine.device import pick_device
from unmask.engines.torch_engine.optimizer import Optimizer
from unmask.engines.torch_engine.parallel import Replicas, sum_over_processes
from unmask.models.torch_vit import (
    Classifier,
    MaskedAutoencoder,
    normalize,
    patchify,
    reconstruction_target,
    select,
)
from unmask.schedules import is_trained

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchEngine:
    """See `unmask.engines.base.Engine`."""

    def __init__(self, config: Config, *, world: int = 1) -> None:
        self.config = config
        self.world = world
        self.device = pick_device(config.device)
        self.dtype = DTYPES[config.train.precision]
        self.mean = torch.tensor(config.data.mean, device=self.device)
        self.std = torch.tensor(config.data.std, device=self.device)
        self.full_range = FULL_RANGE[config.data.dtype]
        self.pretraining = config.task == "pretrain"
        with self.device:
            self.model = MaskedAutoencoder(config.model) if self.pretraining else Classifier(config.model)
        weights = dict(self.model.named_parameters())
        depth, frozen = config.model.depth, config.optimizer.frozen_blocks
        for name, weight in weights.items():
            weight.requires_grad_(is_trained(name, depth, pretraining=self.pretraining, frozen_blocks=frozen))
        self.trained = {name: weight for name, weight in weights.items() if weight.requires_grad}
        self.averaged = copy.deepcopy(self.model).requires_grad_(False) if config.train.ema_decay else None
        self.loss_scale, self.good_steps = self._initial_loss_scale()
        loss: Callable[..., Tensor] = self._pretrain_loss if self.pretraining else self._classify_loss
        self._replicas = None if world == 1 else Replicas(self.model, loss)
        loss = self._replicas or loss
        self._loss: Callable[..., Tensor] = torch.compile(loss, dynamic=False) if config.train.compile else loss

    @cached_property
    def optimizer(self) -> Optimizer:
        """Made when training needs it: its moments are twice the model."""
        if self.device.type == "cpu":
            _keep_freed_memory()
        return Optimizer(self.trained, self.config.model.depth, self.config.optimizer)

    # --- steps ---

    def train_step(self, batches: Sequence[Batch], *, lr: float) -> StepResult:
        self.model.train()
        total = torch.zeros((), device=self.device)
        for batch in batches:
            with nullcontext() if self._replicas is None else self._replicas.exchange(batch is batches[-1]):
                loss = self._loss(*self._inputs(batch)) / len(batches)
                (loss if self.loss_scale is None else loss * self.loss_scale).backward()
            total += loss.detach()
        if self._replicas is not None:
            self._replicas.average(total)
        norm, finite = self.optimizer.update(lr, self.loss_scale)
        result = {"loss": total, "grad_norm": norm, "skipped": ~finite}
        if self.loss_scale is not None:
            result["loss_scale"] = self.loss_scale.clone()
            self._adjust_loss_scale(finite)
        if self.averaged is not None:
            self._average(finite)
        return result

    @torch.no_grad()
    def eval_step(self, batch: Batch) -> StepResult:
        valid = torch.ones(len(batch), device=self.device) if batch.valid is None else self._to(batch.valid).float()
        if self.pretraining:
            return {
                "count": valid.sum(),
                "loss": (self._patch_errors(self._evaluated(), batch).mean((1, 2)) * valid).sum(),
            }
        labels = self._labels(batch)
        logits = self._evaluated()(self._patches(batch)).float()
        loss = F.cross_entropy(logits, labels, reduction="none")
        # How many other classes do not score lower than the true one: ties count against it, and so does NaN.
        rank = (~(logits < logits.gather(1, labels[:, None]))).sum(1) - 1
        return {
            "count": valid.sum(),
            "loss": (loss * valid).sum(),
            "top1": ((rank < 1) * valid).sum(),
            "top5": ((rank < 5) * valid).sum(),
        }

    def sum(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values if self.world == 1 else sum_over_processes(values, self.device)

    def read(self, result: StepResult) -> dict[str, float]:
        return {name: float(value) for name, value in result.items()}

    @torch.no_grad()
    def logits(self, batch: Batch) -> NDArray[np.float32]:
        return _numpy(self._evaluated()(self._patches(batch)))

    @torch.no_grad()
    def embed(self, batch: Batch) -> NDArray[np.float32]:
        return _numpy(self._evaluated().embed(self._patches(batch)))

    @torch.no_grad()
    def predict_patches(self, batch: Batch) -> NDArray[np.float32]:
        ids_keep, ids_mask = self._mask(batch)
        model = self._evaluated()
        x = model.encode(select(self._patches(batch), ids_keep), ids_keep)
        return _numpy(model.decode(x, ids_keep, ids_mask, queries=self.config.model.num_patches))

    # --- state ---

    def state(self) -> EngineState:
        moments, updates = self.optimizer.state()
        scalars: dict[str, float] = {"updates": updates}
        if self.loss_scale is not None:
            scalars |= {"loss_scale": float(self.loss_scale), "good_steps": float(self.good_steps)}
        ema = {} if self.averaged is None else _weights(self.averaged)
        return EngineState(_weights(self.model), moments, ema, scalars)

    def load(self, state: EngineState) -> None:
        check_names_and_shapes({n: tuple(w.shape) for n, w in self.model.named_parameters()}, state, self.trained)
        _load(self.model, state.weights)
        if self.averaged is not None:
            _load(self.averaged, state.ema or state.weights)
        if state.optimizer:
            self.optimizer.load(state.optimizer, int(state.scalars["updates"]))
        if self.loss_scale is not None and "loss_scale" in state.scalars:
            self.loss_scale.fill_(state.scalars["loss_scale"])
            self.good_steps.fill_(state.scalars["good_steps"])

    def close(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()

    # --- losses ---

    def _pretrain_loss(self, images: Tensor, ids_keep: Tensor, ids_mask: Tensor) -> Tensor:
        return self._errors(self.model, images, ids_keep, ids_mask).mean()

    def _classify_loss(self, images: Tensor, targets: Tensor, keep_path: Tensor | None) -> Tensor:
        patches = normalize(patchify(images, self.config.model.patch_size), self.mean, self.std, self.full_range)
        logits = self.model(patches.to(self.dtype), keep_path).float()
        if self.config.train.loss == "bce":
            return F.binary_cross_entropy_with_logits(logits, targets)
        return -(targets * F.log_softmax(logits, 1)).sum(1).mean()

    def _errors(self, model: nn.Module, images: Tensor, ids_keep: Tensor, ids_mask: Tensor) -> Tensor:
        """Squared error (B, M, P) of the masked patches, in fp32."""
        patches = patchify(images, self.config.model.patch_size)
        kept = normalize(select(patches, ids_keep), self.mean, self.std, self.full_range)
        masked = normalize(select(patches, ids_mask), self.mean, self.std, self.full_range)
        prediction = model(kept.to(self.dtype), ids_keep, ids_mask)
        return (prediction.float() - reconstruction_target(masked, self.config.model.norm_pix_loss)) ** 2

    def _patch_errors(self, model: nn.Module, batch: Batch) -> Tensor:
        return self._errors(model, self._images(batch), *self._mask(batch))

    # --- precision and averaging ---

    def _initial_loss_scale(self) -> tuple[Tensor | None, Tensor]:
        good_steps = torch.zeros((), device=self.device)
        if self.config.train.precision != "fp16":
            return None, good_steps
        fixed = self.config.train.loss_scale
        return torch.tensor(INITIAL_LOSS_SCALE if fixed == "dynamic" else fixed, device=self.device), good_steps

    def _adjust_loss_scale(self, finite: Tensor) -> None:
        if self.loss_scale is None or self.config.train.loss_scale != "dynamic":
            return
        self.good_steps = torch.where(finite, self.good_steps + 1, 0)
        grow = self.good_steps >= GROWTH_INTERVAL
        changed = torch.where(finite, torch.where(grow, self.loss_scale * 2, self.loss_scale), self.loss_scale / 2)
        self.loss_scale = changed.clamp(min=MIN_LOSS_SCALE)
        self.good_steps = torch.where(grow, 0, self.good_steps)

    @torch.no_grad()
    def _average(self, finite: Tensor) -> None:
        if self.averaged is None or self.config.train.ema_decay is None:
            return
        step = (1 - self.config.train.ema_decay) * finite
        if self.config.train.ema_warmup:
            step = torch.maximum(step, 9 / (10 + self.optimizer.updates) * finite)
        for average, weight in zip(self.averaged.parameters(), self.model.parameters(), strict=True):
            average.lerp_(weight, step)

    def _evaluated(self) -> Any:
        return (self.averaged or self.model).eval()

    # --- inputs ---

    def _inputs(self, batch: Batch) -> tuple[Tensor | None, ...]:
        images = self._images(batch)
        if self.pretraining:
            return images, *self._mask(batch)
        if batch.targets is None:
            raise ValueError("the batch has no targets")
        return images, self._to(batch.targets), None if batch.keep_path is None else self._to(batch.keep_path)

    def _patches(self, batch: Batch) -> Tensor:
        patches = patchify(self._images(batch), self.config.model.patch_size)
        return normalize(patches, self.mean, self.std, self.full_range).to(self.dtype)

    def _mask(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if batch.ids_keep is None or batch.ids_mask is None:
            raise ValueError("the batch has no mask")
        return self._to(batch.ids_keep).long(), self._to(batch.ids_mask).long()

    def _labels(self, batch: Batch) -> Tensor:
        if batch.labels is None:
            raise ValueError("the batch has no labels")
        return self._to(batch.labels)

    def _images(self, batch: Batch) -> Tensor:
        images = self._to(batch.images)
        return images.float() if images.dtype == torch.uint16 else images  # few operators take uint16

    def _to(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)


def _keep_freed_memory() -> None:
    """Have glibc reuse what a step frees; mapping each large tensor anew costs a step 8 % in page faults."""
    if sys.platform != "linux" or (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is None:
        return
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_threshold, 2**30)


def _numpy(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.float().cpu().numpy()


def _weights(model: nn.Module) -> Tensors:
    return {name: weight.detach().cpu().numpy().copy() for name, weight in model.named_parameters()}


@torch.no_grad()
def _load(model: nn.Module, weights: Tensors) -> None:
    for name, weight in model.named_parameters():
        weight.copy_(torch.from_numpy(np.ascontiguousarray(weights[name])))
