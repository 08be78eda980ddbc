"""AdamW with decay groups and layer-wise learning rates, its state exchanged under the weights' names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.adamw import adamw

from unmask.config.schema import OptimizerConfig
from unmask.engines.torch_engine.parallel import is_split, local, norm_over_processes, on_host, part
from unmask.schedules import is_decayed, layer_scale

MOMENTS = ("exp_avg", "exp_avg_sq")


class Optimizer:
    """Fused AdamW over the trained weights. Unscaling, clipping and the skip of a bad update cost no pass of their own.

    `update` never waits for the device: whether the gradient is finite is decided inside the fused kernel.

    It calls the function behind torch.optim.AdamW: the class imports PyTorch's compiler, which is a third of the time
    that a run takes to start.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], depth: int, config: OptimizerConfig) -> None:
        self.weights = dict(weights)
        # Where a weight is split over processes (a DTensor), the share that is here: the kernel takes plain tensors.
        self.parts = {n: nn.Parameter(local(w.detach())) if is_split(w) else w for n, w in self.weights.items()}
        self.config = config
        groups: dict[tuple[float, float], list[str]] = defaultdict(list)
        for name, weight in self.weights.items():
            decay = config.weight_decay if is_decayed(name, tuple(weight.shape)) else 0.0
            groups[layer_scale(name, depth, config.layer_decay), decay].append(name)
        self.groups = dict(groups)
        """Names by layer's share of the learning rate and weight decay."""
        self.moments = {m: {n: torch.zeros_like(w) for n, w in self.parts.items()} for m in MOMENTS}
        device = next(iter(self.parts.values())).device
        self.steps = {name: torch.zeros((), device=device) for name in self.parts}

    @torch.no_grad()
    def update(self, lr: float, loss_scale: Tensor | None) -> tuple[Tensor, Tensor]:
        """Apply the gradients, which are `loss_scale` times too large, and free them.

        Returns the global norm (before clipping) and whether it was finite; if not, nothing but that was done.
        """
        for name, weight in self.weights.items():
            if weight.grad is not None and is_split(weight):
                self.parts[name].grad, weight.grad = local(weight.grad), None
        gradients = [w.grad for w in self.parts.values() if w.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if any(map(is_split, self.weights.values())):
            norm = norm_over_processes(norm)
        divisor = loss_scale
        if loss_scale is not None:
            norm = norm / loss_scale
        if self.config.clip_grad is not None:
            excess = (norm / self.config.clip_grad).clamp(min=1.0)
            divisor = excess if divisor is None else divisor * excess
        finite = norm.isfinite()
        for (scale, decay), names in self.groups.items():
            moved = [name for name in names if self.parts[name].grad is not None]
            first, second = ([self.moments[moment][name] for name in moved] for moment in MOMENTS)
            adamw(
                [self.parts[name] for name in moved],
                [gradient for name in moved if (gradient := self.parts[name].grad) is not None],
                first,
                second,
                [],
                [self.steps[name] for name in moved],
                fused=True,
                # As torch.amp.GradScaler gives them: the kernel divides by one and does nothing where the other is 1.
                grad_scale=divisor,
                found_inf=(~finite).float(),
                amsgrad=False,
                beta1=self.config.beta1,
                beta2=self.config.beta2,
                lr=lr * scale,
                weight_decay=decay,
                eps=self.config.eps,
                maximize=False,
            )
        for weight in self.parts.values():
            weight.grad = None
        return norm, finite

    @property
    def updates(self) -> Tensor:
        """How many were applied; on the device."""
        return next(iter(self.steps.values()))

    def state(self) -> tuple[dict[str, NDArray[Any]], int]:
        """Moments as `exp_avg.NAME` and `exp_avg_sq.NAME`, and the number of updates applied."""
        tensors = {
            f"{moment}.{name}": array
            for moment in MOMENTS
            for name, weight in self.weights.items()
            if (array := on_host(weight, self.moments[moment][name])) is not None
        }
        return tensors, int(self.updates)

    def load(self, tensors: Mapping[str, NDArray[Any]], updates: int) -> None:
        for name, weight in self.weights.items():
            self.steps[name].fill_(updates)
            for moment in MOMENTS:
                self.moments[moment][name].copy_(part(torch.from_numpy(tensors[f"{moment}.{name}"]), weight))
