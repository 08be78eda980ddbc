"""The linear probe: a head on the features of an engine whose model stays as it is.

MAE appendix A.1: BatchNorm without affine, then a linear layer, trained by LARS. The head is small, so it is NumPy's
and the same for all engines; the features, which cost the time, come from the engine.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unmask.config.schema import Config
from unmask.data.batch import Batch
from unmask.engines.base import Engine, EngineState, StepResult, Tensors, check_names_and_shapes
from unmask.models.parameters import PROBE_EPS, parameter_shapes

TRUST = 1e-3
"""LARS: largest step of a matrix in units of its norm, times the learning rate (You et al. 2017)."""
STATISTICS_STEP = 0.1
"""How much of each batch enters the running statistics."""
_TRAINED = ("head.weight", "head.bias")
_STATISTICS = ("head_norm.running_mean", "head_norm.running_var")


class ProbeEngine:
    """See `unmask.engines.base.Engine`. The statistics of the BatchNorm are those of the whole batch of a step."""

    def __init__(self, engine: Engine, config: Config) -> None:
        self.engine = engine
        self.optimizer = config.optimizer
        self.shapes = parameter_shapes(config.model, "probe")
        self.backbone: Tensors = {}
        self.head: Tensors = {
            name: np.full(self.shapes[name], np.nan, np.float32) for name in (*_TRAINED, *_STATISTICS)
        }
        self.momentum: Tensors = {name: np.zeros(self.shapes[name], np.float32) for name in _TRAINED}
        self.updates = 0

    # --- steps ---

    def train_step(self, batches: Sequence[Batch], *, lr: float) -> StepResult:
        features = np.concatenate([self.engine.embed(batch) for batch in batches])
        targets = np.concatenate([_targets(batch) for batch in batches])
        normalized, count = self._normalize_and_follow(features)
        logits = self._head(normalized)
        probabilities = _softmax(logits)
        error = (probabilities * targets.sum(1, keepdims=True) - targets) / np.float32(count)
        loss = -(targets * np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))).sum() / count
        mine = np.concatenate([(error.T @ normalized).ravel(), error.sum(0), [loss]]).astype(np.float64)
        *gradient, total = self.engine.sum(mine)
        norm = float(np.linalg.norm(gradient))
        if np.isfinite(norm):
            weight, bias = np.split(np.array(gradient, np.float32), [self.head["head.weight"].size])
            self._update({"head.weight": weight.reshape(self.shapes["head.weight"]), "head.bias": bias}, lr)
        return {"loss": total, "grad_norm": norm, "skipped": float(not np.isfinite(norm))}

    def eval_step(self, batch: Batch) -> StepResult:
        logits, labels = self.logits(batch), batch.labels
        if labels is None:
            raise ValueError("the batch has no labels")
        valid = np.ones(len(batch)) if batch.valid is None else batch.valid.astype(float)
        true = np.take_along_axis(logits, labels[:, None], 1)
        loss = -np.log(np.take_along_axis(_softmax(logits), labels[:, None], 1)[:, 0])
        rank = (~(logits < true)).sum(1) - 1  # how many other classes do not score lower; ties and NaN count
        rows = {"count": valid, "loss": loss * valid, "top1": (rank < 1) * valid, "top5": (rank < 5) * valid}
        return {name: values.sum() for name, values in rows.items()}

    def sum(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.engine.sum(values)

    def read(self, result: StepResult) -> dict[str, float]:
        return {name: float(value) for name, value in result.items()}

    def logits(self, batch: Batch) -> NDArray[np.float32]:
        mean, var = (self.head[name] for name in _STATISTICS)
        normalized = (self.engine.embed(batch) - mean) / np.sqrt(var + PROBE_EPS)
        return self._head(normalized.astype(np.float32, copy=False))

    def embed(self, batch: Batch) -> NDArray[np.float32]:
        return self.engine.embed(batch)

    def predict_patches(self, batch: Batch) -> NDArray[np.float32]:
        return self.engine.predict_patches(batch)

    # --- state ---

    def state(self) -> EngineState:
        weights = self.backbone | {name: tensor.copy() for name, tensor in self.head.items()}
        momentum = {f"momentum.{name}": tensor.copy() for name, tensor in self.momentum.items()}
        return EngineState({name: weights[name] for name in self.shapes}, momentum, {}, {"updates": self.updates})

    def load(self, state: EngineState) -> None:
        check_names_and_shapes(self.shapes, EngineState(state.weights), ())
        self.backbone = {name: tensor for name, tensor in state.weights.items() if name not in self.head}
        self.head = {name: state.weights[name].astype(np.float32) for name in self.head}
        without = {name: tensor for name, tensor in state.weights.items() if name not in _STATISTICS}
        self.engine.load(EngineState(without))
        if state.optimizer:
            self.momentum = {name: state.optimizer[f"momentum.{name}"].astype(np.float32) for name in _TRAINED}
            self.updates = int(state.scalars["updates"])

    def close(self) -> None:
        self.engine.close()

    # --- mathematics ---

    def _head(self, normalized: NDArray[np.float32]) -> NDArray[np.float32]:
        return normalized @ self.head["head.weight"].T + self.head["head.bias"]

    def _normalize_and_follow(self, features: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
        """Features normalised over the batch of all processes, and its size; the running statistics follow."""
        wide = features.astype(np.float64)
        sums = self.engine.sum(np.concatenate([[len(wide)], wide.sum(0)]))
        count, mean = sums[0], sums[1:] / sums[0]
        var = self.engine.sum(((wide - mean) ** 2).sum(0)) / count
        unbiased = var * count / max(count - 1, 1)
        for name, batch in zip(_STATISTICS, (mean, unbiased), strict=True):
            self.head[name] += (STATISTICS_STEP * (batch - self.head[name])).astype(np.float32)
        return ((wide - mean) / np.sqrt(var + PROBE_EPS)).astype(np.float32), count

    def _update(self, gradients: Tensors, lr: float) -> None:
        """LARS with momentum, as the official code does it: vectors are neither scaled nor decayed."""
        self.updates += 1
        for name, gradient in gradients.items():
            weight = self.head[name]
            if weight.ndim > 1:
                gradient = gradient + np.float32(self.optimizer.weight_decay) * weight
                weight_norm, norm = np.linalg.norm(weight), np.linalg.norm(gradient)
                if weight_norm > 0 and norm > 0:
                    gradient = gradient * np.float32(TRUST * weight_norm / norm)
            self.momentum[name] = np.float32(self.optimizer.beta1) * self.momentum[name] + gradient
            self.head[name] = weight - np.float32(lr) * self.momentum[name]


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    exp = np.exp(logits - logits.max(1, keepdims=True))
    return exp / exp.sum(1, keepdims=True)


def _targets(batch: Batch) -> NDArray[np.float32]:
    if batch.targets is None:
        raise ValueError("the batch has no targets")
    return batch.targets
