"""Names and numbers of all images of a source, in arrays; kept in a cache file and mapped from it.

A million images take some 60 MB here, and all loader processes share them.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.data.sources.base import printable
from unmask.errors import DataError

_VERSION = 2


@dataclass(frozen=True, eq=False)
class Table:
    """One row for each image: a name, and numbers in columns."""

    names: NDArray[np.uint8]
    """Names one after the other, without separators."""
    ends: NDArray[np.int64]
    """(N,) where each name ends in `names`."""
    columns: dict[str, NDArray[np.int64]]
    meta: dict[str, Any] = field(default_factory=dict[str, Any])
    """What else is known, as JSON."""
    token: str = ""
    """Names this very table: a cache file may be replaced while the arrays mapped from it are in use."""
    cache: Path | None = None
    """File these arrays are mapped from."""

    def __len__(self) -> int:
        return len(self.ends)

    def __reduce__(self) -> tuple[Any, ...]:
        # Loader processes map the same file instead of receiving a copy.
        if self.cache is not None and (current := load(self.cache)) is not None and current.token == self.token:
            return _reopen, (self.cache, self.token)
        columns = {key: np.array(values) for key, values in self.columns.items()}
        return Table, (np.array(self.names), np.array(self.ends), columns, self.meta)

    def name(self, index: int) -> bytes:
        if not 0 <= index < len(self.ends):
            raise IndexError(f"image {index} of {len(self.ends)}")
        start = int(self.ends[index - 1]) if index else 0
        return self.names[start : int(self.ends[index])].tobytes()

    def span(self, prefix: bytes) -> slice:
        """The rows below the folder `prefix`, in a table in byte order."""
        # "0" is the byte after "/".
        return slice(*(bisect_left(range(len(self)), prefix + end, key=self.name) for end in (b"/", b"0")))

    def fingerprint(self, *columns: str) -> str:
        """SHA-256 over the names and these columns."""
        digest = hashlib.sha256()
        for values in (self.names, self.ends, *(self.columns[key] for key in columns)):
            digest.update(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).data)
        return digest.hexdigest()

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Table:
        """These rows, in this order."""
        if rows.dtype == np.bool_:
            rows = np.flatnonzero(rows)
        return self.renamed(_arrow(self).take(rows), {key: column[rows] for key, column in self.columns.items()})

    def sorted(self) -> Table:
        """In byte order of the names; rows of one name keep their order."""
        import pyarrow.compute as pc  # a second, needed only while an index is built

        return self.take(pc.call_function("array_sort_indices", [_arrow(self)]).to_numpy().astype(np.int64))

    def repeated(self) -> NDArray[np.bool_]:
        """(N,) which rows of a sorted table have the name of the next row."""
        import pyarrow.compute as pc

        values = _arrow(self)
        same = pc.call_function("equal", [values[:-1], values[1:]]).to_numpy(zero_copy_only=False)
        return np.append(same, np.zeros(min(1, len(self)), bool))

    def without_prefix(self, length: int) -> Table:
        """The same rows, with names that lack their first bytes."""
        starts = np.concatenate([np.zeros(1, np.int64), self.ends[:-1]])
        keep = np.ones(len(self.names), bool)
        for byte in range(length):
            keep[starts + byte] = False
        ends = self.ends - length * np.arange(1, len(self) + 1)
        return Table(self.names[keep], ends, self.columns, self.meta)

    def with_prefix(self, prefixes: Sequence[bytes], which: NDArray[np.int64]) -> Table:
        """The same rows, with `prefixes[which]` before the names."""
        import pyarrow as pa
        import pyarrow.compute as pc

        before = pa.array(prefixes, pa.large_binary()).take(pa.array(which))
        nothing = pa.scalar(b"", pa.large_binary())
        joined = pc.call_function("binary_join_element_wise", [before, _arrow(self), nothing])
        return self.renamed(joined, self.columns)

    def renamed(self, values: Any, columns: dict[str, NDArray[np.int64]]) -> Table:
        """A table with the names of an Arrow array of type large_binary."""
        _, offsets, names = values.buffers()
        ends = np.frombuffer(offsets, np.int64)[values.offset : values.offset + len(values) + 1]
        blob = np.zeros(0, np.uint8) if names is None else np.frombuffer(names, np.uint8)[ends[0] : ends[-1]]
        return Table(blob, ends[1:] - ends[0], columns, self.meta)


def concatenated(tables: Sequence[Table]) -> Table:
    """The rows of tables of the same columns, one table after the other; without `meta`."""
    firsts = np.cumsum([0, *(len(table.names) for table in tables)])
    ends = np.concatenate([table.ends + first for table, first in zip(tables, firsts[:-1], strict=True)])
    columns = {key: np.concatenate([table.columns[key] for table in tables]) for key in tables[0].columns}
    return Table(np.concatenate([table.names for table in tables]), ends, columns)


class TableBuilder:
    """Collects the rows of a Table."""

    def __init__(self, *columns: str) -> None:
        self._names = bytearray()
        self._ends = array("q")
        self._columns = {key: array("q") for key in columns}
        self._appends = [column.append for column in self._columns.values()]

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, name: bytes, *values: int) -> None:
        self._names += name
        self._ends.append(len(self._names))
        for append, value in zip(self._appends, values, strict=True):
            append(value)

    def set(self, column: str, row: int, value: int) -> None:
        self._columns[column][row] = value

    def build(self, **meta: Any) -> Table:
        columns = {key: np.frombuffer(values, np.int64) for key, values in self._columns.items()}
        return Table(np.frombuffer(self._names, np.uint8), np.frombuffer(self._ends, np.int64), columns, meta)


def cached(identity: Sequence[object], build: Callable[[], Table]) -> Table:
    """The table that `build` makes, from the cache when it was made before for the same `identity`.

    `identity` tells, as JSON, what the table describes and in which state: a change must change it.
    """
    text = json.dumps([_VERSION, *identity])
    cache = cache_folder() / f"table-{hashlib.sha256(text.encode()).hexdigest()[:32]}.index"
    if (table := load(cache)) is None:
        table = build()
        if store(cache, table):
            table = load(cache) or table
    return table


def classes(table: Table, what: str, folders: Sequence[bytes] | None = None) -> tuple[NDArray[np.int64], list[str]]:
    """Label of each image, and the class names in byte order: the first folder of each name.

    The table is in byte order. `folders` are those known to be there, which must not be empty. Raises DataError when
    an image is in none.
    """
    labels = np.full(len(table), -1, np.int64)
    names = _first_folders(table) if folders is None else sorted(folders)
    for label, name in enumerate(names):
        rows = table.span(name)
        if rows.start == rows.stop:
            raise DataError(f"{what}: class folder {printable(os.fsdecode(name))} holds no images; fill or remove it")
        labels[rows] = label
    if len(stray := np.flatnonzero(labels < 0)):
        name = printable(os.fsdecode(table.name(int(stray[0]))))
        raise DataError(f"{what}: {len(stray)} images are in no class folder, such as {name}; move them into one")
    return labels, [os.fsdecode(name) for name in names]


def _first_folders(table: Table) -> list[bytes]:
    names: list[bytes] = []
    row = 0
    while row < len(table):
        folder, slash, _ = table.name(row).partition(b"/")
        if slash:
            names.append(folder)
            row = table.span(folder).stop
        else:
            row += 1
    return sorted(names)


def cache_folder() -> Path:
    return Path(os.environ.get("UNMASK_CACHE") or "~/.cache/unmask").expanduser()


def store(cache: Path, table: Table) -> bool:
    """Write the cache file in one step. False where that is not possible, which costs only the next start."""
    aside = cache.with_name(f"{cache.name}.{os.getpid()}-{secrets.token_hex(4)}")
    arrays = {"ends": table.ends, **table.columns}
    lengths = {key: len(values) for key, values in arrays.items()}
    head = {"version": _VERSION, "token": aside.name, "lengths": lengths, "meta": table.meta}
    line = json.dumps(head).encode()
    line += b" " * (-(len(line) + 1) % 8) + b"\n"  # so that the numbers are aligned
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        try:
            with aside.open("xb") as file:
                file.write(line)
                for values in arrays.values():
                    file.write(np.ascontiguousarray(values, "<i8").data)
                file.write(np.ascontiguousarray(table.names).data)
            aside.replace(cache)
        finally:
            aside.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def load(cache: Path) -> Table | None:
    """The table in a cache file, mapped into memory; None when there is none that can be used."""
    try:
        with cache.open("rb") as file:
            line = file.readline()
            head = json.loads(line)
            values = np.memmap(file, np.uint8, "r", len(line))
        if head["version"] != _VERSION:
            return None
        arrays: dict[str, NDArray[np.int64]] = {}
        start = 0
        for key, length in head["lengths"].items():
            arrays[key] = values[start : start + 8 * length].view("<i8")
            start += 8 * length
        ends = arrays.pop("ends")
        if ends[-1] != len(values) - start:
            return None
        return Table(values[start:], ends, arrays, head["meta"], head["token"], cache)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _reopen(cache: Path, token: str) -> Table:
    table = load(cache)
    if table is None or table.token != token:
        raise DataError(f"{cache} was replaced while a loader process was starting; start again")
    return table


def _arrow(table: Table) -> Any:
    """The names as an Arrow array: Arrow sorts a million byte strings where they lie, without Python objects."""
    import pyarrow as pa

    offsets = np.concatenate([np.zeros(1, np.int64), table.ends])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(table.names))]
    return pa.Array.from_buffers(pa.large_binary(), len(table), buffers)
