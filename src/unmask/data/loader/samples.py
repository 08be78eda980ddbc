"""From positions in the stream of samples to the arrays of a batch.

Everything here is a pure function of the configuration and the position, computed in threads or loader processes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.config.schema import AugmentConfig, DataConfig, ModelConfig
from unmask.data.augment.crop import RESAMPLING, Augmentation, center_crop, random_resized_crop_box
from unmask.data.augment.mixing import Mixing, class_targets, smoothed
from unmask.data.batch import FULL_RANGE, Arrays, ClassTargets, Needs
from unmask.data.decode.convert import to_dtype
from unmask.data.decode.picture import Picture
from unmask.data.decode.raster import Raster, open_image
from unmask.data.loader.order import sample_at, unlabelled_at
from unmask.data.rng import Op, generator
from unmask.data.sources.base import Source, printable
from unmask.data.sources.taught import TaughtSource
from unmask.errors import ConfigError, DataError, StorageError

_REPLACEMENTS = 20
"""Samples tried in place of a bad one before the data as a whole counts as unusable."""
_STRONG, _WEAK = 1 << 32, (1 << 32) + 1
"""Numbers of the views of images without labels: others than those of any image with."""


class _ValidPixels:
    """Where the images of a part are data; no array, unless one of them is not all data."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self.array: NDArray[np.bool_] | None = None

    def put(self, place: tuple[int, ...], valid: NDArray[np.bool_] | None) -> None:
        if self.array is None and valid is not None:
            self.array = np.ones(self._shape, bool)
        if self.array is not None:
            self.array[place] = True if valid is None else valid

    def arrays(self, *, as_input: bool) -> Arrays:
        """`gaps`, and `valid_pixels` where the network takes them."""
        if self.array is None:
            return {}
        gaps = 1 - self.array.mean(tuple(range(1, self.array.ndim)), dtype=np.float32)
        return {"gaps": gaps} | ({"valid_pixels": self.array} if as_input else {})


@dataclass(frozen=True)
class _Pool:
    """Images of a source of which a part takes some."""

    source: Source
    what: str
    """For messages: where it was named."""
    open: Callable[[int], Picture | Raster]
    bad: list[int]
    """What could not be decoded so far."""


@dataclass(frozen=True)
class _View:
    place: tuple[int, ...]
    """In the images of a part."""
    number: int
    """Of its random numbers."""
    strong: bool = True
    """With operations on pixels, beside crop and flip."""


