"""Images named in a file: text, CSV or JSON. Paths are relative to that file's folder, or to another (`#root=`).

- Text: one path per line; a label may follow after a tab or, if the path ends in an image extension, after a space.
- CSV (RFC 4180; commas, semicolons, tabs or bars): a header with a column `file`, `path`, `image` or `filename`, and
  `label` or `class` if there are labels. In a table that `predict`, `embed` or `evaluate` wrote, names are what they
  were, though it writes some otherwise, see `unmask.data.spreadsheets`.
- JSON: a list of paths (the model zoo's `tot_ids.json`), of [path, label] or of {"path": …, "label": …}, or one of
  these a line (`.jsonl`); {"PATH": label, …}; COCO's annotations, the classes of an image being the categories that are
  in it; mmpretrain's annotation files.

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
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.data.sources import files, list_layouts
from unmask.data.sources.base import printable
from unmask.data.sources.image_names import EXTENSIONS
from unmask.data.sources.labels import TableLabels, check_not_yes_or_no, in_order, numbered
from unmask.data.sources.left_out import Tally
from unmask.data.sources.split_column import Part
from unmask.data.sources.table import Table, TableBuilder, cached
from unmask.data.spreadsheets import is_ours, name_in
from unmask.errors import DataError, StorageError
from unmask.report.progress import say

SUFFIXES = (".txt", ".lst", ".csv", ".tsv", ".json", ".jsonl")
_FILE_COLUMNS = ("path", "file", "filename", "file_name", "image")
_LABEL_COLUMNS = ("label", "labels", "class")
_EXTENSIONS = tuple(extension.decode() for extension in EXTENSIONS)

_SHOWN = 10
"""Columns in a message."""
_HEAD = 100
"""Characters at the start of a text, in which zeros tell of two bytes a character."""

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
        """Read the list. `options`: the columns `image` and `label`, the part `split`, the folder `root`, the file
        `classes`, the `encoding`. Raises DataError when it cannot be parsed or, with `labels`, when an image has none.
        """
        path = files.absolute(path)
        root = files.absolute(options["root"]) if "root" in options else path.rpartition("/")[0]
        state = files.state(path)
        reading = {name: options[name] for name in ("image", "label", "split", "encoding") if name in options}
        classes = in_order(options["classes"], what) if labels and "classes" in options else None
        identity = ["list", path, state.size, state.version, reading, classes]
        index = cached(identity, lambda: _index(path, reading, classes, what))
        if not len(index):
            raise DataError(f"{what} names no images")
        if twice := index.meta["twice"]:
            count, name = twice
            say(f"{what} names {count} images again, such as {printable(name)}; each time counts")
        if not labels:
            return cls(root, index, None)
        if index.meta["torn"] is not None:
            name, classes_of_it = index.meta["torn"]
            raise DataError(
                f"{what} names {printable(name)} twice, as {' and as '.join(map(printable, classes_of_it))}; give each "
                "image one entry, with all its classes (cat;dog) if it has several"
            )
        if index.meta["unlabelled"] is not None and not index.meta["several"]:
            raise DataError(
                f"{what} gives no label for {printable(index.meta['unlabelled'])}; give one for each image"
                f"{_form(path, index.meta['columns'])}"
            )
        counts, twice = index.meta["yes_or_no"]
        check_not_yes_or_no(set(index.meta["classes"]), set(counts), twice, f"{what}: its lists of labels")
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
        try:
            return files.read(self.place(index))
        except StorageError:
            raise
        except DataError as error:
            if "\\" in self.name(index) and os.sep != "\\":
                raise DataError(f"{error}; the list has \\ in paths, as on Windows, where here it is /") from None
            raise

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
    flat, marks = array("q"), array("q")
    unlabelled: str | None = None
    several = twice = False
    counts: set[int] = set()
    columns: list[str] = []
    left_out = Tally()
    for name, joined in _rows(path, reading, what, columns, left_out):
        if not name or "\0" in name:
            raise DataError(f"{what}: entry {len(rows) + 1} has no path")
        written = [text for part in joined.split(";") if (text := part.strip())]
        texts = list(dict.fromkeys(written))
        counts.add(len(written))
        twice = twice or len(texts) < len(written)
        if not texts and unlabelled is None:
            unlabelled = name
        several = several or len(texts) > 1
        flat.extend(ids.setdefault(text, len(ids)) for text in texts)
        rows.add(os.fsencode(name), len(flat))
        marks.append(hash(os.path.normpath(name)))
    values, names = numbered(list(ids), classes, what)
    yes_or_no = [sorted(counts)[:2], twice]
    about = {
        "yes_or_no": yes_or_no,
        "unlabelled": unlabelled,
        "several": several,
        "columns": columns,
        "left_out": left_out.record(),
    }
    table = rows.build(classes=names, **about)
    labels = values[np.frombuffer(flat, np.int64)] if flat else np.zeros(0, np.int64)
    table = Table(table.names, table.ends, table.columns | {"label": labels}, table.meta)
    return Table(table.names, table.ends, table.columns, table.meta | _repeated(table, np.frombuffer(marks, np.int64)))


def _repeated(table: Table, marks: NDArray[np.int64]) -> dict[str, Any]:
    """How many rows have the name of another, and the first whose classes differ. `marks`: (N,) a hash of each name."""
    order = np.argsort(marks, kind="stable")
    pairs = zip(
        order[:-1][again := marks[order[1:]] == marks[order[:-1]]].tolist(), order[1:][again].tolist(), strict=True
    )
    same = [(first, second) for first, second in pairs if _plain(table, first) == _plain(table, second)]

    def classes(row: int) -> list[str]:
        start, end = (int(table.columns["label_end"][each]) if each >= 0 else 0 for each in (row - 1, row))
        return sorted(table.meta["classes"][label] for label in table.columns["label"][start:end].tolist())

    torn = next(((first, second) for first, second in same if classes(first) != classes(second)), None)
    return {
        "twice": [len(same), os.fsdecode(table.name(same[0][0]))] if same else None,
        "torn": torn and (os.fsdecode(table.name(torn[0])), [";".join(classes(row)) or "none" for row in torn]),
    }


def _plain(table: Table, row: int) -> bytes:
    return os.path.normpath(table.name(row))


def _form(path: str, columns: Sequence[str]) -> str:
    """What an entry should look like, of a list that gives no label."""
    if columns:
        return f", or name the column with them, of {', '.join(columns[:_SHOWN])}, with #label=COLUMN"
    return ": a path, a blank or tab, and one label a line" if path.lower().endswith((".txt", ".lst")) else ""


def _rows(path: str, reading: Mapping[str, str], what: str, unused: list[str], left_out: Tally) -> Iterator[Row]:
    """`unused` gets the names of the columns where none is a label, `left_out` the rows of another `#split`."""
    text = _decoded(files.read(path), reading.get("encoding"), what)
    columns = (
        (reading["image"],) if "image" in reading else _FILE_COLUMNS,
        (reading["label"],) if "label" in reading else _LABEL_COLUMNS,
    )
    suffix = path.lower().rpartition(".")[2]
    part = Part(reading.get("split"), what)
    if suffix in ("csv", "tsv"):
        return _csv(text, *columns, part, what, unused, left_out)
    if suffix in ("json", "jsonl"):
        return _json(text, *columns, part, what, unused, left_out, by_line=suffix == "jsonl")
    if named := {"image", "label", "split"} & reading.keys():
        raise DataError(f"{what}: a list in plain text has no columns; leave out #{min(named)}=, or make it a .csv")
    return _text(text, what)


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
    text = data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    if 4 * text.count("\0", 0, _HEAD) > min(len(text), _HEAD):
        raise DataError(f"{what} is not UTF-8, and does not say what else; name its #encoding=, such as utf-16-le")
    return text


def _text(text: str, what: str) -> Iterator[Row]:
    for number, whole in enumerate(io.StringIO(text, newline=None), 1):
        if not (line := whole.strip()):
            continue
        name, tab, label = line.partition("\t")
        if "\t" in label:
            raise DataError(
                f"{what}: line {number} has more than a path and a label; a table is a .tsv whose first line names the "
                "columns"
            )
        if not tab and not line.lower().endswith(_EXTENSIONS):
            name, _, label = line.rpartition(" ")
            if not name.rstrip().lower().endswith(_EXTENSIONS):
                name, label = line, ""
        yield name.strip(), label.strip()


def _csv(
    text: str, file_names: Names, label_names: Names, part: Part, what: str, unused: list[str], left_out: Tally
) -> Iterator[Row]:
    if not text.strip():
        raise DataError(f"{what} is empty")
    text = re.sub(r"\A\s*sep=.\r?\n", "", text)  # Excel's
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
        unused += header if label is None else []
        split = part.column(header, None if label is None else header[label])
        split_place = None if split is None else header.index(split)
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                raise DataError(f"{what}: line {rows.line_num} has {len(row)} fields, the header {len(header)}")
            if split_place is None or part.takes(row[split_place]):
                yield meant(row[file]), "" if label is None else meant(row[label])
        left_out.merge(part.check(split).record())
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


def _json(
    text: str,
    file_names: Names,
    label_names: Names,
    part: Part,
    what: str,
    unused: list[str],
    left_out: Tally,
    *,
    by_line: bool,
) -> Iterator[Row]:
    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in fields if names.count(name) > 1)
            raise DataError(
                f"{what} has two entries called {printable(twice)}, of which JSON knows the last; leave one"
            )
        return fields

    decoder = json.JSONDecoder(object_pairs_hook=distinct)
    try:
        content: Any = _lines(text, decoder) if by_line else _values(text, decoder)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what} is not JSON: {error}") from None
    if not isinstance(content, dict | list):
        raise DataError(f"{what} must be a map from path to label, or a list of paths")
    if (rows := list_layouts.recognised(content, what)) is not None:
        part.column((), None)
        yield from rows
        return
    if isinstance(content, dict) and _field(content, file_names) and _field(content, label_names) is not None:
        content = [content]
    entries: list[Any] = list(content.items()) if isinstance(content, dict) else content
    fields = dict.fromkeys(key for entry in entries if isinstance(entry, dict) for key in entry)
    label = next((name for name in label_names if name in fields), None)
    unused += fields if label is None else []
    split = part.column(fields, label)
    for number, entry in enumerate(entries, 1):
        match entry:
            case str(name):
                yield name, ""
            case [str(name), label] | (str(name), label):
                _check_label(label, number, what)
                yield name, _joined(label)
            case {**fields}:
                name = _field(fields, file_names)
                if not isinstance(name, str):
                    raise DataError(f"{what}: entry {number} has no field {' or '.join(file_names[:2])}")
                label = _field(fields, label_names)
                _check_label(label, number, what)
                if split is None or part.takes(fields.get(split)):
                    yield name, _joined(label)
            case _:
                raise DataError(f"{what}: entry {number} is neither a path nor a path and a label")
    left_out.merge(part.check(split).record())


def _values(text: str, decoder: json.JSONDecoder) -> Any:
    """The value of a text, or a list of those of its lines, if each is an object: a .jsonl by another name."""
    try:
        return decoder.decode(text)
    except ValueError:
        with suppress(ValueError):
            return _lines(text, decoder)
        raise


def _lines(text: str, decoder: json.JSONDecoder) -> list[Any]:
    return [decoder.decode(line) for line in text.split("\n") if line.strip()]


def _check_label(label: Any, number: int, what: str) -> None:
    values: list[Any] = label if isinstance(label, list) else [label] if label is not None else []
    if odd := [value for value in values if not isinstance(value, str | int)]:
        of = "its label is" if odd[0] is label else "one of its labels is"
        raise DataError(f"{what}: entry {number}: {of} {type(odd[0]).__name__}, not a name or a whole number")


def _field(fields: Mapping[str, Any], names: Names) -> Any:
    return next((fields[name] for name in names if name in fields), None)


def _joined(label: Any) -> str:
    if label is None:
        return ""
    return ";".join(str(value) for value in label) if isinstance(label, list) else str(label)
