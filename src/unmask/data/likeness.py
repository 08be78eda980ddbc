"""Which images look alike: a difference hash of each (Krawetz 2013, "Kind of Like That"), and a search for near ones.

Of an image in grey at 17 x 16 pixels, each bit says whether a pixel is brighter than the one to its left: 256 bits,
which re-encoding, resizing and changes of contrast hardly move. On flat ground, as of digits, drawings and X-rays, most
bits are the same for all; so what is near must also agree in its grey levels. Copies that are flipped, turned or
cropped are not found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unmask.data.decode.convert import Range
from unmask.data.decode.dicom import is_dicom
from unmask.data.decode.picture import Picture
from unmask.data.decode.raster import open_image, read_stored

BITS = 256
NEAR = 12
"""Bits that may differ between two pictures of the same: docs/log.md, "Which images are alike"."""
AGREE = 0.985
"""Least correlation of the grey levels of two pictures of the same: the same entry."""
SIDE = 64
"""Pixels of the square at which an image is looked at."""
_LEVELS = 255.0
"""Of an image of 8 bits, from black to white."""
_FEWEST = 16.0
"""Levels from black to white in an image of more bits, which seldom fills them."""
_ROUNDED = 1e-4
"""Of a floating level: one of a hundredth of this is float32 rounded."""
_BANDS = NEAR + 1
"""Hashes that differ in NEAR bits agree in at least one of so many parts."""
_MOST_ALIKE = 1000
"""Hashes that agree in a part; of more, which are patterns of blank pictures, only neighbours are compared."""

_PAIRS = 512
"""Compared by their grey levels at a time."""

_ONES = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)

Hashes = NDArray[np.uint8]
"""(N, BITS / 8) packed bits."""


@dataclass(frozen=True)
class Look:
    """At one image."""

    size: tuple[int, int]
    """Height, width."""
    levels: NDArray[np.float32]
    """(SIDE, SIDE) of grey, as they are stored; with a `data.range` in 0..1."""
    least: float
    """A picture's darkest and brightest level lie this far apart, or further: else it may be noise that differs."""
    nodata: float = 0.0
    """Share of the values that are no data; the mean of the others stands for them."""

    @property
    def grey(self) -> NDArray[np.float32]:
        """`levels` in 0..1: of 8 bits and in a `data.range` from black to white, of others, which need not fill what
        they could be, from the darkest to the brightest."""
        low, high = float(self.levels.min()), float(self.levels.max())
        scale = max(high - low, self.least, 1e-30)
        return ((self.levels - max(high - scale, min(low, 0.0))) / scale).astype(np.float32)


def look(
    data: bytes | NDArray[np.uint8],
    max_pixels: int,
    nodata: float | None = None,
    frame: int | None = None,
    value_range: Range | None = None,
) -> Look:
    """`nodata`, `frame` and `value_range`: see `data.nodata`, `data.frame`, `data.range`. Raises DecodeError."""
    if isinstance(data, np.ndarray):
        plain = data.dtype == np.uint8 and data.shape[-1] in (1, 3)
    else:
        plain = not data.startswith((b"\x93NUMPY", b"II", b"MM")) and not is_dicom(data)
    if plain and nodata is None and value_range is None:
        picture = open_image(data, 1, "uint8", max_pixels)
        whole = (0, 0, picture.width, picture.height)
        if isinstance(picture, Picture) and not picture.mode.startswith("I"):  # else of 16 bits
            grey = picture.crop(whole, (SIDE, SIDE), Image.Resampling.BOX)
            return Look((picture.height, picture.width), grey[:, :, 0].astype(np.float32), _LEVELS)
    stored = read_stored(data, None, max_pixels, nodata, frame, shown=value_range is None)
    pixels, missing = stored.pixels, 0.0
    if stored.valid is not None:
        valid = np.broadcast_to(stored.valid, pixels.shape)
        pixels, missing = np.where(valid, pixels, pixels[valid].mean().astype(pixels.dtype)), 1 - valid.mean()
    height, width, _ = pixels.shape
    values = pixels.astype(np.float64)
    if value_range is not None:
        values = ((values - value_range[0]) / (value_range[1] - value_range[0])).clip(0, 1)
    grey = Image.fromarray(values.mean(2).astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BOX)
    levels = np.asarray(grey)
    if value_range is not None:
        least = 1.0
    elif pixels.dtype.kind == "f":
        least = _ROUNDED * float(np.abs(levels).max())
    else:
        least = _LEVELS if pixels.dtype == np.uint8 else _FEWEST
    return Look((height, width), levels, least, float(missing))


