"""What features by hand are made of, for those who compute them: `unmask.evaluate.handmade`, which tells what they are,
and the twins in this folder, which are part of a network.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from unmask.config.schema import ModelConfig
from unmask.models.parameters import Shapes, Tensors, linear_shapes

PREFIX = "handmade."
"""Of the names of weights."""
SIDE = 32
"""Pixels of the longer side, at most."""
ORIENTATIONS, CELLS, FIELDS = 9, 8, 4
LEVELS = 4
"""Of each channel, in the histogram of colours; of more than three channels there is none."""
ROUNDING = 1e-4
"""Added to a level, so that a value at the edge of two is in the upper one, however it was rounded."""
CLIP = 0.2
"""Of a normalised block: no single gradient outweighs the others (Lowe's L2-Hys)."""
EPS = 1e-6
PATCH, WORDS, PARTS = 6, 400, 3
"""Of the dictionary: pixels of a patch's side, words, and fields down and across."""
CONTRAST = 10 / 255**2
"""Added to the variance of a patch, of values in 0..1: what is nearly flat stays so."""


def size_of(model: ModelConfig) -> tuple[int, int]:
    """Height and width at which images are looked at: in the same proportions, no larger than SIDE."""
    height, width = model.image_size
    share = min(1.0, SIDE / max(height, width))
    return max(1, round(share * height)), max(1, round(share * width))


def widths(model: ModelConfig) -> tuple[int, ...]:
    """How many features there are of each kind."""
    colours = LEVELS**model.channels if model.channels <= 3 else 0
    kinds = (CELLS - 1) ** 2 * 4 * ORIENTATIONS, 2 * FIELDS**2 * model.channels + colours
    return (*kinds, PARTS**2 * WORDS) if has_dictionary(size_of(model)) else kinds


def has_dictionary(size: tuple[int, int]) -> bool:
    """Whether images are large enough for one."""
    return min(size) >= PATCH + PARTS - 1


def handmade_shapes(model: ModelConfig, classes: int) -> Shapes:
    """Of a linear classifier on these features, as a part of a network."""
    words: Shapes = {}
    if has_dictionary(size_of(model)):
        words = {f"{PREFIX}filters": (WORDS, model.channels, PATCH, PATCH), f"{PREFIX}threshold": (WORDS,)}
    return words | linear_shapes(f"{PREFIX}head", sum(widths(model)), classes)


def without_handmade(weights: Tensors) -> Tensors:
    """The network alone."""
    return {name: tensor for name, tensor in weights.items() if not name.startswith(PREFIX)}


@cache
def resampling(after: int, before: int) -> NDArray[np.float32]:
    """(after, before): cubic interpolation (a = -1/2) of a row of pixels, as wide as what a pixel of fewer covers.

    As Pillow does it: means of what a pixel covers would blur gradients, which costs a point or two (docs/log.md).
    """
    scale = max(before / after, 1.0)
    centre = (np.arange(after)[:, None] + 0.5) * before / after
    x = np.abs(np.arange(before) + 0.5 - centre) / scale
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


@cache
def shares(parts: int, size: int) -> NDArray[np.float32]:
    """(parts, size): how much of each of `size` places in a row each of `parts` equal parts has, in all 1."""
    edges = np.arange(parts + 1) * size / parts
    place = np.arange(size)
    overlap = np.minimum(edges[1:, None], place + 1) - np.maximum(edges[:-1, None], place)
    return (np.maximum(overlap, 0) * parts / size).astype(np.float32)
