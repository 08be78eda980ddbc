"""Names and numbers of all images of a source, in arrays; kept in a cache file and mapped from it.

A million images take some 70 MB, which all loader processes share.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import unicodedata
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.data.sources.base import printable
from unmask.errors import DataError
from unmask.files import expanded, written_aside

_VERSION = 5
_WORD = 8
"""Bytes of a name compared at once."""
_ROWS = 1024
"""Names copied at once."""
_OF_SHARDS = re.compile(r"(.+)-\d{5,}-of-\d{5,}(?:-\w+)?\.\w+")
_SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"}


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
    """Of the contents: a cache file may be replaced while the arrays mapped from it are in use, and may be damaged."""
    cache: Path | None = None
    """File these arrays are mapped from."""

    def __len__(self) -> int:
        return len(self.ends)

    def __reduce__(self) -> tuple[Any, ...]:
        # Loader processes map the same file instead of receiving a copy.
        if self.cache is not None and (current := load_table(self.cache)) is not None and current.token == self.token:
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
        lengths = np.diff(self.ends, prepend=0)
        starts, lengths = (self.ends - lengths)[rows], lengths[rows]
        columns = {key: column[rows] for key, column in self.columns.items()}
        return Table(_pieces(self.names, starts, lengths), np.cumsum(lengths), columns, self.meta)

    def repeated(self) -> NDArray[np.bool_]:
        """(N,) which rows of a sorted table have the name of the next row."""
        repeated = np.zeros(len(self), bool)
        lengths = np.diff(self.ends, prepend=0)
        rows = np.flatnonzero(lengths[:-1] == lengths[1:])
        byte = 0
        while len(rows):  # from the last byte on, as neighbours begin alike
            byte += 1
            equal = lengths[rows] < byte
            repeated[rows[equal]] = True
            rows = rows[~equal]
            rows = rows[self.names[self.ends[rows] - byte] == self.names[self.ends[rows + 1] - byte]]
        return repeated

    def without_prefix(self, length: int) -> Table:
        """The same rows, with names that lack their first bytes."""
        lengths = np.diff(self.ends, prepend=0) - length
        names = _pieces(self.names, self.ends - lengths, lengths)
        return Table(names, np.cumsum(lengths), self.columns, self.meta)

    def with_prefix(self, prefixes: Sequence[bytes], which: NDArray[np.int64]) -> Table:
        """The same rows, with `prefixes[which]` before the names."""
        before = np.cumsum([0, *map(len, prefixes)])
        lengths = np.stack([np.diff(before)[which], np.diff(self.ends, prepend=0)], axis=1)
        starts = np.stack([before[which], before[-1] + self.ends - lengths[:, 1]], axis=1)
        pool = np.concatenate([np.frombuffer(b"".join(prefixes), np.uint8), self.names])
        names = _pieces(pool, starts.ravel(), lengths.ravel())
        return Table(names, np.cumsum(lengths.sum(axis=1)), self.columns, self.meta)

    def arrow(self) -> Any:
        """The names as an Arrow array of type large_binary."""
        import pyarrow as pa

        offsets = np.concatenate([[0], self.ends]).astype(np.int64)
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(self.names))]
        return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(self), buffers)

    def renamed(self, values: Any, columns: dict[str, NDArray[np.int64]]) -> Table:
        """A table with the names of an Arrow array of type large_binary."""
        _, offsets, names = values.buffers()
        ends = np.frombuffer(offsets, np.int64)[values.offset : values.offset + len(values) + 1]
        blob = np.zeros(0, np.uint8) if names is None else np.frombuffer(names, np.uint8)[ends[0] : ends[-1]]
        return Table(blob, ends[1:] - ends[0], columns, self.meta)


class TableBuilder:
    """Collects the rows of a Table."""

    def __init__(self, *columns: str, narrow: Sequence[str] = ()) -> None:
        """The columns in `narrow` need only 32 bits; in the cache all have 64."""
        self._names = bytearray()
        self._ends = array("q")
        self._columns = {key: array("i" if key in narrow else "q") for key in columns}
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

    def extend(self, other: TableBuilder) -> None:
        """Take over the rows of `other`, which has the same columns and must not be used afterwards."""
        if not len(self):
            self.__dict__ |= other.__dict__  # a single tar of millions is not copied
            return
        self._ends.extend(array("q", (np.frombuffer(other._ends, np.int64) + len(self._names)).tobytes()))
        self._names += other._names
        for key, column in self._columns.items():
            column.extend(other._columns[key])

    def sorted(self, **meta: Any) -> Table:
        """In byte order of the names; rows of the same name keep their order. The builder must not be used afterwards.

        At its peak this takes a second copy of the names and some 40 bytes per row.
        """
        self._names += bytes(_WORD)
        table = self.build(**meta)
        lengths = np.diff(table.ends, prepend=0).astype(np.int32)
        starts = np.subtract(table.ends, lengths, out=table.ends)
        order = _order(table.names, starts, lengths)
        for column in (starts, lengths, *table.columns.values()):  # in place: no second table is in memory
            column[:] = column[order]
        del order
        names = _pieces(table.names, starts, lengths)
        return Table(names, np.cumsum(lengths, out=starts), table.columns, meta)

    def build(self, **meta: Any) -> Table:
        """In the order of `add`. The table shares the builder's memory: no rows can be added while it is in use."""
        columns = {key: np.frombuffer(values, values.typecode) for key, values in self._columns.items()}
        return Table(np.frombuffer(self._names, np.uint8), np.frombuffer(self._ends, np.int64), columns, meta)


