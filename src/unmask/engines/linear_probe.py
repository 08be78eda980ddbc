"""The linear probe: a head on the features of an engine whose model stays as it is.

MAE appendix A.1: BatchNorm without affine, then a linear layer, trained by LARS. The head is small, so it is NumPy's
and the same for all engines; the features, which cost the time, come from the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.config.schema import OptimizerConfig
from unmask.data.batch import Batch
from unmask.engines.base import Engine, EngineState, StepResult, Tensors, check_names_and_shapes
from unmask.objectives.base import Objective
from unmask.objectives.linear_probe import EPS

TRUST = 1e-3
"""LARS: largest step of a matrix in units of its norm, times the learning rate (You et al. 2017)."""
STATISTICS_STEP = 0.1
"""How much of each batch enters the running statistics."""
_TRAINED = ("head.weight", "head.bias")
_STATISTICS = ("head_norm.running_mean", "head_norm.running_var")


class LinearProbeEngine:
    """See `unmask.engines.base.Engine`. The statistics of the BatchNorm are those of the whole batch of a step."""

    def __init__(self, engine: Engine, objective: Objective, *, optimizer: OptimizerConfig) -> None:
        self.engine = engine
        self.optimizer = optimizer
        self.buffers = objective.buffers()
        self.shapes = objective.shapes() | self.buffers
        self.backbone: Tensors = {}
        self.head: Tensors = {
            name: np.full(self.shapes[name], np.nan, np.float32) for name in (*_TRAINED, *_STATISTICS)
        }
        self.momentum: Tensors = {name: np.zeros(self.shapes[name], np.float32) for name in _TRAINED}
        self.updates = 0

    # --- steps ---

    def train_step(self, batches: Sequence[Batch], hyper: Mapping[str, float]) -> StepResult:
        features = np.concatenate([self.engine.output("features", batch) for batch in batches])
        targets = np.concatenate([batch.inputs["targets"] for batch in batches])
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
            self._update({"head.weight": weight.reshape(self.shapes["head.weight"]), "head.bias": bias}, hyper["lr"])
        return {"loss": total, "grad_norm": norm, "skipped": float(not np.isfinite(norm))}

    def sum(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.engine.sum(values)

    def begin_sum(self, values: NDArray[np.float64]) -> Callable[[], NDArray[np.float64]]:
        return self.engine.begin_sum(values)

    def read(self, result: StepResult) -> dict[str, float]:
        return {name: float(value) for name, value in result.items()}

    def output(self, name: str, batch: Batch, **options: Any) -> NDArray[np.float32]:
        if name != "logits":
            return self.engine.output(name, batch, **options)
        mean, var = (self.head[name] for name in _STATISTICS)
        normalized = (self.engine.output("features", batch) - mean) / np.sqrt(var + EPS)
        return self._head(normalized.astype(np.float32, copy=False))

    # --- state ---

    def is_as_before(self, error: Exception) -> bool:
        return False  # the statistics may have followed the step

    def state(self) -> EngineState:
        tensors = self.backbone | {name: tensor.copy() for name, tensor in self.head.items()}
        return EngineState(
            {name: tensors[name] for name in self.shapes if name not in self.buffers},
            {f"momentum.{name}": tensor.copy() for name, tensor in self.momentum.items()},
            buffers={name: tensors[name] for name in self.buffers},
            scalars={"updates": self.updates},
        )

    def load(self, state: EngineState) -> None:
        tensors = state.weights | state.buffers
        check_names_and_shapes(self.shapes, EngineState(tensors), ())
        self.backbone = {name: tensor for name, tensor in tensors.items() if name not in self.head}
        self.head = {name: tensors[name].astype(np.float32) for name in self.head}
        weights = {name: tensor for name, tensor in tensors.items() if name not in self.buffers}
        self.engine.load(EngineState(weights))
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
        return ((wide - mean) / np.sqrt(var + EPS)).astype(np.float32), count

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
