"""How well a classifier does, in full: what `unmask evaluate` writes. In float64, each image counted once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unmask.errors import DataError, UnmaskError
from unmask.metrics import log_softmax, predicted_class, rank_of_true

Floats = NDArray[np.float64]

BINS = 15
"""Equal-width bins of confidence for the expected calibration error, as in Guo et al. 2017."""
WORST = 24
"""Images of highest loss that are kept."""

_LOSS, _INDEX, _TRUE, _PREDICTED, _CONFIDENCE = range(5)


class Tally:
    """What is counted while the batches go by: a few arrays whose size, but for `each`, does not depend on the number
    of images.

    They are sums, so several processes, each with its share of the images, add theirs up (`over_processes`).
    """

    def __init__(self, classes: int, images: int = 0) -> None:
        """`images`: keep what is said of each, of so many."""
        self.each: Floats = np.full((images, 4), np.nan)
        """By position: true class, predicted class and its probability, loss; NaN for images that were not counted."""
        self.confusion: Floats = np.zeros((classes, classes))
        """Images by true class and predicted class."""
        self.sums: Floats = np.zeros(2)
        """Loss, and images whose class is among the five likeliest."""
        self.bins: Floats = np.zeros((BINS, 3))
        """By confidence: images, sum of their confidences, images classified correctly."""
        self.worst: Floats = np.empty((0, 5))
        """Loss, position in the source, true class, predicted class and its probability; at most WORST rows."""

    def add(self, index: NDArray[np.int64], labels: NDArray[np.int64], logits: NDArray[np.float32]) -> None:
        """Count (n,) images: positions in the source, classes, and (n, classes) logits, all of them real.

        Raises UnmaskError when a logit is not finite.
        """
        if not np.isfinite(logits).all():
            raise UnmaskError("the model's output is not finite; evaluate with --precision fp32, or another checkpoint")
        rows = np.arange(len(labels))
        log_p = log_softmax(logits)
        loss, predicted = -log_p[rows, labels], predicted_class(logits, labels)
        confidence = np.exp(log_p[rows, predicted])
        np.add.at(self.confusion, (labels, predicted), 1)
        self.sums += [loss.sum(), (rank_of_true(logits, labels) < 5).sum()]
        which = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)  # (0, 1/15], (1/15, 2/15], ...
        np.add.at(self.bins, which, np.stack([np.ones(len(rows)), confidence, predicted == labels], axis=1))
        if len(self.each):
            self.each[index] = np.stack([labels, predicted, confidence, loss], axis=1)
        found: Floats = np.stack([loss, index, labels, predicted, confidence], axis=1, dtype=np.float64)
        self.worst = _highest(np.concatenate([self.worst, found]))

    def over_processes(self, sum: Callable[[Floats], Floats], rank: int, size: int) -> None:
        """Make this the tally of all images, the same in every process; `sum` adds an array up over them."""
        self.confusion, self.sums, self.bins = (sum(array) for array in (self.confusion, self.sums, self.bins))
        if len(self.each):
            counted = sum((~np.isnan(self.each[:, :1])).astype(np.float64))
            self.each = np.where(counted > 0, sum(np.nan_to_num(self.each)), np.nan)
        gathered = np.zeros((size, WORST, 5))  # each process fills its own part: the sum is all of them
        gathered[rank, : len(self.worst)] = self.worst
        gathered[rank, len(self.worst) :, _LOSS] = -1
        rows = sum(gathered).reshape(-1, 5)
        self.worst = _highest(rows[rows[:, _LOSS] >= 0])


@dataclass(frozen=True)
class Mistake:
    """One of the images the model does worst on."""

    index: int
    """Position in the source."""
    true: int
    predicted: int
    confidence: float
    """Probability of the predicted class."""
    loss: float


@dataclass(frozen=True)
class PerClass:
    """(classes,) each. A class without images has no recall, one that is never predicted no precision: NaN."""

    support: Floats
    precision: Floats
    recall: Floats
    f1: Floats
    """Harmonic mean of the two, 0 where either is 0 or undefined; NaN where both are undefined."""


class ClassificationReport:
    """A finished tally and the figures that follow from it. Raises DataError if not one image was counted."""

    def __init__(self, tally: Tally, class_names: tuple[str, ...]) -> None:
        self.count = int(tally.confusion.sum())
        if not self.count:
            raise DataError("no image of the evaluation data could be read")
        self.class_names = class_names
        self.confusion = tally.confusion.astype(np.int64)
        """(classes, classes): images by true class (row) and predicted class (column)."""
        self.worst = [
            Mistake(int(row[_INDEX]), int(row[_TRUE]), int(row[_PREDICTED]), float(row[_CONFIDENCE]), float(row[_LOSS]))
            for row in tally.worst
        ]
        """At most WORST images, highest loss first."""
        self.each = tally.each
        """(images, 4) true class, predicted class and its probability, loss of each, if they were kept: see `Tally`."""
        self.bins = tally.bins
        """(BINS, 3) by confidence: images, sum of their confidences, images classified correctly."""
        self._sums = tally.sums

    def per_class(self) -> PerClass:
        correct = np.diag(self.confusion).astype(np.float64)
        support = self.confusion.sum(1).astype(np.float64)
        predicted = self.confusion.sum(0).astype(np.float64)
        return PerClass(
            support, _ratio(correct, predicted), _ratio(correct, support), _ratio(2 * correct, support + predicted)
        )

    def metrics(self) -> dict[str, float]:
        """`count`, mean `loss`, and shares of 1.

        `top1`, `top5`; `balanced_accuracy` (mean recall), `macro_precision` and `macro_f1`, means over the classes
        that have images, where a class never predicted has precision 0; `calibration_error`: the expected calibration
        error in 15 bins of equal width, sum over the bins of share x |accuracy - mean confidence|.
        """
        each = self.per_class()
        present = each.support > 0
        loss, top5 = self._sums
        return {
            "count": float(self.count),
            "loss": float(loss / self.count),
            "top1": float(np.trace(self.confusion) / self.count),
            "top5": float(top5 / self.count),
            "balanced_accuracy": float(each.recall[present].mean()),
            "macro_precision": float(np.nan_to_num(each.precision[present]).mean()),
            "macro_f1": float(each.f1[present].mean()),
            "calibration_error": float(np.abs(self.bins[:, 1] - self.bins[:, 2]).sum() / self.count),
        }


def _highest(rows: Floats) -> Floats:
    """The WORST rows of highest loss; of equal ones those first in the source."""
    return rows[np.lexsort((rows[:, _INDEX], -rows[:, _LOSS]))[:WORST]]


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)