@dataclass(frozen=True, eq=False)
class Samples(ABC):
    """What training and evaluation share."""

    source: Source
    needs: Needs
    model: ModelConfig
    data: DataConfig
    seed: int

    @abstractmethod
    def __call__(self, positions: range, out: NDArray[Any] | None = None) -> Arrays:
        """What is at these positions of the stream: `images`, `index`, `labels`, `valid`, `bad`, and inputs by name.

        With `out` (rows, *shape), images are made in its first rows.
        """

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a row of images: (H, W, C), or (V, H, W, C) of several views, see `Needs.pictures`."""
        pictures = () if self.needs.pictures == 1 else (self.needs.pictures,)
        return *pictures, *self.model.image_size, self.model.channels

    @property
    def image_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.data.dtype).itemsize

    def _images(self, count: int, out: NDArray[Any] | None) -> NDArray[Any]:
        """(count, *shape) to be written to."""
        return np.empty((count, *self.shape), self.data.dtype) if out is None else out[:count]

    def _picture(self, index: int, source: Source | None = None) -> Picture | Raster:
        data = self.data
        how = (self.model.channels, data.dtype, data.max_pixels, data.range, data.nodata, data.frame)
        return open_image((source or self.source).read(index), *how)

    @cached_property
    def _mean(self) -> NDArray[Any]:
        """(C,) of stored values: what stands where there is no data."""
        data = self.data
        return to_dtype(np.array(data.mean) * FULL_RANGE[data.dtype], np.dtype(data.dtype))

    def _filled(self, pixels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """A crop without gaps, and where there is data: None, where it had none."""
        if not isinstance(pixels, np.ma.MaskedArray):
            return pixels, None
        mask = np.ma.getmaskarray(pixels)
        return np.where(mask, self._mean, np.asarray(pixels)), ~mask

    def _labels(self, index: NDArray[np.int64]) -> NDArray[Any] | None:
        """Of these images: (n,) the class, or (n, classes) True for each of several."""
        if self.source.labels is not None:
            return self.source.labels[index]
        return None if self._label_sets is None else self._label_sets[index]

    @cached_property
    def _label_sets(self) -> NDArray[np.bool_] | None:
        return getattr(self.source, "label_sets", None)  # of lists that give several classes an image

    def _inputs(self, keys: Sequence[tuple[int, int]]) -> Arrays:
        """Inputs of these rows, (epoch, index) pairs; (rows, ...), or (rows, V, ...) of several views."""
        if not self.needs.rows:
            return {}
        views = range(self.needs.augmented)
        rows = [[self._input(epoch, index, view) for view in views] for epoch, index in keys]
        if len(views) == 1:
            return {name: np.stack([row[0][name] for row in rows]) for name in rows[0][0]}
        return {name: np.stack([np.stack([view[name] for view in row]) for row in rows]) for name in rows[0][0]}

    def _input(self, epoch: int, index: int, view: int) -> Arrays:
        def draw(op: Op) -> np.random.Generator:
            return generator(self.seed, epoch, index, op, view)

        arrays: Arrays = {}
        for make in self.needs.rows:
            arrays |= make(draw)
        return arrays


@dataclass(frozen=True, eq=False)
class TrainSamples(Samples):
    """Randomly cropped, flipped and augmented; an image that cannot be decoded is replaced by another."""

    augment: AugmentConfig
    batch_size: int
    """Images of a step, over all processes."""
    unlabelled: Source | None = None
    """Images whose labels are not looked at, for `Needs.unlabelled`."""

    def __post_init__(self) -> None:
        """Raises ConfigError when the classes of the model, of `source` and of the class weights do not match."""
        if bool(self.needs.unlabelled) != (self.unlabelled is not None):
            raise ValueError("images without labels go with an objective that asks for them")
        first = np.zeros(1, np.int64)
        if self.needs.targets is not None and (labels := self._labels(first)) is not None:
            self._targets(first, labels, self.needs.targets)

    def __call__(self, positions: range, out: NDArray[Any] | None = None) -> Arrays:
        """Raises DataError when too many images in a row cannot be decoded."""
        repeats = self.augment.repeats
        keys = [sample_at(position, len(self.source), self.seed, repeats) for position in positions]
        images = self._images(len(keys), out)
        shown = np.empty(len(keys), np.int64)
        # Repeats of two images stand in turn: each is decoded once.
        pool = _Pool(self.source, "data.train", lru_cache(maxsize=2)(self._picture), [])
        valid = _ValidPixels(images.shape)
        several = self.needs.pictures > 1
        for row, key in enumerate(keys):
            views = [_View((row, view) if several else (row,), view) for view in range(self.needs.views)]
            shown[row] = self._fill(images, views, key, pool, valid)
        bad = pool.bad
        if self.unlabelled is not None:
            others = self._fill_unlabelled(images, positions, self.unlabelled, valid)
            bad += [len(self.source) + index for index in others]
        arrays: Arrays = {"images": images, "index": shown, "bad": np.array(bad, np.int64)}
        arrays |= self._inputs(keys) | valid.arrays(as_input=self.needs.valid_pixels)
        if self.needs.targets is not None and (labels := self._labels(shown)) is not None:
            arrays |= {"labels": labels, "targets": self._targets(shown, labels, self.needs.targets)}
            if self.augment.mixes:
                labelled = images[:, 0] if several else images
                Mixing(self.augment, self.seed, self.batch_size)(positions, labelled, arrays["targets"])
        return arrays

    def _targets(self, index: NDArray[np.int64], labels: NDArray[Any], wanted: ClassTargets) -> NDArray[np.float32]:
        if wanted.num_classes is None:
            raise ConfigError("model.num_classes is not set")
        if isinstance(self.source, TaughtSource):
            targets = smoothed(self.source.probabilities[index], self.augment.label_smoothing)
        else:
            targets = class_targets(labels, wanted.num_classes, self.augment.label_smoothing)
        return targets if self._class_weights is None else targets * self._class_weights

    @cached_property
    def _class_weights(self) -> NDArray[np.float32] | None:
        """(num_classes,)."""
        if (wanted := self.needs.targets) is None or self.source.labels is None or wanted.class_weights is None:
            return None
        weights, classes = wanted.class_weights, wanted.num_classes
        if weights == "balanced":
            images = np.bincount(self.source.labels, minlength=classes or 0)
            return (images.sum() / np.count_nonzero(images) / np.maximum(images, 1)).astype(np.float32)
        if len(weights) != classes:
            raise ConfigError(f"objective.class_weights has {len(weights)} values for {classes} classes")
        return np.array(weights, np.float32)

    @cached_property
    def _augmentation(self) -> Augmentation:
        return Augmentation.of(self.augment, self.data)

    def _fill_unlabelled(
        self, images: NDArray[Any], positions: range, source: Source, valid: _ValidPixels
    ) -> list[int]:
        """Write the views of the images without labels of these rows; returns which of `source` are bad."""
        pool = _Pool(source, "data.unlabelled (by default data.train)", partial(self._picture, source=source), [])
        each, count, views = self.needs.unlabelled, len(source), self.needs.views
        for row, position in enumerate(positions):
            for i, key in enumerate(unlabelled_at(position, each, count, self.seed)):
                strong = _View((row, views + i), _STRONG)
                weak = _View((row, views + each + i), _WEAK, strong=False)
                self._fill(images, [strong, weak], key, pool, valid)
        return pool.bad

    def _fill(
        self, images: NDArray[Any], views: Sequence[_View], key: tuple[int, int], pool: _Pool, valid: _ValidPixels
    ) -> int:
        """Write the views of one image of (epoch, index) `key`; returns the index of the one that was taken when that
        is bad, else the same."""
        epoch, index = key
        reason = ""
        for candidate in self._candidates(epoch, index, len(pool.source), views[0].number):
            try:
                opened = pool.open(candidate)
                for view in views:
                    images[view.place], is_data = self._crop(opened, epoch, candidate, view, pool.source)
                    valid.put(view.place, is_data)
            except StorageError:
                raise
            except DataError as error:
                pool.bad.append(candidate)
                reason = f"{printable(pool.source.name(candidate))}: {error}"
            else:
                return candidate
        raise DataError(f"{1 + _REPLACEMENTS} images in a row cannot be used, the last is {reason}; check {pool.what}")

    def _candidates(self, epoch: int, index: int, count: int, view: int) -> Iterator[int]:
        yield index
        rng = generator(self.seed, epoch, index, Op.REPLACE, view)
        yield from rng.integers(count, size=_REPLACEMENTS).tolist()

    def _crop(
        self, picture: Picture | Raster, epoch: int, index: int, view: _View, source: Source
    ) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """A view, and where it is data; None where all is."""

        def draw(op: Op) -> np.random.Generator:
            return generator(self.seed, epoch, index, op, view.number)

        data = self.data
        box = random_resized_crop_box(draw(Op.CROP), (picture.height, picture.width), data.crop_scale, data.crop_ratio)
        flip = draw(Op.FLIP).random() < data.flip
        pixels, valid = self._filled(
            picture.crop(box, self.model.image_size, RESAMPLING[data.interpolation], flip=flip)
        )
        if valid is not None and self.needs.valid_pixels and self.augment.policy is not None:
            raise ConfigError(
                f"{printable(source.name(index))} has values that are no data, which augment.policy would move "
                "about; set augment.policy=null"
            )
        return (self._augmentation(pixels, draw) if view.strong else pixels), valid


class EvalSamples(Samples):
    """In order, centre-cropped, one view each; rows past the end and images that cannot be decoded are not valid."""

    def __call__(self, positions: range, out: NDArray[Any] | None = None) -> Arrays:
        images = self._images(len(positions), out)
        index = np.array([position if position < len(self.source) else -1 for position in positions], np.int64)
        valid = index >= 0
        bad: list[int] = []
        valid_pixels = _ValidPixels(images.shape)
        for row in np.flatnonzero(valid).tolist():
            try:
                images[row], is_data = self._filled(self._crop(positions[row]))
                valid_pixels.put((row,), is_data)
            except StorageError:
                raise
            except DataError:
                bad.append(positions[row])
                valid[row] = False
        images[~valid] = 0
        arrays: Arrays = {"images": images, "index": index, "valid": valid, "bad": np.array(bad, np.int64)}
        arrays |= self._inputs([(0, position) for position in positions])
        arrays |= valid_pixels.arrays(as_input=self.needs.valid_pixels)
        if self.needs.targets is not None and (labels := self._labels(np.maximum(index, 0))) is not None:
            arrays["labels"] = labels
        return arrays

    def _crop(self, index: int) -> NDArray[Any]:
        return center_crop(self._picture(index), self.model.image_size, self.data)
