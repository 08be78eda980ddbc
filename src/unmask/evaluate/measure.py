"""Figures of an objective over a whole data set."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager

import numpy as np

from unmask.data.batch import Batch
from unmask.engines.base import Engine
from unmask.errors import ConfigError, DataError
from unmask.objectives.base import Objective
from unmask.report.progress import progress


@contextmanager
def shown(batches: Iterable[Batch], title: str, images: int) -> Generator[Iterator[Batch]]:
    """The same, with a bar that counts their images."""
    with progress(title, total=images, unit="image") as bar:

        def counted() -> Iterator[Batch]:
            for batch in batches:
                yield batch
                bar.update(int(np.count_nonzero(batch.index >= 0)))

        yield counted()


def measure(engine: Engine, objective: Objective, batches: Iterable[Batch]) -> dict[str, float]:
    """`count` and the means of what `objective.sums` gives, such as `loss` and `top1`; each image counts once.

    Of several processes, each with its share of the batches, all get the same. Raises DataError when not one image
    could be read, ConfigError for an objective without such figures.
    """
    if objective.evaluated is None:
        raise ConfigError(f"objective.name={objective.section.name} has no loss for single images; use knn or probe")
    sums: dict[str, float] = {}
    for batch in batches:
        for name, value in objective.sums(engine.output(objective.evaluated, batch), batch).items():
            sums[name] = sums.get(name, 0.0) + value
    sums = dict(zip(sums, engine.sum(np.array(list(sums.values()))).tolist(), strict=True))
    count = sums.pop("count", 0.0)
    if not count:
        raise DataError("no image of the evaluation data could be read")
    return {"count": count} | {name: total / count for name, total in sums.items()}
