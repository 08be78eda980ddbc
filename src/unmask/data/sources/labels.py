"""Labels that are written out, as numbers or as names, to class numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_MOST_CLASSES = 1_000_000


def numbered(texts: Sequence[str]) -> tuple[NDArray[np.int64], list[str]]:
    """The class of each text, and the names of all classes.

    Where all texts are whole numbers, these are the classes, named by their numbers from 0 to the largest; else the
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
