"""The published linear probe: a head behind a BatchNorm without affine, on a frozen encoder (MAE appendix A.1)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from unmask.config.schema import Config, OptimizerConfig
from unmask.models.parameters import Shapes
from unmask.objectives.classify import Classification, LabelledSection

EPS = 1e-6
"""Of the BatchNorm."""


class LinearProbeSection(LabelledSection):
    name: Literal["linear_probe"] = "linear_probe"

    def check(self, config: Config) -> None:
        super().check(config)
        if config.train.ema_decay or config.model.drop_path:
            raise ValueError("objective.name=linear_probe goes without train.ema_decay and model.drop_path")


class LinearProbe(Classification):
    Section = LinearProbeSection
    engine_around = "unmask.engines.linear_probe:LinearProbeEngine"

    def buffers(self) -> Shapes:
        """Statistics of the BatchNorm."""
        return {f"head_norm.running_{what}": (self.model.width,) for what in ("mean", "var")}

    def first_value(self, name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
        """As the official code: the head's weights are normal, std 0.01."""
        value = super().first_value(name, shape, seed)
        return 500 * value if name == "head.weight" else value

    def is_trained(self, name: str, optimizer: OptimizerConfig) -> bool:
        return name.startswith("head.")


def fold_head_norm(weights: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """A trained linear probe as a plain classifier: its BatchNorm becomes part of the head. Others stay as they are."""
    if "head_norm.running_mean" not in weights:
        return weights
    mean, var = weights["head_norm.running_mean"], weights["head_norm.running_var"]
    weight = (weights["head.weight"] / np.sqrt(var + EPS)).astype(np.float32)
    bias = (weights["head.bias"] - weight @ mean).astype(np.float32)
    plain = {name: tensor for name, tensor in weights.items() if not name.startswith("head_norm.")}
    return plain | {"head.weight": weight, "head.bias": bias}