def hash_of(grey: NDArray[np.float32]) -> Hashes:
    """(BITS / 8,) of grey levels (SIDE, SIDE)."""
    small = np.asarray(Image.fromarray(grey).resize((17, 16), Image.Resampling.BOX))
    return np.packbits(small[:, 1:] > small[:, :-1])


def thumb_of(grey: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(256,) grey levels at 16 x 16 pixels, of those at (SIDE, SIDE)."""
    small = np.asarray(Image.fromarray(grey).resize((16, 16), Image.Resampling.BOX))
    return np.rint(255 * small).astype(np.uint8).ravel()


def alike_pairs(hashes: Hashes, thumbs: Callable[[NDArray[np.int64]], NDArray[np.uint8]]) -> NDArray[np.int64]:
    """`near_pairs` whose thumbs agree; `thumbs` gives those of some rows, (n, 256), which need not all be in memory."""
    pairs = near_pairs(hashes)
    agree = [_agree(thumbs, pairs[start : start + _PAIRS]) for start in range(0, len(pairs), _PAIRS)]
    return pairs[np.concatenate(agree)] if agree else pairs


def _agree(thumbs: Callable[[NDArray[np.int64]], NDArray[np.uint8]], pairs: NDArray[np.int64]) -> NDArray[np.bool_]:
    first, second = thumbs(pairs[:, 0]).astype(np.float64), thumbs(pairs[:, 1]).astype(np.float64)
    first, second = first - first.mean(1, keepdims=True), second - second.mean(1, keepdims=True)
    scale = np.sqrt((first**2).sum(1) * (second**2).sum(1))
    return (first * second).sum(1) >= AGREE * np.maximum(scale, 1e-9)


def near_pairs(hashes: Hashes) -> NDArray[np.int64]:
    """(P, 2) pairs of rows, the first below the second, that differ in at most NEAR bits; sorted.

    Rows are compared that agree in one of NEAR + 1 parts of their bits, as each such pair must.
    """
    count, found = max(len(hashes), 1), np.zeros(0, np.int64)  # a pair as one number
    edges = np.linspace(0, BITS, _BANDS + 1).round().astype(int)
    for start, stop in pairwise(edges.tolist()):
        first = start // 8
        bits = np.unpackbits(hashes[:, first : -(-stop // 8)], axis=1)
        part = np.packbits(bits[:, start - 8 * first : stop - 8 * first], axis=1)
        near = [pairs @ (count, 1) for group in _equal(part) for pairs in _near_within(hashes, group)]
        found = np.unique(np.concatenate([found, *near]))
    return np.stack(np.divmod(found, count), 1)


def _equal(part: Hashes) -> Iterator[NDArray[np.int64]]:
    """Groups of two or more rows that are the same, each in order."""
    order = np.lexsort(part.T[::-1])
    rows = part[order]
    return same_groups(order, (rows[1:] != rows[:-1]).any(1))


def same_groups(order: NDArray[np.int64], differs: NDArray[np.bool_]) -> Iterator[NDArray[np.int64]]:
    """The groups of two or more rows that are the same, each sorted, of rows (N,) in an order that puts them together.

    `differs` (N - 1,): whether each but the first is another than the one before. Nothing is made for rows that are
    alone, as most are.
    """
    starts = np.flatnonzero(np.concatenate([[True], differs])) if len(order) else np.zeros(0, np.int64)
    sizes = np.diff(starts, append=len(order))
    for start, size in zip(starts[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
        yield np.sort(order[start : start + size])


def _near_within(hashes: Hashes, group: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    reach = len(group) if len(group) <= _MOST_ALIKE else 2
    for step in range(1, reach):
        first, second = group[:-step], group[step:]
        near = _ONES[hashes[first] ^ hashes[second]].sum(1, dtype=np.int64) <= NEAR
        yield np.stack([first[near], second[near]], 1)


def groups_of(pairs: NDArray[np.int64], count: int) -> list[NDArray[np.int64]]:
    """Sets of two or more of `count` rows that pairs connect, each in order."""
    root = np.arange(count)
    while len(pairs):  # each pass takes the lower of the two; few are needed
        low = np.minimum(root[pairs[:, 0]], root[pairs[:, 1]])
        before = root.copy()
        np.minimum.at(root, pairs[:, 0], low)
        np.minimum.at(root, pairs[:, 1], low)
        root = root[root]
        if (root == before).all():
            break
    order = np.argsort(root, kind="stable")
    return list(same_groups(order, np.diff(root[order]) != 0))
