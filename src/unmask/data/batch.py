"""What the data path hands to an engine, and what an objective asks of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unmask.config.schema import AugmentConfig, DataConfig
from unmask.data.rng import Op
from unmask.errors import ConfigError

FULL_RANGE = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}
"""For each `data.dtype`, the pixel value that is 1 in `data.mean` and `data.std`; floats are taken as they are."""

Arrays = dict[str, NDArray[Any]]
Draw = Callable[[Op], np.random.Generator]
"""Makes the random numbers of one operation on one view of one image."""


@dataclass(frozen=True)
class Batch:
    """Arrays of one micro-batch of B images; all randomness of the step is already in here.

    Engines draw no random numbers: the mask and the drop-path decisions come with the batch, so that two engines, a
    resumed run and any number of workers see the same ones.
    """

    images: NDArray[Any]
    """(B, H, W, C) uint8, uint16 or float32 as `data.dtype` says, not normalised; (B, V, H, W, C) of V views, see
    `Needs.pictures`."""
    index: NDArray[np.int64]
    """(B,) position of each image in its source."""
    inputs: Mapping[str, NDArray[Any]] = field(default_factory=dict[str, NDArray[Any]])
    """What the network takes beside the images, by the name of the argument, such as `ids_keep`; see `Needs`."""
    labels: NDArray[Any] | None = None
    """(B,) class of each image, int64, or (B, num_classes) True for each of several: what is evaluated against."""
    valid: NDArray[np.bool_] | None = None
    """(B,) False for rows that only fill up the last batch of an evaluation, and for images that cannot be decoded."""
    bad: NDArray[np.int64] | None = None
    """(n,) source positions that could not be decoded and were replaced by others; those of images without labels
    come after the others: the number of these is added."""
    gaps: NDArray[np.float32] | None = None
    """(B,) share of the values of each image that are no data and were filled; None where all are data."""

    def __len__(self) -> int:
        return len(self.images)


def check_shares(batch_size: int, accumulate: int, world: int, augment: AugmentConfig) -> None:
    """Raise ConfigError unless each of `world` processes can take as many rows of each micro-batch."""
    if batch_size % (world * accumulate):
        raise ConfigError(
            f"train.batch_size={batch_size} is not a multiple of {world} processes x train.accumulate={accumulate}"
        )
    if augment.mixes and batch_size // (world * accumulate) % 2:
        raise ConfigError(
            f"mixup and cutmix mix pairs of images, but train.batch_size={batch_size} over {world} processes x "
            f"train.accumulate={accumulate} makes micro-batches of {batch_size // (world * accumulate)}; make them even"
        )


@dataclass(frozen=True)
class ClassTargets:
    """Soft targets (B, num_classes), as `inputs["targets"]`: one-hot, smoothed, mixed and weighted."""

    num_classes: int | None
    class_weights: Literal["balanced"] | tuple[float, ...] | None = None


@dataclass(frozen=True)
class Needs:
    """What the batches of an objective hold beside images. Goes pickled to the loader processes."""

    rows: tuple[Callable[[Draw], Arrays], ...] = ()
    """Each makes inputs of one row (of one view of it) from random numbers of its own."""
    targets: ClassTargets | None = None
    """Soft targets, where the images have labels; None: labels are not looked at."""
    views: int = 1
    """How many differently cropped and augmented views of each image there are."""
    unlabelled: int = 0
    """How many images without labels (`data.unlabelled`) come with each image, each in two views: a strong one, made
    as those of the image are, and a weak one, cropped and flipped alone."""
    valid_pixels: bool = False
    """Whether the loss takes `valid_pixels` (B, H, W, C) bool, False where a value is no data (`data.nodata`) and was
    filled with the mean. A batch in which all is data has no such input."""
    step: Callable[[int, int], Arrays] | None = None
    """Makes inputs of a whole step, the same for all of its micro-batches and processes, from (seed, step)."""

    @property
    def pictures(self) -> int:
        """In a row of a batch: the views of the image, then the strong views of images without labels, in the same
        order their weak views."""
        return self.augmented + self.unlabelled

    @property
    def augmented(self) -> int:
        """Of these all but the weak views: each has inputs of its own."""
        return self.views + self.unlabelled


@dataclass(frozen=True)
class Pixels:
    """How pixels as they are stored become what the network takes: (value / full_range - mean) / std."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    full_range: float
    mirrored: bool = False
    """An image and its mirror image mean the same (`data.flip`)."""

    @classmethod
    def of(cls, data: DataConfig) -> Pixels:
        return cls(data.mean, data.std, FULL_RANGE[data.dtype], data.flip > 0)
