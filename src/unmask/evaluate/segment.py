"""Segmentation from a handful of masks: a linear head on the frozen model's patch features, judged by mean IoU.

Each patch is taught the share of its pixels that each class has. What the head says of the patches is brought to the
size of the image as the model sees it (bilinear), and there each pixel gets the class that scores highest. Classes are
seldom equally frequent, and IoU counts them alike: how far a class's score is lowered by how frequent it is (Menon et
al. 2021, logit adjustment) is chosen with the L2 strength by mean IoU on training images that were held out.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unmask.config.schema import Config
from unmask.data.augment.crop import center_crop
from unmask.data.decode.picture import Picture
from unmask.data.decode.raster import open_image
from unmask.data.rng import Op, generator
from unmask.data.sources import Source, open_source
from unmask.data.sources.base import printable
from unmask.data.sources.split import groups_of
from unmask.errors import DataError
from unmask.evaluate.fast_probe import FOLDS, STRENGTHS, Floats, LinearHead
from unmask.evaluate.features import Features
from unmask.evaluate.inference import Model
from unmask.files import cause
from unmask.metrics import mean_iou
from unmask.report.progress import progress, say

IGNORED = 255
"""Pixels of no class: they neither teach nor count."""
ADJUSTMENTS = (0.0, 0.5, 1.0)
"""Times the logarithm of a class's share of the pixels that its scores are lowered by."""
ONE_IMAGE = 0.01
"""The L2 strength with one training image, of which none can be held out: its patches are many."""
_PATIENCE = 2


@dataclass(frozen=True)
class Dense:
    """Patch features and masks of some images."""

    features: NDArray[np.float32]
    """(N, h, w, D)"""
    masks: NDArray[np.uint8]
    """(N, H, W) the class of each pixel, or IGNORED."""
    groups: NDArray[np.int64] | None = None
    """(N,) see `Features`."""

    def rows(self, index: NDArray[np.int64]) -> Dense:
        return Dense(self.features[index], self.masks[index])


@dataclass(frozen=True)
class TriedDense:
    """One setting, on training images that it was not fitted on."""

    strength: float
    adjustment: float
    miou: float


@dataclass(frozen=True)
class SegmentationResult:
    miou: float
    """Mean over the classes of the validation images, which had no say in anything."""
    iou: tuple[float, ...]
    """Of each class; NaN for one that is neither there nor predicted."""
    strength: float
    adjustment: float
    tried: tuple[TriedDense, ...]
    """Empty with one training image."""


def segment(
    model: Model, train: str, val: str, train_masks: str, val_masks: str, *, seed: int = 0
) -> SegmentationResult:
    """IoU on `val` of a linear head on the model's features of the patches of `train`.

    All are whatever `data.train` may name. The mask of an image has its name, suffix aside, and its size: one channel
    (PNG, grey or with a palette) that holds the number of a class, or 255 for pixels of none; where all masks hold 0
    and 255 alone, 255 is the class 1. Raises DataError for masks that are missing or do not fit.
    """
    found = [_dense(model, *each) for each in (("TRAIN", train, train_masks), ("VAL", val, val_masks))]
    present = np.unique(np.concatenate([np.unique(part.masks) for part in found]))
    if {*present.tolist()} <= {0, IGNORED}:
        found = [replace(part, masks=(part.masks > 0).astype(np.uint8)) for part in found]
    return fit_segmentation(*found, seed=seed)


