"""Soft targets of the training loss."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def class_targets(labels: NDArray[np.int64], num_classes: int, smoothing: float) -> NDArray[np.float32]:
    """One-hot rows (B, num_classes) of the labels (B,), the share `smoothing` of each spread over all classes."""
    targets = np.full((len(labels), num_classes), smoothing / num_classes, np.float32)
    targets[np.arange(len(labels)), labels] += 1 - smoothing
    return targets
