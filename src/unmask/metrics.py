"""The figures of an evaluation, each defined in one place: in training, by `evaluate`, for k-NN and probes.

Of equal scores the true class counts as the lowest: a model that does not tell classes apart is never right, and
neither is one whose scores are NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def log_softmax(logits: NDArray[Any]) -> Floats:
    """(n, classes), in float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def rank_of_true(scores: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) how many other classes do not score lower than the true one, of (n, classes) scores: right is 0."""
    true = np.take_along_axis(scores, labels[:, None], 1)
    with np.errstate(invalid="ignore"):
        return (~(scores < true)).sum(1) - 1


def predicted_class(scores: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) the class that scores highest; of equal ones the first but the true one, as `rank_of_true` has it."""
    others = np.where(np.isnan(scores), np.inf, scores)
    np.put_along_axis(others, labels[:, None], -np.inf, 1)
    return np.where(rank_of_true(scores, labels) == 0, labels, others.argmax(1))


def classification_sums(logits: NDArray[Any], labels: NDArray[np.int64]) -> dict[str, float]:
    """Sums over (n, classes) logits and (n,) classes: `count`, `loss` (cross entropy), `top1`, `top5`."""
    rank = rank_of_true(logits, labels)
    loss = -np.take_along_axis(log_softmax(logits), labels[:, None], 1)
    return {
        "count": float(len(labels)),
        "loss": float(loss.sum()),
        "top1": float((rank < 1).sum()),
        "top5": float((rank < 5).sum()),
    }


def multi_label_sums(logits: NDArray[Any], labels: NDArray[np.bool_]) -> dict[str, float]:
    """Sums over images of several classes: of (n, classes) scores against (n, classes) which of them are true.

    `count`; `loss`: binary cross entropy, mean over the classes; `top1`: whether the highest score is of a true class;
    `rank_precision`: average precision of the ranking of an image's classes (label ranking average precision), 1 when
    all true classes come first. Images of no class have no ranking and count as 1.
    """
    scores, labels = logits.astype(np.float64), labels.astype(bool)
    # NaN last, and of equal scores the true classes.
    order = np.lexsort((labels, -np.where(np.isnan(scores), -np.inf, scores)), axis=1)
    hits = np.take_along_axis(labels, order, axis=1)
    precision = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
    true = hits.sum(1)
    ranked = np.where(true > 0, (precision * hits).sum(1) / np.maximum(true, 1), 1.0)
    with np.errstate(invalid="ignore"):
        loss = (np.logaddexp(0, scores) - labels * scores).mean(1)
    return {
        "count": float(len(scores)),
        "loss": float(loss.sum()),
        "top1": float(hits[:, 0].sum()),
        "rank_precision": float(ranked.sum()),
    }


def mean_iou(confusion: NDArray[Any]) -> tuple[Floats, float]:
    """Intersection over union of each class, of (true, predicted) counts, NaN where it does not occur; their mean."""
    both, either = np.diag(confusion), confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    iou = np.where(either > 0, both / np.maximum(either, 1), np.nan)
    return iou, float(np.nanmean(iou)) if (either > 0).any() else float("nan")


def effective_rank(features: NDArray[Any]) -> float:
    """Of (n, width) features: exp of the entropy of their normalised singular values (RankMe, Garrido et al. 2023).

    Between 1, when all lie on a line (collapse), and min(n, width). Needs no labels.
    """
    singular = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    share = singular / max(singular.sum(), np.finfo(np.float64).tiny)
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))
