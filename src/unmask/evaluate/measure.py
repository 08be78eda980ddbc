"""Mean loss and accuracy over a whole data set."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from unmask.data.batch import Batch
from unmask.engines.base import Engine
from unmask.errors import DataError


def measure(engine: Engine, batches: Iterable[Batch]) -> dict[str, float]:
    """`count`, mean `loss` and, for a classifier, `top1` and `top5` as shares; each image counts once.

    Raises DataError when not one image could be read.
    """
    results = [engine.eval_step(batch) for batch in batches]
    sums: dict[str, float] = {}
    for result in results:
        for name, value in engine.read(result).items():
            sums[name] = sums.get(name, 0.0) + value
    sums = dict(zip(sums, engine.sum(np.array(list(sums.values()))).tolist(), strict=True))
    count = sums.pop("count", 0.0)
    if not count:
        raise DataError("no image of the evaluation data could be read")
    return {"count": count} | {name: total / count for name, total in sums.items()}
