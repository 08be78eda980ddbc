"""Labels written as numbers or as names, and the class numbers they become."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from unmask.data.sources import files
from unmask.data.sources.base import printable
from unmask.data.sources.table import Table
from unmask.errors import DataError

_NUMBER = re.compile(r"[+-]?[0-9]{1,30}(\.[0-9]{0,30})?")
_MISSING = {"nan", "na", "n/a", "<na>", "null", "none", "nat", "-1", "unlabeled", "unlabelled"}
"""What tables hold where a label is missing, in lower case."""
_BETWEEN = re.compile(r"[\s_-]+")


def check_not_yes_or_no(texts: set[str], counts: set[int], twice: bool, what: str) -> None:
    """Raise DataError where the lists of classes may say yes or no to each class: all of one length, of 0 and 1.

    `texts`: all that is in them; `counts`: their lengths; `twice`: whether one names a class twice.
    """
    if texts <= {"0", "1"} and len(counts) == 1 and (twice or counts == {2}):
        found = "name a class twice" if twice else "may be classes, and may be no and yes"
        raise DataError(
            f"{what} {found}, so they are not surely the classes of an image; where they say yes or no to each class, "
            "write the numbers of those with yes, else the names of the classes"
        )


def alike_names(names: Sequence[str]) -> list[str]:
    """The first of them that may be one class written in several ways: `Cat` and `cat`, `1` and `01`, `0` and `0.0`."""
    groups: dict[str | Decimal, list[str]] = {}
    for name in names:
        as_number = _NUMBER.fullmatch(name.strip())
        groups.setdefault(Decimal(name) if as_number else _BETWEEN.sub(" ", name.casefold()).strip(), []).append(name)
    return next((group for group in groups.values() if len(group) > 1), [])


def doubtful_names(names: Sequence[str]) -> str:
    """What the classes may be instead of classes, with examples; empty where nothing is in doubt."""
    for between in "|,":
        parts = {name: [part.strip() for part in name.split(between)] for name in names}
        counts = Counter(part for each in parts.values() for part in set(each))
        of_several = [n for n, each in parts.items() if len(each) > 1 and all(counts[part] > 1 for part in each)]
        if of_several or (between == "|" and (of_several := [n for n, each in parts.items() if len(each) > 1])):
            return f"{_some(of_several)} may be several classes of an image, which are written cat;dog"
    if broken := [n for n in names if _NUMBER.fullmatch(n) and Decimal(n) % 1]:
        return f"{_some(broken)} may be measured, which no class is"
    if missing := [name for name in names if name.lower() in _MISSING]:
        return f"{missing[0]} may stand for a label that is missing, whose images are to be left out"
    return ""


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(printable, names[:3])) + (", …" if len(names) > 3 else "")


def numbered(
    texts: Sequence[str], classes: Sequence[str] | None = None, what: str = ""
) -> tuple[NDArray[np.int64], list[str]]:
    """The class of each text, and the names of all classes.

    The classes are the distinct texts: in order of the numbers where all are numbers, else in byte order; names
    that differ only in how their accents are written (Unicode's NFC and NFD) are the same. Or they are `classes`, in
    that order: then DataError is raised for a text that is none of them. It is raised for an empty text too.
    """
    written = [unicodedata.normalize("NFC", text) for text in texts]
    if not all(text.strip() for text in written):
        raise DataError(f"{what}: a label is empty; give each image a class, or leave the image out")
    if classes is None:
        if set(written) == {"-1"}:
            raise DataError(f"{what}: all labels are -1, which stands for none; use labelled images")
        names = sorted(set(written), key=lambda text: text.encode("utf-8", "surrogateescape"))
        if all(_NUMBER.fullmatch(text) for text in names):
            names.sort(key=Decimal)
    else:
        names = list(classes)
    ranks = {name: rank for rank, name in enumerate(names)}
    if unknown := [text for text in written if text not in ranks]:
        raise DataError(f"{what}: the label {unknown[0]} is none of the {len(names)} classes; add it to them")
    return np.array([ranks[text] for text in written], np.int64), names


def in_order(path: str, what: str) -> list[str]:
    """The classes in a text file, one a line. Raises DataError."""
    try:
        lines = files.read(files.absolute(path)).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{what}: the class list {path} is not UTF-8") from None
    names = [unicodedata.normalize("NFC", line.strip()) for line in lines if line.strip()]
    if repeated := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise DataError(f"{what}: the class list {path} names {repeated[0]} twice")
    return names


class TableLabels:
    """Labels of a source whose index has the columns `label`, all in a row, and `label_end`, where each ends."""

    index: Table
    class_names: tuple[str, ...] | None

    @cached_property
    def _one_each(self) -> bool:
        ends = self.index.columns["label_end"]
        return np.array_equal(ends, np.arange(1, len(ends) + 1))

    @property
    def labels(self) -> NDArray[np.int64] | None:
        return None if self.class_names is None or not self._one_each else self.index.columns["label"]

    @property
    def label_sets(self) -> NDArray[np.bool_] | None:
        """(N, C) which classes each image has, if some have several; else None."""
        if self.class_names is None or self.labels is not None:
            return None
        sets = np.zeros((len(self.index), len(self.class_names)), bool)
        counts = np.diff(self.index.columns["label_end"], prepend=0)
        sets[np.repeat(np.arange(len(self.index)), counts), self.index.columns["label"]] = True
        return sets
