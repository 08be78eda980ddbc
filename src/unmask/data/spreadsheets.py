"""CSV that a spreadsheet opens as it is meant, and that names are read back from as they were."""

from __future__ import annotations

import csv
import re
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from unmask.data.sources.base import from_printable

_FORMULA = re.compile("'*[=+\\-@\t\r＝＋－＠]")
"""How a cell begins that a spreadsheet may take for a formula, or that `cell` made out of one."""
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")
EVALUATED = ["file", "true", "predicted", "probability", "loss"]
"""Columns of `predictions.csv`."""


def cell(text: str) -> str:
    """`text` so that it is no formula: with an apostrophe before what begins like one. Numbers stay as they are."""
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def is_ours(header: list[str]) -> bool:
    """Whether this is the first line of a table that `unmask` wrote."""
    one_each = "probability_1" in header or "embedding_1" in header  # of `predict` and `embed`
    return header == EVALUATED or (header[:1] == ["file"] and one_each)


def name_in(text: str) -> str:
    """The name that stands in a cell of such a table as `cell(printable(name))`."""
    return from_printable(text[1:] if text.startswith("'") and _FORMULA.match(text) else text)


@contextmanager
def csv_file(path: Path, texts: Iterable[str]) -> Generator[TextIO]:
    """A file for `csv_rows`. `texts` are those that the cells may have: where one is not ASCII, the file begins with
    the mark (BOM) by which spreadsheets tell UTF-8."""
    encoding = "utf-8" if all(map(str.isascii, texts)) else "utf-8-sig"
    with path.open("w", encoding=encoding, newline="") as file:
        yield file


def csv_rows(file: TextIO, rows: Iterable[Iterable[Any]]) -> None:
    """Write rows, each text as a `cell`; None is an empty one."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([cell(value) if isinstance(value, str) else value for value in row] for row in rows)
