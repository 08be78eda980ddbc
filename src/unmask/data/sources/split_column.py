"""A column that says which part of a data set each row is of, such as `split` with train and val: one part is taken."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from unmask.data.sources.base import printable
from unmask.data.sources.left_out import Tally
from unmask.data.sources.table import split_of
from unmask.errors import DataError

COLUMNS = ("split", "subset", "partition", "set", "usage", "is_train", "is_valid", "is_val", "is_test")
ALL = "*"
"""In place of a part: the rows of each."""
_SHOWN = 6


class Part:
    """Takes the rows of one part, and counts."""

    def __init__(self, wanted: str | None, what: str) -> None:
        """`wanted`: `#split=`, which may be ALL; None: not given, which `check` refuses where there are several."""
        self._wanted = None if wanted is None else wanted.strip().casefold()
        self._what = what
        self._found: Counter[str] = Counter()

    def column(self, there: Iterable[str], label: str | None) -> str | None:
        """The column of these that tells, if it is not `label`. Raises DataError where one is asked for and none is
        there."""
        names = [name for name in there if name != label]
        lower = {name.lower(): name for name in reversed(names)}
        found = next((lower[name] for name in COLUMNS if name in lower), None)
        if found is None and self._wanted not in (None, ALL):
            raise DataError(f"{self._what}: nothing there is called {', '.join(COLUMNS)}; leave out #split=")
        return found

    def takes(self, value: object) -> bool:
        """Whether a row with this in the column is taken."""
        text = "" if value is None else str(value).strip()
        self._found[text] += 1
        return self._wanted in (None, ALL, text.casefold())

    def check(self, column: str | None) -> Tally:
        """What was not taken. Raises DataError where nothing was, or where parts were mixed without being asked for."""
        shown = ", ".join(printable(value) or "nothing" for value in sorted(self._found)[:_SHOWN])
        taken = sum(count for value, count in self._found.items() if self._wanted in (None, ALL, value.casefold()))
        if self._found and not taken:
            raise DataError(f"{self._what}: no row is of #split={self._wanted}; its column {column} has {shown}")
        if self._wanted is None and len(self._found) > 1 and all(map(_is_part, self._found)):
            one = next((value for value in sorted(self._found) if "train" in (split_of(value) or "")), min(self._found))
            raise DataError(
                f"{self._what}: its column {column} tells {shown} apart; take one with #split={printable(one)} after "
                f"the name, or all with #split={ALL}"
            )
        left_out = Tally()
        if count := self._found.total() - taken:
            others = sorted(value for value in self._found if value.casefold() != self._wanted)
            left_out.add(
                f"rows of another {column}", others[0].encode("utf-8", "surrogateescape"), doubtful=False, count=count
            )
        return left_out


def _is_part(value: str) -> bool:
    return split_of(value) is not None or re.fullmatch(r"(?i)\d|true|false", value) is not None
