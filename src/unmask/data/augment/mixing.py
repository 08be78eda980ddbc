"""Soft targets: label smoothing, mixup (Zhang et al. 2017) and cutmix (Yun et al. 2019) with timm's definitions.

An image is mixed with its neighbour in the stream of samples: position p with p ^ 1. Random draws are keyed by the
number of the batch, pair or image in that stream, so results do not depend on workers, processes or accumulation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.config.schema import AugmentConfig
from unmask.data.rng import Op, generator

Mix = tuple[float, tuple[slice, slice] | None]
"""Share of the image itself, and for cutmix the rows and columns that come from the other one."""


def class_targets(labels: NDArray[Any], num_classes: int, smoothing: float) -> NDArray[np.float32]:
    """Smoothed targets (B, num_classes).

    `labels` (B,) become one-hot rows, with the share `smoothing` of each spread over all classes. `labels` (B,
    num_classes), 0 or 1 for several classes per image, are each moved towards 0.5 by that share.
    """
    if labels.ndim == 2:
        return (labels * (1 - smoothing) + smoothing / 2).astype(np.float32)
    targets = np.full((len(labels), num_classes), smoothing / num_classes, np.float32)
    targets[np.arange(len(labels)), labels] += 1 - smoothing
    return targets


def smoothed(probabilities: NDArray[np.float32], smoothing: float) -> NDArray[np.float32]:
    """(B, classes), the share `smoothing` of each row spread over all classes."""
    return probabilities * np.float32(1 - smoothing) + np.float32(smoothing / probabilities.shape[1])


@dataclass(frozen=True)
class Mixing:
    """Mixup and cutmix of consecutive samples."""

    augment: AugmentConfig
    seed: int
    batch_size: int
    """Images of a step, over all processes."""

    def __call__(self, positions: range, images: NDArray[Any], targets: NDArray[np.float32]) -> None:
        """Mix `images` (B, H, W, C) and `targets` (B, classes) in place; `positions` are whole pairs (even, odd)."""
        size = images.shape[1], images.shape[2]
        for row in range(0, len(positions), 2):
            mixes = [self.draw(position, size) for position in positions[row : row + 2]]
            mix_pair(images[row : row + 2], targets[row : row + 2], mixes)

    def draw(self, position: int, size: tuple[int, int]) -> Mix:
        """What happens to the image (of `size` height, width) at a position."""
        augment = self.augment
        rng = generator(self.seed, 0, self._number(position), Op.MIX)
        if rng.random() >= augment.mix_prob:
            return 1.0, None
        cut = augment.cuts and (not augment.mixup or rng.random() < augment.mix_switch_prob)
        if not cut:
            return rng.beta(augment.mixup, augment.mixup), None
        if augment.cutmix_minmax is not None:
            box = _box_between(rng, size, augment.cutmix_minmax)
        else:
            box = _box_of_area(rng, size, 1 - rng.beta(augment.cutmix, augment.cutmix))
        rows, columns = box
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        return 1 - area / (size[0] * size[1]), box

    def _number(self, position: int) -> int:
        return position // {"batch": self.batch_size, "pair": 2, "elem": 1}[self.augment.mix_mode]


def mix_pair(images: NDArray[Any], targets: NDArray[np.float32], mixes: list[Mix]) -> None:
    """Mix two images (2, H, W, C) and their targets (2, classes) with one another, in place."""
    before, wanted = images.copy(), targets.copy()
    for i, (share, box) in enumerate(mixes):
        if box is not None:
            images[i][box] = before[1 - i][box]
        elif share < 1:
            images[i] = _blend(before[i], before[1 - i], share)
        targets[i] = share * wanted[i] + (1 - share) * wanted[1 - i]


def _blend(image: NDArray[Any], other: NDArray[Any], share: float) -> NDArray[Any]:
    mixed = image.astype(np.float32)  # the one large array: fresh memory costs more than the arithmetic
    mixed -= other
    mixed *= share
    mixed += other
    if image.dtype.kind == "u":
        np.rint(mixed, out=mixed)
    return mixed.astype(image.dtype, copy=False)


def _box_of_area(rng: np.random.Generator, size: tuple[int, int], share: float) -> tuple[slice, slice]:
    """A box of the image's shape and `share` of its area around a uniform centre, cut off at the borders."""
    sides = [int(side * math.sqrt(share)) for side in size]
    centres = [int(rng.integers(side)) for side in size]
    first, second = (
        slice(max(0, centre - side // 2), min(whole, centre + (side + 1) // 2))
        for centre, side, whole in zip(centres, sides, size, strict=True)
    )
    return first, second


def _box_between(rng: np.random.Generator, size: tuple[int, int], minmax: tuple[float, float]) -> tuple[slice, slice]:
    """A box within the image; each side is a share of the image's, uniform in `minmax`."""
    ranges = [(int(side * minmax[0]), int(side * minmax[1])) for side in size]
    sides = [int(rng.integers(low, max(low + 1, high))) for low, high in ranges]
    starts = [int(rng.integers(whole - side + 1)) for whole, side in zip(size, sides, strict=True)]
    first, second = (slice(start, start + side) for start, side in zip(starts, sides, strict=True))
    return first, second
