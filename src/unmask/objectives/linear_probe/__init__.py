"""The published linear probe: a head behind a BatchNorm without affine, on a frozen encoder (MAE appendix A.1)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.config.schema import Config, ObjectiveSection, OptimizerConfig
from unmask.models.parameters import Shapes, Tensors
from unmask.objectives.classify import Classification, ClassifySection, LabelledSection

EPS = 1e-6
"""Of the BatchNorm."""


class LinearProbeSection(LabelledSection):
    name: str = "linear_probe"

    def check(self, config: Config) -> None:
        super().check(config)
        if config.train.ema_decay or config.model.drop_path:
            raise ValueError("objective.name=linear_probe goes without train.ema_decay and model.drop_path")


class LinearProbe(Classification):
    Section = LinearProbeSection
    engine_around = "unmask.engines.linear_probe:LinearProbeEngine"

    def buffers(self) -> Shapes:
        """Statistics of the BatchNorm."""
        return {f"head_norm.running_{what}": (self.model.feature_width,) for what in ("mean", "var")}

    def first_value(self, name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
        """As the official code: the head's weights are normal, std 0.01."""
        value = super().first_value(name, shape, seed)
        return np.float32(0.5) * value if name == "head.weight" else value

    def is_trained(self, name: str, optimizer: OptimizerConfig) -> bool:
        return name.startswith("head.")

    def finished(self, weights: Tensors, buffers: Tensors) -> tuple[Tensors, ObjectiveSection]:
        """A plain classifier: the BatchNorm becomes part of the head."""
        tensors = weights | buffers  # earlier versions had the statistics among the weights
        mean, var = tensors.pop("head_norm.running_mean"), tensors.pop("head_norm.running_var")
        return without_norm(tensors, mean, var), ClassifySection()


def without_norm(weights: Tensors, mean: NDArray[Any], var: NDArray[Any]) -> Tensors:
    """The same classifier without the BatchNorm before its head, whose statistics (width,) are given."""
    weight = (weights["head.weight"] / np.sqrt(var + EPS)).astype(np.float32)
    bias = (weights["head.bias"] - weight @ mean).astype(np.float32)
    return weights | {"head.weight": weight, "head.bias": bias}
