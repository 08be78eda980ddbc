"""Mean and standard deviation of a set of images: what `data.mean` and `data.std` are set to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.data.batch import FULL_RANGE
from unmask.data.decode.convert import Range
from unmask.data.decode.picture import Picture, Stored, frames
from unmask.data.decode.raster import Raster, open_image, read_stored
from unmask.data.parts import Parts, Share, ends_of
from unmask.data.sources import files
from unmask.data.sources.base import Source, printable
from unmask.environment import cores
from unmask.errors import ConfigError, DataError, StorageError, UnmaskError
from unmask.files import cause
from unmask.report.progress import Bar, progress, say

_AHEAD = 4
"""Images that each thread holds in memory."""
_LOOKS = 20
"""Images tried for channels and dtype."""
_BLOCK = 2**22
"""Values of an image that are taken as float64 at a time: the largest image takes no more memory for it."""
_PART = 64
"""Images in a part, or more."""
_FORMAT = "unmask stats"
_KNOWN = ("channels", "dtype", "count", "bad", "mostly_nodata", "nodata", "lowest", "highest")
_COUNTS = ("stored", "heights", "widths")


@dataclass
class Stats:
    """Statistics over all pixels of the whole images, each pixel counting alike."""

    channels: int
    dtype: str
    count: int = 0
    stored: Counter[str] = field(default_factory=Counter[str])
    """How many images there are of each kind, such as `RGB` or `12 x uint16`."""
    heights: Counter[int] = field(default_factory=Counter[int])
    widths: Counter[int] = field(default_factory=Counter[int])
    """How many images there are of each."""
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
        rows, missing = max(1, _BLOCK // (width * self.channels)), 0
        for start in range(0, height, rows):
            values = pixels[start : start + rows].reshape(-1, self.channels).astype(np.float64) / FULL_RANGE[self.dtype]
            counts = [len(values)] * self.channels
            if isinstance(values, np.ma.MaskedArray):
                counts = values.count(0).tolist()
                missing += values.size - sum(counts)
            mean = np.ma.filled(values.mean(0), 0.0)
            self._merge(counts, mean, np.ma.filled(((values - mean) ** 2).sum(0), 0.0))
        self.nodata += missing
        if missing > pixels.size / 2:
            self.mostly_nodata.append(name)
        self.lowest, self.highest = min(self.lowest, float(pixels.min())), max(self.highest, float(pixels.max()))
        self.count += 1
        self.stored[mode] += 1
        self.heights[height] += 1
        self.widths[width] += 1

    def merge(self, other: Stats) -> None:
        """Take in other images."""
        if other.count:
            self._merge(other._pixels, other._mean, other._squares)
        self.lowest, self.highest = min(self.lowest, other.lowest), max(self.highest, other.highest)
        self.count += other.count
        self.stored += other.stored
        self.heights += other.heights
        self.widths += other.widths
        self.bad += other.bad
        self.mostly_nodata += other.mostly_nodata
        self.nodata += other.nodata

    def _merge(self, pixels: list[int], mean: NDArray[np.float64], squares: NDArray[np.float64]) -> None:
        """`pixels` of each channel."""
        off, counts = mean - self._mean, list(zip(self._pixels, pixels, strict=True))
        self._squares += squares + off**2 * np.array([old * new / max(1, old + new) for old, new in counts])
        self._mean += off * np.array([new / max(1, old + new) for old, new in counts])
        self._pixels = [old + new for old, new in counts]

    def facts(self) -> dict[str, Any]:
        """All of it, as JSON holds it, every number to the last bit."""
        known = {name: getattr(self, name) for name in _KNOWN}
        counts = {name: sorted(getattr(self, name).items()) for name in _COUNTS}
        return {
            **known,
            **counts,
            "pixels": self._pixels,
            "mean": self._mean.tolist(),
            "squares": self._squares.tolist(),
        }

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Stats:
        stats = cls(facts["channels"], facts["dtype"])
        for name in _KNOWN:
            setattr(stats, name, facts[name])
        for name in _COUNTS:
            setattr(stats, name, Counter(dict(facts[name])))
        stats._pixels = facts["pixels"]
        stats._mean, stats._squares = np.array(facts["mean"]), np.array(facts["squares"])
        return stats

    @property
    def mean(self) -> list[float]:
        """Per channel, as `data.mean` wants it."""
        return self._mean.tolist()

    @property
    def std(self) -> list[float]:
        return np.sqrt(self._squares / np.maximum(1, self._pixels)).tolist()

    @property
    def nodata_share(self) -> float:
        """Of all values."""
        return self.nodata / max(1, self.nodata + sum(self._pixels))


def measure(
    source: Source,
    *,
    channels: int | None,
    dtype: str | None,
    max_pixels: int,
    value_range: Range | None = None,
    nodata: float | None = None,
    frame: int | None = None,
    out: str | None = None,
    share: str | None = None,
) -> Stats | None:
    """Look at every pixel once, with the memory of a few images; None while parts of other shares are missing.

    `channels` and `dtype` default to those of the first image that can be read; `value_range`, `nodata` and `frame`:
    see `data.range` and so on. `out`: a JSON file for the result, beside which the parts are kept until all are there;
    `share` needs it, see `unmask.write_embeddings`. Images are added part by part, so the result is the same to the
    last bit for any number of shares. Raises DataError if none of the first 20 can be read.
    """
    first = _start(source, channels, dtype, partial(read_stored, max_pixels=max_pixels, nodata=nodata, frame=frame))
    look = partial(open_image, max_pixels=max_pixels, value_range=value_range, nodata=nodata, frame=frame)
    ends = ends_of(len(source), _PART, batches=1)
    if out is None:
        if Share.of(share).count > 1:
            raise ConfigError("of several processes none sees all images; give --out FILE.json")
        with progress("stats", total=len(source), unit="image") as bar:
            stats = Stats(first.channels, first.dtype)
            for start, stop in zip([0, *ends], ends, strict=False):
                stats.merge(_measure(source, range(start, stop), first, look, bar))
        return stats
    limits = {"range": value_range and list(value_range), "nodata": nodata, "max_pixels": max_pixels, "frame": frame}
    settings = {"channels": first.channels, "dtype": first.dtype, **limits}
    job = {"settings": settings, "source": {"images": len(source), "fingerprint": source.fingerprint()}}
    out = files.absolute(out)
    parts = Parts(f"{out}.partial", job, Share.of(share), place=out)
    if (known := _result(out)) is not None:
        parts.check_job(known)
        say(f"{out} is complete")
        return Stats.of(known["stats"])
    if files.exists(out):
        raise ConfigError(f"{out} is there already, and no result of `unmask stats`; name another, or remove it")
    try:
        with parts.begun(lambda: ends):
            todo = parts.todo()
            if done := parts.images_done():
                say(f"stats: {done} of {len(source)} images are done already")
            with progress("stats", total=sum(len(parts.span(number)) for number in todo), unit="image") as bar:
                for number in todo:
                    found = _measure(source, parts.span(number), first, look, bar)
                    parts.record(number, found.facts())
            if parts.missing():
                parts.say_missing()
                return None
            stats = Stats(first.channels, first.dtype)
            with parts.completing(lambda: _result(out) is not None):
                for record in parts.records():
                    stats.merge(Stats.of(record))
                parts.write_json(
                    out, {"format": _FORMAT, "version": 1, **job, **_summary(stats), "stats": stats.facts()}
                )
                parts.forget()
            return stats
    except OSError as error:
        raise UnmaskError(f"cannot write {out}: {cause(error)}; what is done so far is kept") from error


def _summary(stats: Stats) -> dict[str, Any]:
    return {"mean": stats.mean, "std": stats.std, "count": stats.count, "bad": len(stats.bad)}


def _result(out: str) -> dict[str, Any] | None:
    if not files.exists(out):
        return None
    try:
        known: Any = json.loads(files.read(out))
        Stats.of(known["stats"])
    except (ValueError, RecursionError, LookupError, TypeError):
        return None
    return known if known.get("format") == _FORMAT else None


def _measure(source: Source, span: range, first: Stats, look: Callable[..., Picture | Raster], bar: Bar) -> Stats:
    """Of the images in a span, of the kind of `first`, in order; `look(data, channels, dtype)` opens one."""
    stats = Stats(first.channels, first.dtype)

    def load(index: int) -> tuple[str, NDArray[Any], str] | str:
        try:
            data = source.read(index)
            image = look(data, stats.channels, stats.dtype)
            alone = frames(data) in (1, stats.channels if isinstance(image, Raster) else 1)  # pages may be the channels
            mode = image.mode if alone else f"{image.mode} (the first of several)"
            return mode, image.pixels(), printable(source.name(index))
        except StorageError:
            raise
        except DataError as error:
            return f"{printable(source.name(index))}: {error}"

    threads = cores()
    with ThreadPoolExecutor(threads) as pool:
        for start in range(span.start, span.stop, threads * _AHEAD):
            indices = range(start, min(start + threads * _AHEAD, span.stop))
            for found in pool.map(load, indices):
                if isinstance(found, str):
                    stats.bad.append(found)
                else:
                    stats.add(*found)
            bar.update(len(indices))
    return stats


def _start(source: Source, channels: int | None, dtype: str | None, read: Callable[..., Stored]) -> Stats:
    """Channels and dtype as given, else those of the first image that `read(data, channels)` can read."""
    error, looks = "there are no images", min(len(source), _LOOKS)
    for index in range(looks):
        try:
            stored = read(source.read(index), channels)
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
