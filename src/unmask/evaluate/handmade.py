"""Features that no network learned: what a model's have to be better than, and who teaches where labels are few.

Of three kinds: histograms of oriented gradients (Dalal and Triggs 2005), 9 orientations without sign in 8 x 8 cells,
normalised over blocks of 2 x 2 cells; of each of 4 x 4 fields the mean and deviation of every channel, and a histogram
of colours; and a dictionary of the images' own patches (`evaluate.dictionary`). Least squares tells how much each kind
counts (`evaluate.ridge`).

Images are looked at whole and no larger than 32 pixels: of garments at 64 the gradients alone told 5 points less. The
mean over an image and its mirror image is worth 2 to 3 points where labels are few (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from unmask.config.schema import Config, DataConfig
from unmask.data.batch import FULL_RANGE, Needs
from unmask.data.loader.pipeline import eval_batches
from unmask.data.rng import Op, generator
from unmask.data.sources import Source
from unmask.data.sources.split import groups_of
from unmask.data.sources.subset import SubsetSource
from unmask.engines.base import Tensors
from unmask.evaluate.bad_images import check_judged
from unmask.evaluate.dictionary import Dictionary, means
from unmask.evaluate.fast_probe import LinearHead
from unmask.evaluate.features import Features
from unmask.evaluate.ridge import fit_ridge
from unmask.models.handmade import (
    CELLS,
    CLIP,
    EPS,
    FIELDS,
    LEVELS,
    ORIENTATIONS,
    PATCH,
    PREFIX,
    ROUNDING,
    resampling,
    size_of,
    widths,
)
from unmask.report.progress import progress

SAMPLE = 5000
"""Most images that a dictionary is made of."""
_BATCH = 64

Floats = NDArray[np.float32]


class Handmade:
    """Describes images, with a dictionary of some of them."""

    def __init__(self, images: Source, config: Config) -> None:
        """`images`: all that may be looked at, with labels and without."""
        self._model, self._data, self._seed = config.model, _as_they_are(config.data), config.seed
        rng = generator(config.seed, 0, 0, Op.DICTIONARY)
        some = np.sort(rng.choice(len(images), min(SAMPLE, len(images)), replace=False))
        with progress("make the dictionary", total=len(some), unit="image") as bar:
            seen: list[Floats] = []
            for batch, readable in self._read(SubsetSource(images, some), _BATCH):
                seen.append(batch[readable])
                bar.update(len(batch))
        pictures = np.concatenate(seen)
        self._dictionary = Dictionary.learn(pictures, rng) if len(pictures) else None
        self.widths = widths(config.model)

    def features(self, source: Source, title: str) -> Features:
        """Of images with labels; broken ones have the label -1. Raises DataError if these are too many."""
        rows: list[Floats] = []
        valid: list[NDArray[np.bool_]] = []
        with progress(title, total=len(source), unit="image") as bar:
            for values, readable in self.batches(source, _BATCH):
                rows.append(values)
                valid.append(readable)
                bar.update(len(values))
        bad = np.flatnonzero(~np.concatenate(valid))
        check_judged(source, len(bad), bad.tolist(), self._model.channels, self._data, title)
        labels = np.zeros(len(source), np.int64) if source.labels is None else source.labels
        groups = groups_of(source, self._data.val_group)
        return Features(np.concatenate(rows), np.where(np.concatenate(valid), labels, -1), groups)

    def batches(self, source: Source, batch_size: int) -> Iterator[tuple[Floats, NDArray[np.bool_]]]:
        """The same batch by batch, in order: features, and which of the images could be decoded.

        Where left and right mean nothing (`data.flip`), the mean over an image and its mirror image.
        """
        for images, valid in self._read(source, batch_size):
            features = np.concatenate(self._kinds(images), axis=1)
            if self._data.flip:
                features = np.float32(0.5) * (features + np.concatenate(self._kinds(images[:, :, ::-1]), axis=1))
            yield features, valid

    def fit(self, features: Features, classes: int) -> LinearHead:
        """A classifier on what this describes. Raises DataError for a class without an image."""
        return fit_ridge(features, self.widths, classes, seed=self._seed)

    def parameters(self, head: LinearHead) -> Tensors:
        """This and a classifier on what it describes, as a part of a network."""
        weights = {f"{PREFIX}{name}": tensor for name, tensor in head.parameters().items()}
        if self._dictionary is not None:
            filters = self._dictionary.filters.T.reshape(len(self._dictionary.threshold), -1, PATCH, PATCH)
            weights |= {f"{PREFIX}filters": filters, f"{PREFIX}threshold": self._dictionary.threshold}
        return weights

    def _read(self, source: Source, batch_size: int) -> Iterator[tuple[Floats, NDArray[np.bool_]]]:
        """Images (B, H, W, C) whose channels are in 0..1, and which of them could be decoded."""
        size = size_of(self._model)
        batches = eval_batches(
            source,
            needs=Needs(),
            model=self._model,
            data=self._data,
            seed=self._seed,
            batch_size=min(batch_size, len(source)),
        )
        for batch in batches:
            there = batch.index >= 0
            valid = np.ones(there.sum(), bool) if batch.valid is None else batch.valid[there]
            yield shrunk(batch.images[there].astype(np.float32) / FULL_RANGE[self._data.dtype], size), valid

    def _kinds(self, images_BHWC: Floats) -> list[Floats]:
        """(B, features) of each kind."""
        parts = [oriented_gradients(images_BHWC), fields(images_BHWC)]
        if self._dictionary is not None:
            parts.append(self._dictionary.describe(images_BHWC))
        return [part.reshape(len(images_BHWC), -1) for part in parts]


def _as_they_are(data: DataConfig) -> DataConfig:
    return data.model_copy(update={"workers": 0, "eval_crop": 1.0})


def shrunk(images_BHWC: Floats, size: tuple[int, int]) -> Floats:
    """Values that interpolation takes out of 0..1 are clipped."""
    if images_BHWC.shape[1:3] == size:
        return images_BHWC
    down, across = (resampling(after, before) for after, before in zip(size, images_BHWC.shape[1:3], strict=True))
    return np.einsum("iy,byxc,jx->bijc", down, images_BHWC, across, optimize=True).clip(0, 1)


def oriented_gradients(images_BHWC: Floats) -> Floats:
    """(B, 7, 7, 36): each block's four histograms, its length 1."""
    down, across = np.gradient(images_BHWC, axis=1), np.gradient(images_BHWC, axis=2)
    strongest = np.argmax(down**2 + across**2, axis=-1)[..., None]
    down, across = (np.take_along_axis(each, strongest, -1)[..., 0] for each in (down, across))
    size = np.hypot(down, across)
    turn = np.arctan2(down, across) / np.pi * ORIENTATIONS  # -9..9
    lower = np.floor(turn)
    share = turn - lower  # between the two orientations that are nearest
    cells = np.zeros((len(images_BHWC), CELLS, CELLS, ORIENTATIONS), np.float32)
    for orientation, weight in ((lower, 1 - share), (lower + 1, share)):
        for which in range(ORIENTATIONS):
            votes = np.where(orientation % ORIENTATIONS == which, size * weight, 0)
            cells[..., which] += means(votes[..., None], CELLS)[..., 0]
    blocks = np.concatenate([cells[:, y : y + CELLS - 1, x : x + CELLS - 1] for y in (0, 1) for x in (0, 1)], axis=-1)
    return _unit(np.minimum(_unit(blocks), CLIP))


def fields(images_BHWC: Floats) -> Floats:
    """(B, features): means, deviations, and the roots of the shares that colours have."""
    B, channels = len(images_BHWC), images_BHWC.shape[-1]
    mean = means(images_BHWC, FIELDS)
    deviation = np.sqrt(np.maximum(means(images_BHWC**2, FIELDS) - mean**2, 0))
    parts = [mean.reshape(B, -1), deviation.reshape(B, -1)]
    if channels > 3:
        return np.concatenate(parts, axis=1)
    level = np.minimum((images_BHWC * LEVELS + ROUNDING).astype(np.int64), LEVELS - 1)
    colour: NDArray[np.int64] = level @ LEVELS ** np.arange(channels)
    seen = np.stack([np.bincount(each.ravel(), minlength=LEVELS**channels) for each in colour])
    return np.concatenate([*parts, np.sqrt(seen / colour[0].size).astype(np.float32)], axis=1)


def _unit(blocks: Floats) -> Floats:
    return blocks / np.sqrt((blocks**2).sum(-1, keepdims=True) + EPS)
