"""Which images a suddenly high loss, or one that is not finite, was of: kept beside the log, to look at them."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path

import numpy as np

from unmask.data.loader.order import sample_at, unlabelled_at
from unmask.data.sources.base import Source, printable
from unmask.files import naming
from unmask.report.progress import say

_WINDOW = 200
_LEAST = 20
"""Losses before one is called high."""
_DEVIATIONS = 12
"""Times the median absolute deviation above the median: of losses that scatter normally, one in 10^15."""
_MOST_BELOW = 0.95
"""Half the way from the median up to where this share of the losses lies below counts as a deviation too, where that is
more: of batches that are mixed (cutmix) or not, the losses of the others say nothing of how these scatter."""
_MOST = 100
"""Lines a process writes."""


def unlabelled_names(source: Source, positions: range, each: int, seed: int) -> list[str]:
    """Of the `each` images of `source` that come with each of those at these positions, once each."""
    keys = [key for position in positions for key in unlabelled_at(position, each, len(source), seed)]
    return [printable(source.name(index)) for index in dict.fromkeys(index for _, index in keys)]


class Spikes:
    """Writes a line of JSON for each such step: `step`, `loss`, `median` of those before, `images`."""

    def __init__(
        self,
        source: Source,
        path: Path,
        *,
        seed: int,
        batch_size: int,
        repeats: int,
        unlabelled: Source | None = None,
        each: int = 0,
    ) -> None:
        """`batch_size`: of a step, over all processes; `repeats`: `augment.repeats`; `each`: how many of `unlabelled`
        come with each image."""
        self._source, self._path = source, path
        self._unlabelled, self._each = unlabelled, each
        self._seed, self._batch_size, self._repeats = seed, batch_size, repeats
        self._before: deque[float] = deque(maxlen=_WINDOW)
        self._written = 0

    def add(self, step: int, loss: float) -> None:
        """Take note of the loss of update `step`, counted from 1."""
        median = float(np.median(self._before)) if self._before else float("nan")
        finite = bool(np.isfinite(loss))
        if self._written < _MOST and (not finite or self._is_high(loss, median)):
            self._written += 1
            images = self.images(step)
            row = {"step": step, "loss": loss if finite else str(loss), "median": median, "images": images}
            with naming(self._path), self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            said = f"{loss:.4g} after a median of {median:.4g}" if finite else f"{loss}"
            look = f"unmask replay {self._path.parent} --step {step}"
            say(f"step {step}: the loss is {said}; its images are named in {self._path}, and shown by: {look}")
        if finite:
            self._before.append(loss)

    def images(self, step: int) -> list[str]:
        """Names of the images of a step, those in place of which others were shown too."""
        count = len(self._source)
        positions = range((step - 1) * self._batch_size, step * self._batch_size)
        rows = dict.fromkeys(sample_at(position, count, self._seed, self._repeats)[1] for position in positions)
        names = [printable(self._source.name(row)) for row in rows]
        if self._unlabelled is not None:
            names += unlabelled_names(self._unlabelled, positions, self._each, self._seed)
        return list(dict.fromkeys(names))

    def _is_high(self, loss: float, median: float) -> bool:
        if len(self._before) < _LEAST:
            return False
        before = np.array(self._before)
        deviation = float(np.median(np.abs(before - median)))
        upwards = (float(np.quantile(before, _MOST_BELOW)) - median) / 2
        return loss > median + _DEVIATIONS * max(deviation, upwards, 1e-3 * abs(median))
