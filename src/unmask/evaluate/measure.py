"""Mean loss and accuracy over a whole data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from unmask.data.batch import Batch
from unmask.engines.base import Engine, StepResult
from unmask.errors import DataError

_UNREAD = 64
"""Batches after which the device is waited for: seldom, and the memory of their results stays bounded."""


def measure(engine: Engine, batches: Iterable[Batch]) -> dict[str, float]:
    """`count`, mean `loss` and, for a classifier, `top1` and `top5` as shares; each image counts once.

    With several classes an image, as `set_measures` says. Raises DataError when not one image could be read.
    """
    sums: dict[str, float] = {}
    unread: list[StepResult] = []

    def add(values: Mapping[str, float]) -> None:
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value

    def read() -> None:
        for result in unread:
            add(engine.read(result))
        unread.clear()

    for batch in batches:
        if batch.labels is not None and batch.labels.ndim == 2:
            valid = slice(None) if batch.valid is None else batch.valid
            add(set_measures(engine.logits(batch)[valid], batch.labels[valid]))
            continue
        unread.append(engine.eval_step(batch))
        if len(unread) == _UNREAD:
            read()
    read()
    sums = dict(zip(sums, engine.sum(np.array(list(sums.values()))).tolist(), strict=True))
    count = sums.pop("count", 0.0)
    if not count:
        raise DataError("no image of the evaluation data could be read")
    return {"count": count} | {name: total / count for name, total in sums.items()}


def set_measures(logits: NDArray[np.float32], labels: NDArray[np.bool_]) -> dict[str, float]:
    """Sums over images of several classes: of (n, classes) scores against (n, classes) which of them are true.

    `count`; `loss`: binary cross entropy, mean over the classes; `top1`: whether the highest score is of a true class;
    `rank_precision`: average precision of the ranking of an image's classes (label ranking average precision), 1 when
    all true classes come first. Images of no class have no ranking and count as 1.
    """
    scores = logits.astype(np.float64)
    order = np.argsort(-scores, axis=1, kind="stable")
    hits = np.take_along_axis(labels.astype(bool), order, axis=1)
    precision = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
    true = hits.sum(1)
    ranked = np.where(true > 0, (precision * hits).sum(1) / np.maximum(true, 1), 1.0)
    loss = (np.logaddexp(0, scores) - labels * scores).mean(1)
    return {
        "count": float(len(scores)),
        "loss": float(loss.sum()),
        "top1": float(hits[:, 0].sum()),
        "rank_precision": float(ranked.sum()),
    }