def fit_segmentation(train: Dense, val: Dense, *, seed: int = 0) -> SegmentationResult:
    """The same on features and masks. Raises DataError if the training masks hold fewer than two classes."""
    numbers = [np.unique(part.masks[part.masks != IGNORED]) for part in (train, val)]
    if len(numbers[0]) < 2:
        raise DataError(f"the masks of TRAIN hold {len(numbers[0])} classes; to tell classes apart it takes two")
    if unknown := sorted({*numbers[1].tolist()} - {*numbers[0].tolist()}):
        raise DataError(f"class {unknown[0]} is in the masks of VAL and not in those of TRAIN")
    classes = int(numbers[0].max()) + 1
    with progress("fit the segmentation head", total=len(STRENGTHS) + 1, unit="strength") as bar:
        tried: list[TriedDense] = []
        for several in _cross_validated(train, classes, seed):
            tried += several
            bar.update()
        best = max(tried, key=lambda one: one.miou, default=TriedDense(ONE_IMAGE, 0.0, np.nan))
        head, log_share_C = _fit(train, classes, best.strength)
        bar.update(len(STRENGTHS) + 1 - len(tried) // len(ADJUSTMENTS))
    confusion = _confusion(_scores(head, val) - best.adjustment * log_share_C, val.masks, classes)
    iou, miou = mean_iou(confusion)
    return SegmentationResult(miou, tuple(iou.tolist()), best.strength, best.adjustment, tuple(tried))


def enlarged(values_hwC: Floats, size: tuple[int, int]) -> Floats:
    """(h, w, C) brought to (H, W, C), bilinear; pixels and patches are areas, not points."""
    down_Hh, across_Ww = (_weights(to, of) for to, of in zip(size, values_hwC.shape[:2], strict=True))
    return np.einsum("Hh,hwC,Ww->HWC", down_Hh, values_hwC, across_Ww, optimize=True)


def shares_of(masks_NHW: NDArray[np.uint8], grid: tuple[int, int], classes: int) -> Floats:
    """(N, h, w, classes) of the pixels of each patch, out of all; IGNORED ones are of no class."""
    N, H, W = masks_NHW.shape
    h, w = grid
    blocks = masks_NHW.reshape(N, h, H // h, w, W // w)
    return np.stack([(blocks == number).mean((2, 4)) for number in range(classes)], axis=-1)


def _dense(model: Model, what: str, images: str, masks: str) -> Dense:
    source = open_source(images, key=what, labels=False)
    drawn = _masks(source, open_source(masks, key=f"the masks of {what}", labels=False), model.config, what)
    features = model.patch_features(source)
    if not (readable := np.isfinite(features).all((1, 2, 3))).all():
        raise DataError(f"{what}: {printable(source.name(int(np.argmin(readable))))} cannot be decoded")
    return Dense(features, drawn, groups_of(source, model.config.data.val_group))


def _masks(images: Source, masks: Source, config: Config, what: str) -> NDArray[np.uint8]:
    """(N, H, W) cut as the images are."""
    data = config.data.model_copy(update={"interpolation": "nearest"})
    how = (config.model.channels, data.dtype, data.max_pixels, data.range, data.nodata, data.frame)
    places = {str(PurePath(masks.name(index)).with_suffix("")): index for index in range(len(masks))}
    found: list[NDArray[np.uint8]] = []
    for index in range(len(images)):
        name = images.name(index)
        place = places.get(str(PurePath(name).with_suffix("")))
        if place is None:
            raise DataError(f"{what}: {printable(name)} has no mask; it must have the same name, suffix aside")
        mask = _mask(masks.read(place), f"the mask {printable(masks.name(place))}")
        picture = open_image(images.read(index), *how)
        if mask.shape[:2] != (picture.height, picture.width):
            raise DataError(
                f"the mask {printable(masks.name(place))} is {mask.shape[1]} x {mask.shape[0]} pixels, its image "
                f"{picture.width} x {picture.height}"
            )
        crop = center_crop(Picture(mask, 1, data.max_pixels), config.model.image_size, data)
        found.append(np.asarray(crop)[..., 0].astype(np.uint8))
    if left := len(masks) - len(found):
        say(f"{what}: {left} of {len(masks)} masks are of no image")
    return np.stack(found)


def _mask(data: object, what: str) -> NDArray[np.uint8]:
    """(H, W, 1)."""
    if isinstance(data, bytes):
        try:
            with Image.open(io.BytesIO(data)) as image:
                if image.mode not in ("1", "L", "P"):
                    raise DataError(f"{what} is of mode {image.mode}; it must have one channel of 8 bits")
                data = np.asarray(image)
        except DataError:
            raise
        except Exception as error:  # whatever damage makes Pillow raise
            raise DataError(f"{what} cannot be decoded: {cause(error)}") from None
    pixels = np.asarray(data)
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if pixels.shape[2] != 1 or pixels.dtype.name not in ("bool", "uint8"):
        raise DataError(f"{what} must have one channel of 8 bits")
    return pixels.astype(np.uint8)


def _cross_validated(train: Dense, classes: int, seed: int) -> Iterator[list[TriedDense]]:
    """The strengths from the strongest on, until weaker ones are worse; none with one image, or one group."""
    count = len(train.masks)
    groups = np.arange(count) if train.groups is None else np.unique(train.groups, return_inverse=True)[1]
    fold_of = (generator(seed, 0, 0, Op.SUBSET).permutation(groups.max() + 1) % FOLDS)[groups]
    folds = [np.flatnonzero(fold_of == fold) for fold in np.unique(fold_of)]
    rest = [np.setdiff1d(np.arange(count), held) for held in folds]
    best, worse = -np.inf, 0
    for strength in STRENGTHS if len(folds) > 1 else ():
        confusion = np.zeros((len(ADJUSTMENTS), classes, classes))
        for held, others in zip(folds, rest, strict=True):
            judged = train.rows(held)
            head, log_share_C = _fit(train.rows(others), classes, strength)
            scores = _scores(head, judged)
            for row, adjustment in enumerate(ADJUSTMENTS):
                confusion[row] += _confusion(scores - adjustment * log_share_C, judged.masks, classes)
        yield (
            several := [TriedDense(strength, a, mean_iou(c)[1]) for a, c in zip(ADJUSTMENTS, confusion, strict=True)]
        )
        highest = max(one.miou for one in several)
        best, worse = (highest, 0) if highest > best else (best, worse + 1)
        if worse == _PATIENCE:
            return


def _fit(train: Dense, classes: int, strength: float) -> tuple[LinearHead, Floats]:
    """The head, and the logarithm of each class's share of the pixels."""
    N, h, w, D = train.features.shape
    shares_PC = shares_of(train.masks, (h, w), classes).reshape(-1, classes)
    patch, labels = np.nonzero(shares_PC)
    features = Features(train.features.reshape(-1, D)[patch], labels)
    weights = shares_PC[patch, labels]
    head = LinearHead.fit(features, np.arange(len(labels)), classes, strength, weights=weights)
    return head, np.log(np.maximum(shares_PC.sum(0) / shares_PC.sum(), 1 / (N * h * w)))


def _scores(head: LinearHead, images: Dense) -> Floats:
    """(N, h, w, C)"""
    return ((images.features - head.mean) * head.scale) @ head.weight + head.bias


def _confusion(scores_NhwC: Floats, masks: NDArray[np.uint8], classes: int) -> Floats:
    """(true, predicted) pixels."""
    counts = np.zeros(classes * classes)
    for scores_hwC, mask in zip(scores_NhwC, masks, strict=True):
        predicted = enlarged(scores_hwC, mask.shape).argmax(-1)
        there = mask != IGNORED
        counts += np.bincount(classes * mask[there].astype(np.int64) + predicted[there], minlength=classes**2)
    return counts.reshape(classes, classes)


def _weights(to: int, of: int) -> Floats:
    """(to, of) of bilinear interpolation."""
    at = np.clip((np.arange(to) + 0.5) * of / to - 0.5, 0, of - 1)
    return np.maximum(1 - np.abs(at[:, None] - np.arange(of)), 0)
