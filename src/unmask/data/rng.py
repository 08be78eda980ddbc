"""The one place that makes random generators.

Every random choice derives from (seed, epoch, sample index, operation), where the epoch counts how often the sample was
shown before. So no result depends on the order in which samples are made, or on the number of workers, processes or
restarts.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Op(IntEnum):
    """What a generator is for. The numbers are part of every result: never reuse or change one."""

    ORDER = 1
    """Order of the samples within an epoch."""
    CROP = 2
    """Random resized crop."""
    FLIP = 3
    """Horizontal flip."""
    MASK = 4
    """Patches the encoder sees."""
    DROP_PATH = 5
    """Residual branches that are kept."""
    REPLACE = 6
    """Sample shown in place of one that cannot be decoded."""
    SUBSET = 7
    """Images of a class in a smaller training set."""
    INIT = 8
    """Initial value of a weight; the index is a hash of its name."""
    POLICY = 9
    """Operations of an augmentation policy."""
    JITTER = 10
    """Colour jitter."""
    ERASE = 11
    """Random erasing."""
    MIX = 12
    """Mixup and cutmix; the index is the number of the batch, the pair or the position."""
    DIRECTIONS = 13
    """Directions in which an objective looks at features; the index is the number of the step."""
    SAMPLE = 14
    """Images whose contents are looked at when a run starts; the seed is of their names and sizes."""
    UNLABELLED = 15
    """Order of the images without labels within a pass."""
    DICTIONARY = 16
    """Images, places in them and first words of a dictionary of patches."""


def generator(seed: int, epoch: int, index: int, op: Op, view: int = 0) -> np.random.Generator:
    """Independent stream of random numbers for one operation on one view of one sample of one epoch.

    `view` counts the crops of an image that are shown side by side, as contrastive objectives do.

    Philox is a cipher over (key, counter): streams of different arguments never overlap, and making one costs
    microseconds. The lowest word of the counter leaves 2**64 blocks to each stream.
    """
    return np.random.Generator(np.random.Philox(key=(seed, op), counter=(0, view, index, epoch)))
