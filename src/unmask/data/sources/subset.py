"""A few labelled images of each class: the low-data runs that pretraining is for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.data.rng import Op, generator
from unmask.data.sources import files
from unmask.data.sources.base import Source, printable
from unmask.errors import DataError
from unmask.report.progress import say


class SubsetSource:
    """Some images of another source, renumbered from 0."""

    def __init__(self, parent: Source, indices: NDArray[np.int64]) -> None:
        self.parent = parent
        self.indices = indices

    @property
    def labels(self) -> NDArray[np.int64] | None:
        return None if self.parent.labels is None else self.parent.labels[self.indices]

    @property
    def label_sets(self) -> NDArray[np.bool_] | None:
        """(N, C) which classes each image has, where the other source gives several to some."""
        sets: NDArray[np.bool_] | None = getattr(self.parent, "label_sets", None)
        return None if sets is None else sets[self.indices]

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self.parent.class_names

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> bytes | NDArray[Any]:
        return self.parent.read(int(self.indices[index]))

    def name(self, index: int) -> str:
        return self.parent.name(int(self.indices[index]))

    def fingerprint(self) -> str:
        return hashlib.sha256(self.parent.fingerprint().encode() + self.indices.astype("<i8").tobytes()).hexdigest()


class BothSource:
    """The images of one source and then those of another, without labels."""

    labels: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] | None = None

    def __init__(self, first: Source, second: Source) -> None:
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def read(self, index: int) -> bytes | NDArray[Any]:
        source, index = self._place(index)
        return source.read(index)

    def name(self, index: int) -> str:
        source, index = self._place(index)
        return source.name(index)

    def fingerprint(self) -> str:
        return hashlib.sha256((self.first.fingerprint() + self.second.fingerprint()).encode()).hexdigest()

    def _place(self, index: int) -> tuple[Source, int]:
        count = len(self.first)
        return (self.first, index) if index < count else (self.second, index - count)


class SpansSource:
    """The images in some ranges of another source, without labels: of any number, at no memory."""

    labels = None
    class_names = None

    def __init__(self, parent: Source, spans: Sequence[range]) -> None:
        self.parent = parent
        self._starts = np.array([span.start for span in spans], np.int64)
        self._ends = np.cumsum([len(span) for span in spans])
        """One past the last position of each."""

    def rows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where in the other source the images at these positions are; anything for positions that are none."""
        which = np.minimum(np.searchsorted(self._ends, positions, "right"), len(self._ends) - 1)
        lengths = np.diff(self._ends, prepend=0)
        return self._starts[which] + positions - (self._ends - lengths)[which]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, index: int) -> bytes | NDArray[Any]:
        return self.parent.read(self._row(index))

    def name(self, index: int) -> str:
        return self.parent.name(self._row(index))

    def fingerprint(self) -> str:
        return hashlib.sha256(
            self.parent.fingerprint().encode() + self._starts.tobytes() + self._ends.tobytes()
        ).hexdigest()

    def _row(self, index: int) -> int:
        return int(self.rows(np.array(index)))


def subset(source: Source, labels_per_class: int, seed: int) -> SubsetSource:
    """The same number of images of each class, chosen at random by `seed`, in the order of `source`.

    A larger subset of the same seed contains the smaller ones. Raises DataError when a class has too few images.
    """
    if source.labels is None or source.class_names is None:
        raise DataError("data.labels_per_class needs labels, and this source has none; use class folders")
    chosen: list[NDArray[np.int64]] = []
    for label, name in enumerate(source.class_names):
        members = np.flatnonzero(source.labels == label)
        if len(members) < labels_per_class:
            raise DataError(
                f"class {name!r} has {len(members)} images, fewer than the {labels_per_class} labels per class; ask "
                f"for {len(members)} or fewer, or add images"
            )
        chosen.append(generator(seed, 0, label, Op.SUBSET).permutation(members)[:labels_per_class])
    return SubsetSource(source, np.sort(np.concatenate(chosen)))


def rest_of(subset: SubsetSource) -> SubsetSource:
    """The images of the other source that are not in `subset`."""
    others = np.setdiff1d(np.arange(len(subset.parent)), subset.indices)
    return SubsetSource(subset.parent, others)


def without(source: Source, path: str) -> Source:
    """`source` less the images whose names stand in the text file `path`, one a line, as `unmask check` writes it.

    Raises DataError where that leaves none, or where none of the names is there: then it is the list of other images.
    """
    names = set(files.read(files.absolute(path)).decode("utf-8", "surrogateescape").splitlines()) - {""}
    kept = np.array([printable(source.name(index)) not in names for index in range(len(source))], bool)
    left = int((~kept).sum())
    if names and not left:
        raise DataError(f"data.exclude={path}: none of its {len(names)} names is in data.train, such as {min(names)}")
    if not kept.any():
        raise DataError(f"data.exclude={path} excludes all {len(source)} images of data.train")
    more = f", {len(names) - left} of its names are not there" if len(names) > left else ""
    say(f"data.exclude={path}: {left} of {len(source)} images are left out{more}")
    return SubsetSource(source, np.flatnonzero(kept))


def spread(source: Source, count: int) -> Source:
    """`count` images spread evenly over the source, which is often in the order of its classes."""
    return SubsetSource(source, np.unique(np.linspace(0, len(source) - 1, count).astype(np.int64)))
