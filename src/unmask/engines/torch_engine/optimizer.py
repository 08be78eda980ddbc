"""AdamW with decay groups and layer-wise learning rates, its state exchanged under the weights' names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unmask.config.schema import OptimizerConfig
from unmask.engines.torch_engine.parallel import is_split, local, norm_over_processes, on_host, part
from unmask.schedules import is_decayed, layer_scale

MOMENTS = ("exp_avg", "exp_avg_sq")


class Optimizer:
    """Fused AdamW over the trained weights. Unscaling, clipping and the skip of a bad update cost no pass of their own.

    `update` never waits for the device: whether the gradient is finite is decided inside the fused kernel.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], depth: int, config: OptimizerConfig) -> None:
        self.weights = dict(weights)
        # Where a weight is split over processes (a DTensor), the share that is here: the kernel takes plain tensors.
        self.parts = {n: nn.Parameter(local(w.detach())) if is_split(w) else w for n, w in self.weights.items()}
        self.clip_grad = config.clip_grad
        groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
        for name, weight in self.weights.items():
            decay = config.weight_decay if is_decayed(name, tuple(weight.shape)) else 0.0
            groups[layer_scale(name, depth, config.layer_decay), decay].append(self.parts[name])
        self.adamw = torch.optim.AdamW(
            [{"params": params, "scale": scale, "weight_decay": decay} for (scale, decay), params in groups.items()],
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=True,
        )
        device = next(iter(self.parts.values())).device
        self.steps = torch.zeros((), device=device)
        for weight in self.parts.values():
            # As the first step would create it; made now so that loading and saving need no special case.
            self.adamw.state[weight] = {"step": self.steps.clone()} | {m: torch.zeros_like(weight) for m in MOMENTS}

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
        if self.clip_grad is not None:
            excess = (norm / self.clip_grad).clamp(min=1.0)
            divisor = excess if divisor is None else divisor * excess
        finite = norm.isfinite()
        # The attributes torch.amp.GradScaler sets: the kernel divides by one and does nothing where the other is 1.
        self.adamw.grad_scale = divisor  # pyright: ignore[reportAttributeAccessIssue]
        self.adamw.found_inf = (~finite).float()  # pyright: ignore[reportAttributeAccessIssue]
        for group in self.adamw.param_groups:
            group["lr"] = lr * group["scale"]
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        return norm, finite

    @property
    def updates(self) -> Tensor:
        """How many were applied; on the device."""
        return self.adamw.state[next(iter(self.parts.values()))]["step"]

    def state(self) -> tuple[dict[str, NDArray[Any]], int]:
        """Moments as `exp_avg.NAME` and `exp_avg_sq.NAME`, and the number of updates applied."""
        tensors = {
            f"{moment}.{name}": array
            for moment in MOMENTS
            for name, weight in self.weights.items()
            if (array := on_host(weight, self.adamw.state[self.parts[name]][moment])) is not None
        }
        return tensors, int(self.updates)

    def load(self, tensors: Mapping[str, NDArray[Any]], updates: int) -> None:
        for name, weight in self.weights.items():
            state = self.adamw.state[self.parts[name]]
            state["step"].fill_(updates)
            for moment in MOMENTS:
                state[moment].copy_(part(torch.from_numpy(tensors[f"{moment}.{name}"]), weight))
