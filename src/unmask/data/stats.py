"""Mean and standard deviation of a set of images: what `data.mean` and `data.std` are set to."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.data.batch import FULL_RANGE
from unmask.data.decode.raster import Range, open_image, read_stored
from unmask.data.sources.base import Source, printable
from unmask.environment import cores
from unmask.errors import DataError, StorageError
from unmask.report.progress import progress

_AHEAD = 4
"""Images that each thread holds in memory."""
_LOOKS = 20
"""Images tried for channels and dtype."""


@dataclass
class Stats:
    """Statistics over all pixels of the whole images, each pixel counting alike."""

    channels: int
    dtype: str
    count: int = 0
    stored: Counter[str] = field(default_factory=Counter[str])
    """How many images there are of each kind, such as `RGB` or `12 x uint16`."""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter[tuple[int, int]])
    """How many images there are of each height and width."""
    bad: list[str] = field(default_factory=list[str])
    """Names of the images left out, and why."""
    mostly_nodata: list[str] = field(default_factory=list[str])
    """Names of the images more than half of which is no data."""
    nodata: int = 0
    """Values that are no data, and so in no figure but this; see `data.nodata`."""
    lowest: float = float("inf")
    highest: float = float("-inf")
    """Of all pixels, as they are stored."""

    def __post_init__(self) -> None:
        self._pixels = [0] * self.channels
        self._mean = np.zeros(self.channels)
        self._squares = np.zeros(self.channels)

    def add(self, mode: str, pixels: NDArray[Any], name: str = "") -> None:
        """Merge one image (H, W, C), masked where it is no data, by the formula of Chan et al. for pairs of sets, in
        float64."""
        height, width = pixels.shape[:2]
        values = pixels.reshape(-1, self.channels).astype(np.float64) / FULL_RANGE[self.dtype]
        counts = [len(values)] * self.channels
        if isinstance(values, np.ma.MaskedArray):
            counts = values.count(0).tolist()
            self.nodata += values.size - sum(counts)
            if sum(counts) < values.size / 2:
                self.mostly_nodata.append(name)
        mean = np.ma.filled(values.mean(0), 0.0)
        squares = np.ma.filled(((values - mean) ** 2).sum(0), 0.0)
        off, totals = mean - self._mean, [before + count for before, count in zip(self._pixels, counts, strict=True)]
        shares = np.array([count / max(1, total) for count, total in zip(counts, totals, strict=True)])
        both = [b * count / max(1, total) for b, count, total in zip(self._pixels, counts, totals, strict=True)]
        self._squares += squares + off**2 * np.array(both)
        self._mean += off * shares
        self._pixels = totals
        self.lowest, self.highest = min(self.lowest, float(pixels.min())), max(self.highest, float(pixels.max()))
        self.count += 1
        self.stored[mode] += 1
        self.sizes[height, width] += 1

    @property
    def mean(self) -> list[float]:
        """Per channel, as `data.mean` wants it."""
        return self._mean.tolist()

    @property
    def std(self) -> list[float]:
        return np.sqrt(self._squares / np.maximum(1, self._pixels)).tolist()


def measure(
    source: Source,
    *,
    channels: int | None,
    dtype: str | None,
    max_pixels: int,
    value_range: Range | None = None,
    nodata: float | None = None,
) -> Stats:
    """Look at every pixel once, with the memory of a few images.

    `channels` and `dtype` default to those of the first image that can be read; `value_range` and `nodata`: see
    `data.range`, `data.nodata`. Raises DataError if none of the first 20 can.
    """
    stats = _start(source, channels, dtype, max_pixels)

    def load(index: int) -> tuple[str, NDArray[Any], str] | str:
        try:
            image = open_image(source.read(index), stats.channels, stats.dtype, max_pixels, value_range, nodata)
            return image.mode, image.pixels(), printable(source.name(index))
        except StorageError:
            raise
        except DataError as error:
            return f"{printable(source.name(index))}: {error}"

    threads = cores()
    with ThreadPoolExecutor(threads) as pool, progress("stats", total=len(source), unit="image") as bar:
        for start in range(0, len(source), threads * _AHEAD):
            indices = range(start, min(start + threads * _AHEAD, len(source)))
            for found in pool.map(load, indices):
                if isinstance(found, str):
                    stats.bad.append(found)
                else:
                    stats.add(*found)
            bar.update(len(indices))
    return stats


def _start(source: Source, channels: int | None, dtype: str | None, max_pixels: int) -> Stats:
    error, looks = "there are no images", min(len(source), _LOOKS)
    for index in range(looks):
        try:
            stored = read_stored(source.read(index), channels, max_pixels)
        except StorageError:
            raise
        except DataError as reason:
            error = f"{printable(source.name(index))}: {reason}"
            continue
        bands = stored.pixels.shape[2]
        if stored.alpha and channels is None:
            bands -= 1
        kind = stored.pixels.dtype.name
        return Stats(channels or bands, dtype or (kind if kind in ("uint8", "uint16") else "float32"))
    raise DataError(f"none of the first {looks} images can be read; {error}")
