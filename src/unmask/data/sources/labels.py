"""Turns labels written as numbers or as names into class numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unmask.data.sources.table import Table

_MOST_CLASSES = 1_000_000


def numbered(texts: Sequence[str]) -> tuple[NDArray[np.int64], list[str]]:
    """The class of each text, and the names of all classes.

    If all texts are whole numbers, these are the classes, named by their numbers from 0 to the largest; else the
    classes are the distinct texts in byte order.
    """
    if all(text.isascii() and text.isdigit() and len(text) < 10 for text in texts):
        values = np.array([int(text) for text in texts], np.int64)
        most = int(values.max(initial=-1))
        if most < _MOST_CLASSES:
            return values, [str(number) for number in range(most + 1)]
    names = sorted(set(texts), key=lambda text: text.encode("utf-8", "surrogateescape"))
    ranks = {name: rank for rank, name in enumerate(names)}
    return np.array([ranks[text] for text in texts], np.int64), names


class TableLabels:
    """Labels of a source whose index has the columns `label`, all in a row, and `label_end`, where each ends."""

    index: Table
    class_names: tuple[str, ...] | None

    @property
    def labels(self) -> NDArray[np.int64] | None:
        if self.class_names is None or len(self.index.columns["label"]) != len(self.index):
            return None
        return self.index.columns["label"]

    @property
    def label_sets(self) -> NDArray[np.bool_] | None:
        """(N, C) which classes each image has, if some have several; else None."""
        if self.class_names is None or self.labels is not None:
            return None
        sets = np.zeros((len(self.index), len(self.class_names)), bool)
        counts = np.diff(self.index.columns["label_end"], prepend=0)
        sets[np.repeat(np.arange(len(self.index)), counts), self.index.columns["label"]] = True
        return sets
