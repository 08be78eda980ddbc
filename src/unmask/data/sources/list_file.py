"""Images named in a file: text, CSV or JSON. Paths are relative to that file's folder, or to another (`#root=`).

- Text: one path per line; a label may follow after a tab or, if the path ends in an image extension, after a space.
- CSV: a header with a column `file`, `path`, `image` or `filename`, and `label` or `class` if there are labels.
- JSON: a list of paths (the model zoo's `tot_ids.json`), of [path, label] or of {"path": …, "label": …}; or
  {"PATH": label, …}.

Several classes of one image are written `cat;dog` (in JSON also as a list).
"""

from __future__ import annotations

import csv
import io
import json
import os
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from unmask.data.sources import files
from unmask.data.sources.base import printable
from unmask.data.sources.folder_scan import EXTENSIONS
from unmask.data.sources.labels import TableLabels, numbered
from unmask.data.sources.table import Table, TableBuilder, cached
from unmask.errors import DataError

SUFFIXES = (".txt", ".lst", ".csv", ".tsv", ".json")
_FILE_COLUMNS = ("path", "file", "filename", "file_name", "image")
_LABEL_COLUMNS = ("label", "labels", "class")
_EXTENSIONS = tuple(extension.decode() for extension in EXTENSIONS)

Row = tuple[str, str]
"""Path, and labels joined by semicolons ("" without)."""


@dataclass(frozen=True, eq=False)
class ListFileSource(TableLabels):
    """The files that a list names, in its order."""

    root: str
    index: Table
    class_names: tuple[str, ...] | None

    @classmethod
    def open(cls, path: str, *, what: str, labels: bool, root: str | None = None) -> ListFileSource:
        """Read the list, whose paths are relative to `root` (None: its folder).

        Raises DataError when it cannot be parsed or, with `labels`, when an image has none.
        """
        path = files.absolute(path)
        root = path.rpartition("/")[0] if root is None else files.absolute(root)
        state = files.state(path)
        index = cached(["list", path, state.size, state.version], lambda: _index(path, what))
        if not len(index):
            raise DataError(f"{what} names no images")
        if not labels:
            return cls(root, index, None)
        if (unlabelled := index.meta["unlabelled"]) is not None:
            raise DataError(f"{what} gives no label for {printable(unlabelled)}; give one for each image")
        return cls(root, index, tuple(index.meta["classes"]))

    def __len__(self) -> int:
        return len(self.index)

    def read(self, index: int) -> bytes:
        return files.read(files.beside(f"{self.root}/", self.name(index)))

    def name(self, index: int) -> str:
        return os.fsdecode(self.index.name(index))

    def fingerprint(self) -> str:
        return self.index.fingerprint("label", "label_end")


def _index(path: str, what: str) -> Table:
    """Names; the column `label` holds the classes of all images one after the other, `label_end` where each end."""
    rows = TableBuilder("label_end")
    ids: dict[str, int] = {}
    flat = array("q")
    unlabelled: str | None = None
    for name, joined in _rows(path, what):
        if not name or "\0" in name:
            raise DataError(f"{what}: entry {len(rows) + 1} has no path")
        texts = list(dict.fromkeys(text for part in joined.split(";") if (text := part.strip())))
        if not texts and unlabelled is None:
            unlabelled = name
        flat.extend(ids.setdefault(text, len(ids)) for text in texts)
        rows.add(os.fsencode(name), len(flat))
    values, names = numbered(list(ids))
    table = rows.build(classes=names, unlabelled=unlabelled)
    labels = values[np.frombuffer(flat, np.int64)] if flat else np.zeros(0, np.int64)
    return Table(table.names, table.ends, table.columns | {"label": labels}, table.meta)


def _rows(path: str, what: str) -> Iterator[Row]:
    suffix = path.lower().rpartition(".")[2]
    read: Callable[[str, str], Iterator[Row]] = {"csv": _csv, "tsv": _csv, "json": _json}.get(suffix, _text)
    return read(files.read(path).decode("utf-8", "surrogateescape").removeprefix("\ufeff"), what)


def _text(text: str, what: str) -> Iterator[Row]:
    for line in io.StringIO(text, newline=None):
        if not (line := line.strip()):
            continue
        name, tab, label = line.partition("\t")
        if not tab and not line.lower().endswith(_EXTENSIONS):
            name, _, label = line.rpartition(" ")
            if not name.rstrip().lower().endswith(_EXTENSIONS):
                name, label = line, ""
        yield name.strip(), label.strip()


def _csv(text: str, what: str) -> Iterator[Row]:
    try:
        header = text.partition("\n")[0]
        dialect = csv.Sniffer().sniff(header, ",;\t|") if any(c in header for c in ",;\t|") else csv.excel
        rows = csv.DictReader(io.StringIO(text, newline=""), dialect=dialect)
        columns = {name.strip().lower(): name for name in rows.fieldnames or ()}
        file = next((columns[name] for name in _FILE_COLUMNS if name in columns), None)
        label = next((columns[name] for name in _LABEL_COLUMNS if name in columns), None)
        if file is None:
            raise DataError(
                f"{what} has no column path or file; its first line must name the columns, such as path,label"
            )
        for row in rows:
            yield (row[file] or "").strip(), (row[label] or "").strip() if label else ""
    except csv.Error as error:
        raise DataError(f"{what} is not CSV: {error}") from None


def _json(text: str, what: str) -> Iterator[Row]:
    try:
        content: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what} is not JSON: {error}") from None
    if not isinstance(content, dict | list):
        raise DataError(f"{what} must be a map from path to label, or a list of paths")
    entries: list[Any] = list(content.items()) if isinstance(content, dict) else content
    for number, entry in enumerate(entries, 1):
        match entry:
            case str(name):
                yield name, ""
            case [str(name), label] | (str(name), label):
                yield name, _joined(label)
            case {**fields}:
                name = _field(fields, _FILE_COLUMNS)
                if not isinstance(name, str):
                    raise DataError(f"{what}: entry {number} has no field path or file")
                yield name, _joined(_field(fields, _LABEL_COLUMNS))
            case _:
                raise DataError(f"{what}: entry {number} is neither a path nor a path and a label")


def _field(fields: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((fields[name] for name in names if name in fields), None)


def _joined(label: Any) -> str:
    if label is None:
        return ""
    return ";".join(str(value) for value in label) if isinstance(label, list) else str(label)