def cached(identity: Sequence[object], build: Callable[[], Table]) -> Table:
    """The table that `build` makes, from the cache when it was made before for the same `identity`.

    `identity` says, as JSON, what the table describes and in which state, so that it changes when that does.
    """
    text = json.dumps([_VERSION, *identity])
    cache = cache_folder() / f"table-{hashlib.sha256(text.encode()).hexdigest()[:32]}.index"
    if (table := load_table(cache, check=True)) is None:
        table = build()
        if store_table(cache, table):
            table = load_table(cache) or table
    return table


def classes(table: Table, what: str, folders: Sequence[bytes] | None = None) -> tuple[NDArray[np.int64], list[str]]:
    """Label of each image, and the class names in byte order: the first folder of each name.

    The table is in byte order. `folders` are the ones known to exist; none may be empty. Folders whose names differ
    only in how accents are written are one class (Unicode's NFC and NFD). Raises
    DataError when an image is in none.
    """
    labels = np.full(len(table), -1, np.int64)
    written = _first_folders(table) if folders is None else sorted(folders)
    composed = {name: unicodedata.normalize("NFC", os.fsdecode(name)) for name in written}
    names = sorted(set(composed.values()), key=os.fsencode)
    places = {name: place for place, name in enumerate(names)}
    for name in written:
        rows = table.span(name)
        if rows.start == rows.stop:
            raise DataError(f"{what}: class folder {printable(os.fsdecode(name))} holds no images; fill or remove it")
        labels[rows] = places[composed[name]]
    if len(names) > 1 and len(splits_of(names)) == len(names):
        raise DataError(
            f"{what}: its folders, {', '.join(names)}, are parts of a data set, not classes; name one of them, or make "
            "a tar of each"
        )
    if len(stray := np.flatnonzero(labels < 0)):
        name = printable(os.fsdecode(table.name(int(stray[0]))))
        raise DataError(
            f"{what}: {len(stray)} images are in no class folder, such as {name}; move them into one for each class"
        )
    return labels, names


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


def parts_in(table: Table) -> list[str]:
    """The first folders of the names, which are in byte order, where each is called after a part of a data set; below
    the folders that hold everything."""
    folders = _first_folders(table)
    while len(folders) == 1 and table.span(folders[0]) == slice(0, len(table)):
        table = table.without_prefix(len(folders[0]) + 1)
        folders = _first_folders(table)
    names = [os.fsdecode(name) for name in folders]
    return names if len(splits_of(names)) == len(names) else []


def splits_of(names: Iterable[str]) -> dict[str, str]:
    """Each part of a data set that these folders or files are called after, and the first called so."""
    return {split: name for name in reversed(list(names)) if (split := split_of(name))}


def split_of(name: str) -> str | None:
    """The part of a data set that a folder or file is called after: `train` of `imagenet-train-0000.tar`, and whatever
    stands before the number in `extra-00000-of-00002.parquet`."""
    if shard := _OF_SHARDS.fullmatch(name):
        return shard[1]
    words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)} & _SPLITS
    return words.pop() if len(words) == 1 else None


