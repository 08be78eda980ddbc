"""Two sets of images, or one and a model, must mean the same classes by the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.data.sources.base import Source
from unmask.errors import DataError
from unmask.report.progress import say

_SHOWN = 10
"""Names in a message; there may be thousands."""


def with_classes_of(source: Source, names: Sequence[str], what: str, other: str) -> Source:
    """`source`, its classes numbered as in `names`, which are those of `other`.

    They must be the same classes in the same order. Where classes are numbers, `source` may lack some: a list names
    the numbers that occur in it, not those that exist. Raises DataError with the difference otherwise.
    """
    own = source.class_names or ()
    if own == tuple(names):
        return source
    places = places_of(own, names)
    if places is None:
        check_same_classes(own, names, what, other)
        return source
    say(f"{what} has {len(own)} of the {len(names)} classes of {other}")
    return RenumberedSource(source, places, tuple(names))


def places_of(own: Sequence[str], names: Sequence[str]) -> NDArray[np.int64] | None:
    """(len(own),) where in `names` each class stands, if all are numbers and all are there; else None."""
    places = {name: place for place, name in enumerate(names)}
    if not all(name in places and name.lstrip("-").isdigit() for name in own):
        return None
    return np.array([places[name] for name in own], np.int64)


def check_same_classes(names: Sequence[str], others: Sequence[str], what: str, other: str) -> None:
    """Raise DataError with the difference unless both are the same classes in the same order."""
    if tuple(names) == tuple(others):
        return
    only, only_other = sorted(set(names) - set(others)), sorted(set(others) - set(names))
    if not only and not only_other:
        raise DataError(f"{what} and {other} have the same classes in another order; use the same order for both")
    raise DataError(
        f"{what} and {other} have different classes: only {what} {shortened(only)}, "
        f"only {other} {shortened(only_other)}"
    )


def shortened(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{list(names[:_SHOWN])}{more}"


class RenumberedSource:
    """The images of another source, their classes under other numbers."""

    def __init__(self, parent: Source, places: NDArray[np.int64], class_names: tuple[str, ...]) -> None:
        """`places`: (classes of the parent,) the number of each here."""
        self.parent = parent
        self.class_names = class_names
        self._places = places

    @property
    def labels(self) -> NDArray[np.int64] | None:
        return None if self.parent.labels is None else self._places[self.parent.labels]

    @property
    def label_sets(self) -> NDArray[np.bool_] | None:
        sets: NDArray[np.bool_] | None = getattr(self.parent, "label_sets", None)
        if sets is None:
            return None
        renumbered = np.zeros((len(sets), len(self.class_names)), bool)
        renumbered[:, self._places] = sets
        return renumbered

    def __len__(self) -> int:
        return len(self.parent)

    def read(self, index: int) -> bytes | NDArray[Any]:
        return self.parent.read(index)

    def name(self, index: int) -> str:
        return self.parent.name(index)

    def fingerprint(self) -> str:
        return self.parent.fingerprint()
