"""Keeps account of what a run is shown that is no data: nodata, NaN, infinity."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from unmask.data.batch import Batch
from unmask.report.progress import say

MOSTLY = 0.5
"""Share of an image's values from which on it is said to be mostly no data."""


def count(batches: Iterable[Batch]) -> NDArray[np.float64]:
    """(2,) Of images of one size: how many are missing in all, as the sum of their shares, and how many mostly."""
    shares = [batch.gaps for batch in batches if batch.gaps is not None]
    return np.array([sum(of.sum(dtype=np.float64) for of in shares), sum((of > MOSTLY).sum() for of in shares)])


class Gaps:
    """Says when the first are met, and in the end how many there were."""

    def __init__(self) -> None:
        self._missing = np.zeros(2)
        self._shown = 0

    def add(self, missing: NDArray[np.float64], shown: int) -> None:
        """`missing`: (2,) as `count` has it, of all processes, among `shown` images."""
        if missing[0] and not self._missing[0]:
            say(
                "some values are no data (data.nodata, NaN, infinity): filled with data.mean, and not asked of a "
                "masked autoencoder; how many there were is said in the end"
            )
        self._missing += missing
        self._shown += shown

    def tell(self) -> None:
        missing, mostly = self._missing
        if missing:
            say(
                f"no data: {missing / self._shown:.2%} of the values shown; {mostly:.0f} of {self._shown} images shown "
                "were mostly that, of which `unmask check` tells the names"
            )
