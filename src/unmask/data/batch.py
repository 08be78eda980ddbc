"""What the data path hands to an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FULL_RANGE = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}
"""For each `data.dtype`, the pixel value that is 1 in `data.mean` and `data.std`; floats are taken as they are."""


@dataclass(frozen=True)
class Batch:
    """Arrays of one micro-batch. B images, L patches each; all randomness of the step is already in here.

    Engines draw no random numbers: the mask and the drop-path decisions come with the batch, so that two engines, a
    resumed run and any number of workers see the same ones.
    """

    images: NDArray[Any]
    """(B, H, W, C) uint8, uint16 or float32 as `data.dtype` says, not normalised."""
    index: NDArray[np.int64]
    """(B,) position of each image in its source."""
    ids_keep: NDArray[np.int32] | None = None
    """(B, K) patches the encoder sees, ascending. Pretraining only."""
    ids_mask: NDArray[np.int32] | None = None
    """(B, L - K) patches to reconstruct, ascending. Pretraining only."""
    labels: NDArray[Any] | None = None
    """(B,) class of each image, int64, or (B, num_classes) True for each of several: what is evaluated against."""
    targets: NDArray[np.float32] | None = None
    """(B, num_classes) what the training loss compares with: one-hot, smoothed and mixed. Fine-tuning only."""
    keep_path: NDArray[np.bool_] | None = None
    """(B, depth, 2) whether the attention and MLP branch of each block is kept. Fine-tuning with drop path only."""
    valid: NDArray[np.bool_] | None = None
    """(B,) False for rows that only fill up the last batch of an evaluation."""
    bad: NDArray[np.int64] | None = None
    """(n,) source positions that could not be decoded and were replaced by others."""

    def __len__(self) -> int:
        return len(self.images)