def cache_folder() -> Path:
    folder = expanded(os.environ.get("UNMASK_CACHE") or "~/.cache/unmask")
    if folder.parts[0] == "~":  # in a container, a user of whom nothing is known
        return Path(tempfile.gettempdir()) / f"unmask-{os.getuid()}"
    return folder


def store_table(cache: Path, table: Table) -> bool:
    """Write the cache file in one step. False where that is not possible, which costs only the next start."""
    arrays = {"ends": table.ends, **table.columns}
    lengths = {key: len(values) for key, values in arrays.items()}
    head = {"version": _VERSION, "token": _token(table), "lengths": lengths, "meta": table.meta}
    line = json.dumps(head).encode()
    line += b" " * (-(len(line) + 1) % 8) + b"\n"  # so that the numbers are aligned
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(cache, cache=True) as aside, aside.open("wb") as file:
            file.write(line)
            for values in arrays.values():
                file.write(np.ascontiguousarray(values, "<i8").data)
            file.write(np.ascontiguousarray(table.names).data)
    except OSError:
        return False
    return True


def _token(table: Table) -> str:
    """SHA-256 over all there is in a table: 30 ms for a million images."""
    digest = hashlib.sha256(json.dumps([list(table.columns), table.meta]).encode())
    for values in (table.ends, *table.columns.values()):
        digest.update(np.ascontiguousarray(values, "<i8").data)
    digest.update(np.ascontiguousarray(table.names).data)
    return digest.hexdigest()


def load_table(cache: Path, *, check: bool = False) -> Table | None:
    """The table in a cache file, mapped into memory; None when there is none that can be used.

    With `check`, a file in which a single bit is another is none; it is read in full for that.
    """
    try:
        with cache.open("rb") as file:
            line = file.readline()
            head = json.loads(line)
            values = np.asarray(np.memmap(file, np.uint8, "r", len(line)))  # plain, for memmap is slow to index
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
        table = Table(values[start:], ends, arrays, head["meta"], head["token"], cache)
        return None if check and _token(table) != table.token else table
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _reopen(cache: Path, token: str) -> Table:
    table = load_table(cache)
    if table is None or table.token != token:
        raise DataError(f"{cache} was replaced while a loader process was starting; start again")
    return table


def _order(names: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int32]) -> NDArray[np.uint32]:
    """(N,) the rows in byte order of their names; rows of one name keep their order.

    A radix sort by words of 8 bytes, the last word first, each name from its own last word on: a few numbers a row and
    no Python objects. `names` goes on for a word behind the last name.
    """
    words = np.ndarray(len(names) - _WORD + 1, ">u8", names, strides=1)
    # Of names that differ in zeros at the end, the shorter comes first.
    by_length = np.argsort(lengths, kind="stable").astype(np.uint32)
    stops = np.cumsum(np.bincount((lengths + _WORD - 1) // _WORD, minlength=1))
    order = by_length[:0]
    for count in range(len(stops) - 1, 0, -1):
        order = np.concatenate([by_length[stops[count - 1] : stops[count]], order])
        start = _WORD * (count - 1)
        keys = words[starts[order] + start].astype(np.uint64)
        behind = 8 * np.maximum(start + _WORD - lengths[order], 0).astype(np.uint8)  # bits of the next name
        keys = keys >> behind << behind
        order = order[np.argsort(keys, kind="stable")]
    return np.concatenate([by_length[: stops[0]], order])


def _pieces(
    names: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64] | NDArray[np.int32]
) -> NDArray[np.uint8]:
    """Pieces of `names`, one after the other."""
    joined = np.empty(lengths.sum(dtype=np.int64), np.uint8)
    first = 0
    for row in range(0, len(starts), _ROWS):  # an index for each byte: of few rows at a time
        some = slice(row, row + _ROWS)
        ends = np.cumsum(lengths[some], dtype=np.int64)
        last = first + int(ends[-1])
        shifts = starts[some] - (ends - lengths[some])
        joined[first:last] = names[np.arange(last - first) + np.repeat(shifts, lengths[some])]
        first = last
    return joined
