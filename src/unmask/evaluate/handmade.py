"""Features that nobody trained: what a model's have to be better than.

Histograms of oriented gradients (Dalal and Triggs 2005): 9 orientations without sign in 8 x 8 cells, normalised over
blocks of 2 x 2 cells; and of each of 4 x 4 fields the mean and deviation of every channel, and a histogram of colours.
Their mean over an image and its mirror image is worth 2 to 3 points where labels are few (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from unmask.config.schema import Config
from unmask.data.batch import FULL_RANGE, Needs
from unmask.data.loader.pipeline import eval_batches
from unmask.data.sources import Source
from unmask.data.sources.split import groups_of
from unmask.evaluate.bad_images import check_judged
from unmask.evaluate.features import Features
from unmask.report.progress import progress

ORIENTATIONS, CELLS, FIELDS = 9, 8, 4
LEVELS = 4
"""Of each channel, in the histogram of colours; of more than three channels there is none."""
_CLIP = 0.2
"""Of a normalised block: no single gradient outweighs the others (Lowe's L2-Hys)."""
_EPS = 1e-6
_BATCH = 64

Floats = NDArray[np.float32]


def handmade_features(source: Source, config: Config, title: str) -> Features:
    """Of the images of a source with labels, cut and resized as for evaluation; broken ones have the label -1."""
    rows: list[Floats] = []
    valid: list[NDArray[np.bool_]] = []
    with progress(title, total=len(source), unit="image") as bar:
        for values, readable in described(source, config, _BATCH):
            rows.append(values)
            valid.append(readable)
            bar.update(len(values))
    bad = np.flatnonzero(~np.concatenate(valid))
    check_judged(source, len(bad), bad.tolist(), config.model.channels, config.data, title)
    labels = np.zeros(len(source), np.int64) if source.labels is None else source.labels
    groups = groups_of(source, config.data.val_group)
    return Features(np.concatenate(rows), np.where(np.concatenate(valid), labels, -1), groups)


def described(source: Source, config: Config, batch_size: int) -> Iterator[tuple[Floats, NDArray[np.bool_]]]:
    """The same batch by batch, in order: features, and which of the images could be decoded.

    Where left and right mean nothing (`data.flip`), the mean over an image and its mirror image.
    """
    batches = eval_batches(
        source,
        needs=Needs(),
        model=config.model,
        data=config.data.model_copy(update={"workers": 0}),
        seed=config.seed,
        batch_size=min(batch_size, len(source)),
    )
    for batch in batches:
        there = batch.index >= 0
        valid = np.ones(there.sum(), bool) if batch.valid is None else batch.valid[there]
        images = batch.images[there].astype(np.float32) / FULL_RANGE[config.data.dtype]
        features = describe(images)
        yield features if not config.data.flip else np.float32(0.5) * (features + describe(images[:, :, ::-1])), valid


def describe(images_BHWC: Floats) -> Floats:
    """(B, features) of images whose channels are in 0..1."""
    parts = [oriented_gradients(images_BHWC), *_fields(images_BHWC)]
    return np.concatenate([part.reshape(len(images_BHWC), -1) for part in parts], axis=1)


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
            cells[..., which] += _sums(votes[..., None], CELLS)[..., 0]
    blocks = np.concatenate([cells[:, y : y + CELLS - 1, x : x + CELLS - 1] for y in (0, 1) for x in (0, 1)], axis=-1)
    return _unit(np.minimum(_unit(blocks), _CLIP))


def _fields(images_BHWC: Floats) -> list[Floats]:
    channels = images_BHWC.shape[-1]
    count = _sums(np.ones_like(images_BHWC[..., :1]), FIELDS)
    mean = _sums(images_BHWC, FIELDS) / count
    deviation = np.sqrt(np.maximum(_sums(images_BHWC**2, FIELDS) / count - mean**2, 0))
    if channels > 3:
        return [mean, deviation]
    level = np.minimum((images_BHWC * LEVELS).astype(np.int64), LEVELS - 1)
    colour: NDArray[np.int64] = level @ LEVELS ** np.arange(channels)
    seen = np.stack([np.bincount(each.ravel(), minlength=LEVELS**channels) for each in colour])
    return [mean, deviation, np.sqrt(seen / colour[0].size).astype(np.float32)]


def _sums(values_BHWC: Floats, parts: int) -> Floats:
    """Over each of parts x parts fields of as equal a size as there is: (B, parts, parts, C)."""
    for axis in (1, 2):
        edges = np.linspace(0, values_BHWC.shape[axis], parts, endpoint=False).astype(int)
        values_BHWC = np.add.reduceat(values_BHWC, edges, axis=axis)
    return values_BHWC


def _unit(blocks: Floats) -> Floats:
    return blocks / np.sqrt((blocks**2).sum(-1, keepdims=True) + _EPS)
