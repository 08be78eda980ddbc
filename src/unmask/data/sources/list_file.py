"""Images named in a file: text, CSV or JSON. Paths are relative to that file's folder, or to another (`#root=`).

- Text: one path per line; a label may follow after a tab or, if the path ends in an image extension, after a space.
- CSV (RFC 4180; commas, semicolons, tabs or bars): a header with a column `file`, `path`, `image` or `filename`, and
  `label` or `class` if there are labels. In a table that `predict`, `embed` or `evaluate` wrote, names are what they
  were, though it writes some otherwise, see `unmask.data.spreadsheets`.
- JSON: a list of paths (the model zoo's `tot_ids.json`), of [path, label] or of {"path": …, "label": …};
  {"PATH": label, …}; COCO's annotations, the classes of an image being the categories that are in it; mmpretrain's
  annotation files.

Several classes of one image are written `cat;dog` (in JSON also as a list). Where any image has several, one without
has none of them.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unmask.data.sources import files, list_layouts
from unmask.data.sources.base import printable
from unmask.data.sources.image_names import EXTENSIONS
from unmask.data.sources.labels import TableLabels, in_order, numbered
from unmask.data.sources.table import Table, TableBuilder, cached
from unmask.data.spreadsheets import is_ours, name_in
from unmask.errors import DataError

SUFFIXES = (".txt", ".lst", ".csv", ".tsv", ".json")
_FILE_COLUMNS = ("path", "file", "filename", "file_name", "image")
_LABEL_COLUMNS = ("label", "labels", "class")
_EXTENSIONS = tuple(extension.decode() for extension in EXTENSIONS)

_SHOWN = 10
"""Columns in a message."""

Row = tuple[str, str]
"""Path, and labels joined by semicolons ("" without)."""
Names = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ListFileSource(TableLabels):
    """The files that a list names, in its order."""

    root: str
    """The folder in which relative paths start."""
    index: Table
    class_names: tuple[str, ...] | None

    @classmethod
    def open(cls, path: str, options: Mapping[str, str], *, what: str, labels: bool) -> ListFileSource:
        """Read the list. `options`: the columns `image` and `label`, the folder `root`, the file `classes`, the
        `encoding`. Raises DataError when it cannot be parsed or, with `labels`, when an image has none."""
        path = files.absolute(path)
        root = files.absolute(options["root"]) if "root" in options else path.rpartition("/")[0]
        state = files.state(path)
        reading = {name: options[name] for name in ("image", "label", "encoding") if name in options}
        classes = in_order(options["classes"], what) if labels and "classes" in options else None
        identity = ["list", path, state.size, state.version, reading, classes]
        index = cached(identity, lambda: _index(path, reading, classes, what))
        if not len(index):
            raise DataError(f"{what} names no images")
        if not labels:
            return cls(root, index, None)
        if index.meta["unlabelled"] is not None and not index.meta["several"]:
            raise DataError(f"{what} gives no label for {printable(index.meta['unlabelled'])}; give one for each image")
        if not index.meta["classes"]:
            raise DataError(f"{what} gives no labels")
        if (
            broken := next((name for name in index.meta["classes"] if re.search("[\udc80-\udcff]", name)), None)
        ) is not None:
            raise DataError(
                f"{what}: the label {printable(broken)} is not UTF-8; name the encoding of the file, such as "
                "#encoding=cp1252 or #encoding=gb18030 after the name"
            )
        return cls(root, index, tuple(index.meta["classes"]))

    def __len__(self) -> int:
        return len(self.index)

    def read(self, index: int) -> bytes:
        return files.read(self.place(index))

    def name(self, index: int) -> str:
        return os.fsdecode(self.index.name(index))

    def place(self, index: int) -> str:
        return files.beside(f"{self.root}/", self.name(index))

    def fingerprint(self) -> str:
        return self.index.fingerprint("label", "label_end")


def _index(path: str, reading: Mapping[str, str], classes: Sequence[str] | None, what: str) -> Table:
    """Names; the column `label` holds the classes of all images one after the other, `label_end` where each end."""
    rows = TableBuilder("label_end")
    ids: dict[str, int] = {}
    flat = array("q")
    unlabelled: str | None = None
    several = False
    for name, joined in _rows(path, reading, what):
        if not name or "\0" in name:
            raise DataError(f"{what}: entry {len(rows) + 1} has no path")
        texts = list(dict.fromkeys(text for part in joined.split(";") if (text := part.strip())))
        if not texts and unlabelled is None:
            unlabelled = name
        several = several or len(texts) > 1
        flat.extend(ids.setdefault(text, len(ids)) for text in texts)
        rows.add(os.fsencode(name), len(flat))
    values, names = numbered(list(ids), classes, what)
    table = rows.build(classes=names, unlabelled=unlabelled, several=several)
    labels = values[np.frombuffer(flat, np.int64)] if flat else np.zeros(0, np.int64)
    return Table(table.names, table.ends, table.columns | {"label": labels}, table.meta)


def _rows(path: str, reading: Mapping[str, str], what: str) -> Iterator[Row]:
    text = _decoded(files.read(path), reading.get("encoding"), what)
    columns = (
        (reading["image"],) if "image" in reading else _FILE_COLUMNS,
        (reading["label"],) if "label" in reading else _LABEL_COLUMNS,
    )
    suffix = path.lower().rpartition(".")[2]
    if suffix in ("csv", "tsv"):
        return _csv(text, *columns, what)
    if suffix == "json":
        return _json(text, *columns, what)
    if named := {"image", "label"} & reading.keys():
        raise DataError(f"{what}: a list in plain text has no columns; leave out #{min(named)}=, or make it a .csv")
    return _text(text)


def _decoded(data: bytes, encoding: str | None, what: str) -> str:
    """UTF-8, or UTF-16 that says so; names of files may have any bytes, which are kept."""
    try:
        if encoding is not None:
            return data.decode(encoding).removeprefix("\ufeff")
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return data.decode("utf-16")
    except LookupError:
        raise DataError(f"{what}: there is no encoding {encoding}; such as utf-8, cp1252, gb18030, utf-16") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{what} is not {encoding or 'UTF-16'} (at byte {error.start}); name another #encoding="
        ) from None
    return data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")


def _text(text: str) -> Iterator[Row]:
    for line in io.StringIO(text, newline=None):
        if not (line := line.strip()):
            continue
        name, tab, label = line.partition("\t")
        if not tab and not line.lower().endswith(_EXTENSIONS):
            name, _, label = line.rpartition(" ")
            if not name.rstrip().lower().endswith(_EXTENSIONS):
                name, label = line, ""
        yield name.strip(), label.strip()


def _csv(text: str, file_names: Names, label_names: Names, what: str) -> Iterator[Row]:
    try:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
        header = [name.strip() for name in next(rows, [])]
        columns = {name.lower(): number for number, name in reversed(list(enumerate(header)))}
        meant = name_in if is_ours(header) else str.strip
        file = _column(columns, file_names, header, what)
        label = _column(columns, label_names, header, what, needed=len(label_names) == 1)
        if file is None:
            raise DataError(
                f"{what} has no column path or file; its first line must name the columns, such as path,label, or name "
                f"one of {', '.join(header[:_SHOWN])} with #image=COLUMN"
            )
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                raise DataError(f"{what}: line {rows.line_num} has {len(row)} fields, the header {len(header)}")
            yield meant(row[file]), "" if label is None else meant(row[label])
    except csv.Error as error:
        raise DataError(f"{what} is not CSV: {error}") from None


def _delimiter(text: str) -> str:
    """The most frequent of the usual ones in the header, outside of quotes."""
    header = re.sub(r'"(?:[^"]|"")*"', "", text).lstrip("\r\n").partition("\n")[0]
    return max(",;\t|", key=header.count)


def _column(
    columns: Mapping[str, int], names: Names, header: Sequence[str], what: str, *, needed: bool = False
) -> int | None:
    found = next((columns[name.lower()] for name in names if name.lower() in columns), None)
    if found is not None and [name.lower() for name in header].count(header[found].lower()) > 1:
        raise DataError(f"{what} has two columns called {header[found]}; rename the one that is not meant")
    if found is None and needed:
        raise DataError(f"{what} has no column {names[0]}; there are {', '.join(header[:_SHOWN])}")
    return found


def _json(text: str, file_names: Names, label_names: Names, what: str) -> Iterator[Row]:
    try:
        content: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what} is not JSON: {error}") from None
    if not isinstance(content, dict | list):
        raise DataError(f"{what} must be a map from path to label, or a list of paths")
    if (rows := list_layouts.recognised(content, what)) is not None:
        yield from rows
        return
    entries: list[Any] = list(content.items()) if isinstance(content, dict) else content
    for number, entry in enumerate(entries, 1):
        match entry:
            case str(name):
                yield name, ""
            case [str(name), label] | (str(name), label) if _is_label(label):
                yield name, _joined(label)
            case {**fields}:
                name = _field(fields, file_names)
                if not isinstance(name, str):
                    raise DataError(f"{what}: entry {number} has no field {' or '.join(file_names[:2])}")
                label = _field(fields, label_names)
                if not _is_label(label):
                    raise DataError(
                        f"{what}: entry {number}: its label is {type(label).__name__}, not a name or a number"
                    )
                yield name, _joined(label)
            case _:
                raise DataError(f"{what}: entry {number} is neither a path nor a path and a label")


def _is_label(label: Any) -> bool:
    plain = label is None or isinstance(label, str | int)
    return plain or (isinstance(label, list) and all(isinstance(value, str | int) for value in label))


def _field(fields: Mapping[str, Any], names: Names) -> Any:
    return next((fields[name] for name in names if name in fields), None)


def _joined(label: Any) -> str:
    if label is None:
        return ""
    return ";".join(str(value) for value in label) if isinstance(label, list) else str(label)
