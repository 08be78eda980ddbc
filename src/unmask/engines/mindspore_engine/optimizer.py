"""AdamW with decay groups and layer-wise learning rates, its state exchanged under the weights' names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, ops
from numpy.typing import ArrayLike, NDArray

from unmask.config.schema import OptimizerConfig
from unmask.models.mindspore_operators import Cell
from unmask.schedules import is_decayed, layer_scale

MOMENTS = ("exp_avg", "exp_avg_sq")
_fused: Any = ops.AdamWeightDecay()


def _square_sum(gradient: Tensor) -> Tensor:
    """Row by row: MindSpore's L2Loss adds millions of squares to one fp32 number, 0.1 % of which gets lost."""
    return ops.square(gradient).reshape(gradient.shape[0], -1).sum(-1).sum()


def _divide(divisor: Tensor, gradient: Tensor) -> Tensor:
    return gradient / divisor


def _adamw(
    beta1: float,
    beta2: float,
    eps: Tensor,
    lr: Tensor,
    decay: Tensor,
    scale: float,
    share: float,
    weight: Parameter,
    exp_avg: Parameter,
    exp_avg_sq: Parameter,
    gradient: Tensor,
) -> Any:
    return _fused(weight, exp_avg, exp_avg_sq, lr * scale, beta1, beta2, eps, decay * share, gradient)


class Optimizer(Cell):
    """Fused AdamW over the trained weights; whether the gradient is finite is decided inside the graph."""

    def __init__(self, weights: Mapping[str, Parameter], depth: int, config: OptimizerConfig) -> None:
        super().__init__(auto_prefix=False)  # the weights keep the names they have in the model
        self.weights = ParameterTuple(weights.values())
        self.exp_avg, self.exp_avg_sq = (
            ParameterTuple(untrained(f"{moment}.{name}", np.zeros(weight.shape)) for name, weight in weights.items())
            for moment in MOMENTS
        )
        self.updates = untrained("updates", 0)
        self.scales = tuple(layer_scale(name, depth, config.layer_decay) for name in weights)
        self.decays = tuple(config.weight_decay if is_decayed(n, w.shape) else 0.0 for n, w in weights.items())
        self.beta1, self.beta2, self.eps, self.clip_grad = config.beta1, config.beta2, config.eps, config.clip_grad
        self.map = ops.HyperMap()

    def construct(self, gradients: Sequence[Tensor], lr: Tensor, loss_scale: Tensor | None) -> tuple[Tensor, Tensor]:
        """Apply the gradients, which are `loss_scale` times too large.

        Returns the global norm (before clipping) and whether it was finite; if not, nothing but that was done.
        """
        norm = ops.sqrt(ops.stack(self.map(_square_sum, gradients)).sum())
        divisor = loss_scale
        if loss_scale is not None:
            norm = norm / loss_scale
        if self.clip_grad is not None:
            excess = ops.maximum(norm / self.clip_grad, 1.0)
            divisor = excess if divisor is None else divisor * excess
        # MindSpore 2.10 sees new values of a parameter only if the graph names it outside of the branch.
        parameters = (self.weights, self.exp_avg, self.exp_avg_sq, self.updates)
        finite = ops.depend(ops.isfinite(norm), parameters)
        if finite:
            self.updates += 1
            # The kernel has no bias correction, so that is folded into the scalars it is given.
            correction1, correction2 = self._correction(self.beta1), ops.sqrt(self._correction(self.beta2))
            lr, eps = lr * correction2 / correction1, self.eps * correction2
            decay = correction1 / correction2
            if divisor is not None:
                gradients = self.map(ops.partial(_divide, divisor), gradients)
            adamw = ops.partial(_adamw, self.beta1, self.beta2, eps, lr, decay)
            self.map(adamw, self.scales, self.decays, self.weights, self.exp_avg, self.exp_avg_sq, gradients)
        return norm, finite

    def _correction(self, beta: float) -> Tensor:
        """1 - beta^updates, precise even where that is small."""
        return -ops.expm1(self.updates * math.log(max(beta, 1e-30)))

    def state(self) -> tuple[dict[str, NDArray[Any]], int]:
        """Moments as `exp_avg.NAME` and `exp_avg_sq.NAME`, and the number of updates applied."""
        tensors = {moment.name: moment.asnumpy().copy() for moment in (*self.exp_avg, *self.exp_avg_sq)}
        return tensors, int(self.updates.asnumpy())

    def load(self, tensors: Mapping[str, NDArray[Any]], updates: int) -> None:
        for moment in (*self.exp_avg, *self.exp_avg_sq):
            moment.set_data(Tensor(tensors[moment.name]))
        self.updates.set_data(Tensor(np.float32(updates)))


def untrained(name: str, value: ArrayLike) -> Parameter:
    """State beside the weights, in fp32."""
    return Parameter(Tensor(np.asarray(value, np.float32)), name=name, requires_grad=False)
