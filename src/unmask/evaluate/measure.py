"""Mean loss and accuracy over a whole data set."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from unmask.data.batch import Batch
from unmask.engines.base import Engine, StepResult
from unmask.errors import DataError

_UNREAD = 64
"""Batches after which the device is waited for: seldom, and the memory of their results stays bounded."""


def measure(engine: Engine, batches: Iterable[Batch]) -> dict[str, float]:
    """`count`, mean `loss` and, for a classifier, `top1` and `top5` as shares; each image counts once.

    Raises DataError when not one image could be read.
    """
    sums: dict[str, float] = {}
    unread: list[StepResult] = []

    def read() -> None:
        for result in unread:
            for name, value in engine.read(result).items():
                sums[name] = sums.get(name, 0.0) + value
        unread.clear()

    for batch in batches:
        unread.append(engine.eval_step(batch))
        if len(unread) == _UNREAD:
            read()
    read()
    sums = dict(zip(sums, engine.sum(np.array(list(sums.values()))).tolist(), strict=True))
    count = sums.pop("count", 0.0)
    if not count:
        raise DataError("no image of the evaluation data could be read")
    return {"count": count} | {name: total / count for name, total in sums.items()}
