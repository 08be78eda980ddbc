"""Images as a run's network is shown them in training."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np

from unmask.config.schema import Config
from unmask.data.batch import Needs
from unmask.data.sources import Source
from unmask.data.sources.base import printable
from unmask.evaluate.reconstruct import visible
from unmask.objectives.base import create_objective
from unmask.overview.looks import shown_picture
from unmask.preparation import batches_of
from unmask.report.page import Blobs

_SHOWN = 16


def augmented(config: Config, source: Source, unlabelled: Source | None, blobs: Blobs) -> dict[str, Any]:
    """The first images of the run's first batch, cropped, flipped, augmented and mixed, with what they are to be.

    Of a run with a teacher, as if it had the labelled images alone.
    """
    needs = create_objective(config).needs(training=True)
    size = min(config.train.batch_size, _SHOWN)
    if config.augment.mix_mode == "batch":  # one share and box for all: the same as in the run
        size = size // 2 * 2 or 2
    few = config.model_copy(
        update={
            "data": config.data.model_copy(update={"workers": 0}),
            "train": config.train.model_copy(update={"batch_size": size, "accumulate": 1}),
        }
    )
    batches = batches_of(few, source, unlabelled)(start_step=0, stop_step=1)
    with closing(batches):
        (batch,) = next(batches)
    pixels = batch.images if batch.images.ndim == 5 else batch.images[:, None]
    targets = batch.inputs.get("targets")
    names = [printable(name) for name in source.class_names or ()]
    rows: list[dict[str, Any]] = []
    for row, index in enumerate(batch.index.tolist()):
        views = visible(pixels[row], config.data.mean, config.data.std)
        told: list[tuple[str, float]] = []
        if targets is not None:
            best = np.argsort(-targets[row], kind="stable")[:2]
            told = [(names[i] if i < len(names) else str(i), round(float(targets[row, i]), 3)) for i in best.tolist()]
        rows.append(
            {
                "name": printable(source.name(index)),
                "pictures": [shown_picture(view, blobs) for view in views],
                "targets": told,
            }
        )
    return {"rows": rows, "kinds": _kinds(needs)}


def _kinds(needs: Needs) -> list[str]:
    """What each picture in a row of the batch is."""
    views = [f"view {number}" if needs.views > 1 else "" for number in range(1, needs.views + 1)]
    others = range(1, needs.unlabelled + 1)
    return [
        *views,
        *(f"without label {number}, augmented" for number in others),
        *(f"without label {number}, cropped alone" for number in others),
    ]
