"""What a source leaves out of what it was given: counted by reason, said at once, and refused where it is much.

A loss of everything is noticed; that of a part, two class folders of four or the second half of a tar, would cost days
of training on the wrong images. So whatever opens a source counts here, and `open_source` speaks and judges.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unmask.data.sources.base import printable, whole
from unmask.data.sources.image_names import kind
from unmask.errors import DataError

MOST = 0.05
"""Share of the images and what may have been meant as such that is left out without asking."""
LINKS_TO_FOLDERS = "links to folders"
TEXT_LINKS = "links to folders that became text files"
HIDDEN = "hidden"
_SHOWN = 6
"""Reasons in a message."""


class Tally:
    """Counts what is left out."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str, bool]] = {}

    def add(self, reason: str, name: bytes, *, doubtful: bool = True, count: int = 1) -> None:
        """`doubtful`: it may have been meant as an image."""
        before, first, _ = self._found.get(reason, (0, "", doubtful))
        self._found[reason] = (before + count, first or os.fsdecode(name), doubtful)

    def add_file(self, name: bytes) -> None:
        """A file that is no image."""
        reason, doubtful = kind(name)
        self.add(reason, name, doubtful=doubtful)

    def merge(self, other: Mapping[str, tuple[int, str, bool]]) -> None:
        for reason, (count, first, doubtful) in other.items():
            self.add(reason, os.fsencode(first), doubtful=doubtful, count=count)

    def record(self) -> dict[str, Any]:
        """As JSON, for the index: reason -> [count, name of the first, whether it is doubtful]."""
        return {reason: list(found) for reason, found in self._found.items()}


@dataclass(frozen=True)
class LeftOut:
    """What one source left out."""

    found: tuple[tuple[str, int, str, bool], ...] = ()
    """Reason, count, name of the first, whether it may have been meant as an image; the most frequent ones first."""

    @classmethod
    def of(cls, source: Any) -> LeftOut:
        """What the index of a source tells, or itself; of a subset, that of the whole. Of any other all is taken."""
        source = whole(source)
        return cls.told(getattr(source, "index", source))

    @classmethod
    def told(cls, index: Any) -> LeftOut:
        """By the `meta` of a table."""
        record: dict[str, Any] = getattr(index, "meta", {}).get("left_out", {})
        rows = ((reason, int(count), str(first), bool(doubtful)) for reason, (count, first, doubtful) in record.items())
        return cls(tuple(sorted(rows, key=lambda row: (not row[3], -row[1], row[0]))))

    def __bool__(self) -> bool:
        return bool(self.found)

    def __str__(self) -> str:
        """Such as "2 links to folders (cat, …), 14 .xml (a/1.xml, …), 1 hidden (.cache)"."""
        shown = [
            f"{count} {reason} ({printable(first)}{', …' if count > 1 else ''})"
            for reason, count, first, _ in self.found[:_SHOWN]
        ]
        more = sum(count for _, count, _, _ in self.found[_SHOWN:])
        return ", ".join([*shown, *([f"{more} others"] if more else [])])

    def counts(self) -> dict[str, int]:
        """Reason -> count, for the record of a run."""
        return {reason: count for reason, count, _, _ in self.found}

    def check(self, taken: int, what: str, allowed: float | None) -> None:
        """Raise DataError where more is left out than `allowed` (None: MOST, and no link to a folder, which stands for
        any number of images)."""
        doubtful = LeftOut(tuple(row for row in self.found if row[3]))
        count = sum(count for _, count, _, _ in doubtful.found)
        links = any(reason in (LINKS_TO_FOLDERS, TEXT_LINKS) for reason, *_ in doubtful.found)
        if count <= (MOST if allowed is None else allowed) * (taken + count) and not (links and allowed is None):
            return
        real = any("link" in reason and reason != TEXT_LINKS for reason, *_ in doubtful.found)
        follow = " follow the links with #links=follow after the name," if real else ""
        raise DataError(
            f"{what}: {taken} images are taken and {count} that may be some are not: {doubtful};{follow} bring "
            "them into a form that is read, or do without them: #left_out=1 after the name"
        )
