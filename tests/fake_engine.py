"""An engine in a page of NumPy: what the loop is tested with where no framework is needed.

It holds every weight of the model but trains only the last layer's: the bias of the decoder's prediction, or the
classification head on the mean patch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from unmask.config.schema import Config
from unmask.data.batch import FULL_RANGE, Batch
from unmask.engines.base import EngineState, StepResult, Tensors, check_names_and_shapes
from unmask.engines.loss_scale import GROWTH_INTERVAL, INITIAL_LOSS_SCALE
from unmask.evaluate.reconstruct import patchify
from unmask.objectives.base import create_objective
from unmask.schedules import is_decayed, layer_scale


class FakeEngine:
    def __init__(self, config: Config, world: int = 1) -> None:
        self.config = config
        self.shapes = create_objective(config).shapes()
        self.weights: Tensors = {name: np.full(shape, np.nan, np.float32) for name, shape in self.shapes.items()}
        self.pretraining = config.objective.task == "pretrain"
        self.trained = ["decoder_pred.bias"] if self.pretraining else ["head.weight", "head.bias"]
        self.moments: Tensors = {
            f"{m}.{n}": np.zeros(self.shapes[n], np.float32) for m in ("exp_avg", "exp_avg_sq") for n in self.trained
        }
        self.ema: Tensors = {}
        self.scalars: dict[str, float] = {"updates": 0}
        if config.train.precision == "fp16":
            scale = config.train.loss_scale
            self.scalars |= {"loss_scale": INITIAL_LOSS_SCALE if scale == "dynamic" else scale, "good_steps": 0}
        self.closed = False

    def train_step(self, batches: Sequence[Batch], hyper: Mapping[str, float]) -> StepResult:
        with np.errstate(all="ignore"):  # a gradient that is not finite is an answer here, not a mistake
            parts = [self._loss_and_gradient(batch) for batch in batches]
        loss = float(np.mean([loss for loss, _ in parts]))
        gradient = {name: np.mean([g[name] for _, g in parts], axis=0) for name in self.trained}
        norm = float(np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradient.values())))
        finite = bool(np.isfinite(norm))
        result = {"loss": loss, "grad_norm": norm, "skipped": float(not finite)}
        if "loss_scale" in self.scalars:
            result["loss_scale"] = self.scalars["loss_scale"]
            self._adjust_loss_scale(finite)
        if finite:
            self._update(gradient, norm, hyper["lr"])
        return result

    def sum(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values

    def begin_sum(self, values: NDArray[np.float64]) -> Callable[[], NDArray[np.float64]]:
        return lambda: values

    def read(self, result: StepResult) -> dict[str, float]:
        return {name: float(value) for name, value in result.items()}

    def output(self, name: str, batch: Batch, **options: object) -> np.ndarray:
        return getattr(self, name)(batch)

    def losses(self, batch: Batch) -> np.ndarray:
        return self._errors(batch).mean((1, 2))

    def logits(self, batch: Batch) -> np.ndarray:
        weights = self.ema or self.weights
        return (self.features(batch) @ weights["head.weight"].T + weights["head.bias"]).astype(np.float32)

    def features(self, batch: Batch) -> np.ndarray:
        features = self._patches(batch).mean(1)
        return features[:, np.arange(self.config.model.width) % features.shape[1]].astype(np.float32)

    def reconstruction(self, batch: Batch) -> np.ndarray:
        bias = (self.ema or self.weights)["decoder_pred.bias"]
        return np.broadcast_to(bias, (len(batch), self.config.model.num_patches, len(bias))).copy()

    def is_as_before(self, error: Exception) -> bool:
        return False

    def state(self) -> EngineState:
        def copy(tensors: Tensors) -> Tensors:
            return {name: array.copy() for name, array in tensors.items()}

        return EngineState(copy(self.weights), copy(self.moments), copy(self.ema), scalars=dict(self.scalars))

    def load(self, state: EngineState) -> None:
        check_names_and_shapes(self.shapes, state, self.trained)
        self.weights = {name: state.weights[name].astype(np.float32) for name in self.shapes}
        if self.config.train.ema_decay is not None:
            self.ema = {name: (state.ema or self.weights)[name].copy() for name in self.shapes}
        if state.optimizer:
            self.moments = {name: state.optimizer[name].copy() for name in self.moments}
            self.scalars |= state.scalars

    def close(self) -> None:
        self.closed = True

    def _update(self, gradient: Tensors, norm: float, lr: float) -> None:
        optimizer = self.config.optimizer
        if optimizer.clip_grad is not None:
            gradient = {name: g / max(1, norm / optimizer.clip_grad) for name, g in gradient.items()}
        self.scalars["updates"] += 1
        t, b1, b2 = self.scalars["updates"], optimizer.beta1, optimizer.beta2
        for name, g in gradient.items():
            m, v, w = self.moments[f"exp_avg.{name}"], self.moments[f"exp_avg_sq.{name}"], self.weights[name]
            m += (1 - b1) * (g - m)
            v += (1 - b2) * (g**2 - v)
            step = lr * layer_scale(name, self.config.model.depth, optimizer.layer_decay)
            if is_decayed(name, w.shape):
                w *= 1 - step * optimizer.weight_decay
            w -= step * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + optimizer.eps)
        step = 1 - (self.config.train.ema_decay or 0)
        if self.config.train.ema_warmup:
            step = max(step, 9 / (10 + t))
        for name, average in self.ema.items():
            average += step * (self.weights[name] - average)

    def _adjust_loss_scale(self, finite: bool) -> None:
        if self.config.train.loss_scale != "dynamic":
            return
        self.scalars["good_steps"] = self.scalars["good_steps"] + 1 if finite else 0
        if not finite:
            self.scalars["loss_scale"] = max(1, self.scalars["loss_scale"] / 2)
        elif self.scalars["good_steps"] >= GROWTH_INTERVAL:
            self.scalars |= {"loss_scale": self.scalars["loss_scale"] * 2, "good_steps": 0}

    def _loss_and_gradient(self, batch: Batch) -> tuple[float, Tensors]:
        if self.pretraining:
            target = self._targets(batch)
            bias = self.weights["decoder_pred.bias"]
            return float(((bias - target) ** 2).mean()), {
                "decoder_pred.bias": (2 * (bias - target).mean((0, 1)) / len(bias)).astype(np.float32)
            }
        features, targets = self.features(batch), batch.inputs["targets"]
        logits = features @ self.weights["head.weight"].T + self.weights["head.bias"]
        if getattr(self.config.objective, "loss", None) == "bce":
            loss = (np.logaddexp(0, logits) - targets * logits).mean()
            error = (1 / (1 + np.exp(-logits)) - targets) / targets.size
        else:
            log_p = _log_softmax(logits)
            loss = -(targets * log_p).sum(1).mean()
            error = (np.exp(log_p) * targets.sum(1, keepdims=True) - targets) / len(batch)
        error = error.astype(np.float32)
        return float(loss), {"head.weight": error.T @ features, "head.bias": error.sum(0)}

    def _errors(self, batch: Batch) -> np.ndarray:
        return ((self.ema or self.weights)["decoder_pred.bias"] - self._targets(batch)) ** 2

    def _targets(self, batch: Batch) -> np.ndarray:
        target = np.take_along_axis(self._patches(batch), batch.inputs["ids_mask"][:, :, None], axis=1)
        if getattr(self.config.objective, "norm_pix_loss", False):
            target = (target - target.mean(-1, keepdims=True)) / np.sqrt(target.var(-1, ddof=1, keepdims=True) + 1e-6)
        return target

    def _patches(self, batch: Batch) -> np.ndarray:
        mean, std = np.float32(self.config.data.mean), np.float32(self.config.data.std)
        images = batch.images / np.float32(FULL_RANGE[batch.images.dtype.name])
        return patchify((images - mean) / std, self.config.model.patch_size)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
