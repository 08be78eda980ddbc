"""Images in Parquet and Arrow files in the layout of Hugging Face datasets: a struct `image` with bytes, a `label`.

Parquet is compressed by row group: reading one image at random reads its whole group, so a few groups are kept in
each process. Where groups are large, packing the images once is faster. Arrow files are mapped, and need no cache.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import RawIOBase
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from unmask.data.sources import files
from unmask.data.sources.base import printable
from unmask.data.sources.labels import check_not_yes_or_no, numbered
from unmask.data.sources.left_out import Tally
from unmask.data.sources.same_classes import shortened
from unmask.data.sources.split_column import Part
from unmask.errors import DataError

_CACHE_BYTES = 256 << 20
"""Row groups kept in a process."""
_IMAGES = ("image", "img", "jpg", "png", "picture")
_SURE = ("image", "img")
"""What is called so is the image, whatever stands beside it: of a jpg and a png one may be a mask."""
_LABELS = ("label", "labels", "fine_label", "cls")


@dataclass(frozen=True)
class Columns:
    image: str
    label: str | None
    class_names: tuple[str, ...] | None
    """From the schema's ClassLabel."""


class ParquetSource:
    """Images in the order of the files and of the rows in them."""

    def __init__(self, paths: list[str], options: Mapping[str, str], *, what: str, labels: bool) -> None:
        """Read the metadata and labels of all files. `options`: the columns `image` and `label`, the part `split`.

        Raises DataError when they have another layout.
        """
        with _guarded(what):
            self._open(paths, options, what, labels)
        self._groups = _Groups()

    def _open(self, paths: list[str], options: Mapping[str, str], what: str, labels: bool) -> None:
        self._paths = [files.absolute(path) for path in paths]
        self._states = [files.state(path) for path in self._paths]
        self._what = what
        tables = [_open(path, state.size, what) for path, state in zip(self._paths, self._states, strict=True)]
        self._columns = _columns(tables[0].schema, what, options.get("image"), options.get("label"))
        _check_same_columns(paths, tables, self._columns, what, labels=labels)
        if labels:
            _check_same_names(paths, tables, self._columns, what)
        groups = [table.groups() for table in tables]
        self._group_ends = np.cumsum([rows for lengths in groups for rows in lengths], dtype=np.int64)
        self._file_groups = np.cumsum([0, *(len(lengths) for lengths in groups)], dtype=np.int64)
        if not len(self._group_ends) or not self._group_ends[-1]:
            raise DataError(f"{what} holds no images")
        self._rows, left_out = _rows(tables, Part(options.get("split"), what), self._columns.label, what)
        self.meta = {"left_out": left_out.record()}
        self.labels: NDArray[np.int64] | None = None
        self.label_sets: NDArray[np.bool_] | None = None
        """(N, C) which classes each image has, where the column holds lists."""
        self.class_names: tuple[str, ...] | None = None
        if labels:
            values = _label_column(tables, self._columns, self._rows, what)
            if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
                self.label_sets, self.class_names = _label_sets(values.combine_chunks(), self._columns, what)
            else:
                self.labels, self.class_names = _labels(values, self._columns, what)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_groups": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._groups = _Groups()

    def __len__(self) -> int:
        return int(self._group_ends[-1]) if self._rows is None else len(self._rows)

    def read(self, index: int) -> bytes:
        group, row = self._place(index)
        with _guarded("its row group cannot be read"):
            value = self._groups.get(group, self._load)[row].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if data is None:
            path = value.get("path") if isinstance(value, dict) else None
            raise DataError(
                f"{self.name(index)} has no bytes{f', only the path {path}' if path else ''}; embed the images"
            )
        return data

    def name(self, index: int) -> str:
        """File and row."""
        group, row = self._place(index)
        file = self._file(group)
        first = int(self._file_groups[file])
        start = int(self._group_ends[first - 1]) if first else 0
        before = int(self._group_ends[group - 1]) if group else 0
        return f"{self._paths[file].rpartition('/')[2]}/{before + row - start}"

    def fingerprint(self) -> str:
        parts = [(path.rpartition("/")[2], state.size) for path, state in zip(self._paths, self._states, strict=True)]
        digest = hashlib.sha256(json.dumps([len(self), parts]).encode())
        if self.labels is not None:
            digest.update(self.labels.astype("<i8").tobytes())
        if self.label_sets is not None:
            digest.update(np.packbits(self.label_sets).tobytes())
        if self._rows is not None:
            digest.update(self._rows.astype("<i8").tobytes())
        return digest.hexdigest()

    def _place(self, index: int) -> tuple[int, int]:
        """Number of the row group among all, and of the row in it."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        index = index if self._rows is None else int(self._rows[index])
        group = int(np.searchsorted(self._group_ends, index, side="right"))
        return group, index - (int(self._group_ends[group - 1]) if group else 0)

    def _file(self, group: int) -> int:
        return int(np.searchsorted(self._file_groups, group, side="right")) - 1

    def _load(self, group: int) -> Any:
        file = self._file(group)
        known = self._groups.files.get(file)
        if not isinstance(known, _Arrow):
            state = self._states[file]
            table = _open(self._paths[file], state.size, self._what, state.version, known)
            self._groups.files[file] = table if isinstance(table, _Arrow) else table.footer
        else:
            table = known
        return table.read(group - int(self._file_groups[file]), self._columns.image)


@contextmanager
def _guarded(what: str) -> Generator[None]:
    """Arrow and its decompressors meet damage in many ways, and each gets a name: `what`, and the first line."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{what}: {printable(str(error).partition(chr(10))[0]) or type(error).__name__}") from None


class _Groups:
    """The most recently used row groups, up to a number of bytes, shared by all threads of a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._bytes = 0
        self.files: dict[int, Any] = {}
        """What needs to be read of a file only once: the footer of a Parquet file, a mapped Arrow file."""

    def get(self, group: int, load: Any) -> Any:
        with self._lock:
            if group in self._kept:
                self._kept.move_to_end(group)
                return self._kept[group]
        values = load(group)
        with self._lock:
            if group not in self._kept:
                self._kept[group] = values
                self._bytes += values.nbytes
            while self._bytes > _CACHE_BYTES and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return values


class _Parquet:
    def __init__(self, path: str, size: int, version: str, footer: Any) -> None:
        source = pa.PythonFile(_Ranges(path, size, version), mode="r") if files.is_remote(path) else path
        self._file = pq.ParquetFile(source, metadata=footer, memory_map=not files.is_remote(path))
        self.footer: Any = self._file.metadata
        self.schema: Any = self._file.schema_arrow

    def groups(self) -> list[int]:
        return [self.footer.row_group(i).num_rows for i in range(self._file.num_row_groups)]

    def read(self, group: int, column: str) -> Any:
        return self._file.read_row_group(group, columns=[column], use_threads=False).column(0).combine_chunks()

    def column(self, name: str) -> Any:
        return self._file.read(columns=[name], use_threads=False).column(0)


class _Arrow:
    """What `datasets` saves: the stream format; or the file format. Mapped, so opening reads nothing."""

    def __init__(self, path: str) -> None:
        if files.is_remote(path):
            raise DataError(f"{path}: .arrow files cannot be read at random behind a URL; use Parquet or download them")
        mapped = pa.memory_map(path)
        try:
            reader = pa.ipc.open_file(mapped)
            self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        except pa.ArrowInvalid:
            mapped.seek(0)
            reader = pa.ipc.open_stream(mapped)
            self._batches = list(reader)
        self.schema: Any = reader.schema

    def groups(self) -> list[int]:
        return [batch.num_rows for batch in self._batches]

    def read(self, group: int, column: str) -> Any:
        values = self._batches[group].column(column)
        values.validate(full=True)  # a wild offset would end the process
        return values

    def column(self, name: str) -> Any:
        values = [self.read(group, name) for group in range(len(self._batches))]
        return pa.chunked_array(values, self.schema.field(name).type)


class _Ranges(RawIOBase):
    """A remote file in the form that Arrow reads."""

    def __init__(self, path: str, size: int, version: str) -> None:
        self._path, self._size, self._version, self._position = path, size, version, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def size(self) -> int:
        return self._size

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._size - self._position)
        count = left if size is None or size < 0 else min(size, left)
        data = files.read(self._path, self._position, count, version=self._version)
        self._position += count
        return data


def _open(path: str, size: int, what: str, version: str = "", footer: Any = None) -> _Parquet | _Arrow:
    try:
        return _Arrow(path) if path.lower().endswith(".arrow") else _Parquet(path, size, version, footer)
    except (pa.ArrowException, OSError, ValueError) as error:
        kind = path.rpartition(".")[2].capitalize()
        reason = str(error).partition("\n")[0]
        raise DataError(f"{what}: {printable(path)} is not a whole {kind} file: {reason}") from None


def _columns(schema: Any, what: str, image: str | None, label: str | None) -> Columns:
    features = _features(schema)
    named = [name for name in _IMAGES if name in schema.names]
    meant = [image] if image else list(dict.fromkeys([*named, *_of_type(features, "Image")]))
    if not meant or meant[0] not in schema.names:
        raise DataError(f"{what} has no image column among {', '.join(schema.names)}; name it with #image=COLUMN")
    images = [name for name in meant if _holds_images(schema.field(name).type)]
    if not images:
        raise DataError(
            f"{what}: column {meant[0]} is {schema.field(meant[0]).type}, not images with their bytes; name one with "
            "#image=COLUMN"
        )
    if len(images) > 1 and images[0] not in _SURE:
        raise DataError(f"{what} has several image columns, {', '.join(images)}; name the one with #image=COLUMN")
    if label is not None and label not in schema.names:
        raise DataError(f"{what} has no column {label}; there are {', '.join(schema.names)}")
    usual = [label] if label else [name for name in _LABELS if name in schema.names]
    labels = usual[:1] or list(_of_type(features, "ClassLabel"))
    chosen = labels[0] if len(labels) == 1 else None
    return Columns(images[0], chosen, _class_names(schema, chosen))


def _class_names(schema: Any, label: str | None) -> tuple[str, ...] | None:
    kind = _features(schema).get(label, {}) if label else {}
    each = kind.get("feature")  # of a list
    names = (each if isinstance(each, dict) else kind).get("names")
    return tuple(str(name) for name in names) if isinstance(names, list) else None


def _check_same_columns(
    paths: list[str], tables: list[_Parquet | _Arrow], columns: Columns, what: str, *, labels: bool
) -> None:
    """Each file has the columns that are read, once, and classes of one type."""
    for name in filter(None, (columns.image, columns.label if labels else None)):
        kinds: list[str] = []
        for path, table in zip(paths, tables, strict=True):
            file = printable(path.rpartition("/")[2])
            if (count := table.schema.names.count(name)) != 1:
                raise DataError(
                    f"{what}: {file} has {count or 'no'} column{'s' * (count > 1)} called {name}; write all files "
                    "alike, or name some of them"
                )
            kinds.append(str(table.schema.field(name).type))
        if other := next((place for place, kind in enumerate(kinds) if kind != kinds[0] and name == columns.label), 0):
            first, file = (printable(paths[place].rpartition("/")[2]) for place in (0, other))
            raise DataError(
                f"{what}: {name} is {kinds[0]} in {first} and {kinds[other]} in {file}; write all files alike, or name "
                "some of them"
            )


def _check_same_names(paths: list[str], tables: list[_Parquet | _Arrow], columns: Columns, what: str) -> None:
    """The numbers of each file stand for the classes that its own schema names."""
    for path, table in zip(paths, tables, strict=True):
        if columns.class_names and (names := _class_names(table.schema, columns.label)) not in (
            None,
            columns.class_names,
        ):
            first, other = (printable(each.rpartition("/")[2]) for each in (paths[0], path))
            raise DataError(
                f"{what}: {first} and {other} number their classes differently ({shortened(columns.class_names)} and "
                f"{shortened(names or ())}); write both with one ClassLabel, or name one of them"
            )


def _holds_images(kind: Any) -> bool:
    member = kind.get_field_index("bytes") if pa.types.is_struct(kind) else -1
    return _is_bytes(kind.field(member).type if member >= 0 else kind)


def _is_bytes(kind: Any) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """What `datasets` records about the columns."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: kind for name, kind in features.items() if isinstance(kind, dict)}
    except (LookupError, ValueError, TypeError, AttributeError):
        return {}


def _of_type(features: Mapping[str, dict[str, Any]], kind: str) -> Iterator[str]:
    return (name for name, feature in features.items() if feature.get("_type") == kind)


def _rows(
    tables: list[_Parquet | _Arrow], part: Part, label: str | None, what: str
) -> tuple[NDArray[np.int64] | None, Tally]:
    """The rows of the part that is asked for, None for all, and what is left out."""
    if (column := part.column(tables[0].schema.names, label)) is None:
        return None, Tally()
    takes = [part.takes(value) for value in _column(tables, column, what).to_pylist()]
    left_out = part.check(column)
    return None if all(takes) else np.flatnonzero(takes), left_out


def _column(tables: list[_Parquet | _Arrow], name: str, what: str) -> Any:
    try:
        return pa.chunked_array([chunk for table in tables for chunk in table.column(name).chunks])
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise DataError(f"{what}: the column {name} cannot be read: {str(error).partition(chr(10))[0]}") from None


def _label_column(tables: list[_Parquet | _Arrow], columns: Columns, rows: NDArray[np.int64] | None, what: str) -> Any:
    if columns.label is None:
        there = ", ".join(tables[0].schema.names)
        raise DataError(f"{what} has no label column, or several; name one of {there} with #label=COLUMN")
    values = _column(tables, columns.label, what)
    values = values if rows is None else values.take(pa.array(rows))
    if values.null_count:
        raise DataError(f"{what}: {values.null_count} images have no {columns.label}")
    return values


def _label_sets(values: Any, columns: Columns, what: str) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """From lists of classes, one for each image."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    flat = values.flatten()
    if flat.null_count:
        raise DataError(f"{what}: {flat.null_count} entries in the lists of {columns.label} are empty")
    labels, names = _labels(pa.chunked_array([flat]), columns, what)
    if columns.class_names is None and names[:1] in (("0",), ("1",)):
        counts = set(values.value_lengths().unique().to_pylist())
        check_not_yes_or_no(set(names), counts, False, f"{what}: the lists of {columns.label}")
    sets = np.zeros((len(values), len(names)), bool)
    sets[values.value_parent_indices().to_numpy(), labels] = True
    if sets.sum() < len(flat):
        raise DataError(
            f"{what}: the lists of {columns.label} name a class twice, so they are not the classes of an image; where "
            "they say yes or no to each class, write the numbers of those with yes"
        )
    return sets, names


def _labels(values: Any, columns: Columns, what: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.string())
    if pa.types.is_string_view(values.type):  # of Polars
        values = values.cast(pa.large_string())
    texts = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    if not texts and not pa.types.is_integer(values.type):
        raise DataError(
            f"{what}: column {columns.label} is {values.type}, not a class; name another with #label=COLUMN, or store "
            "whole numbers or names"
        )
    if texts or columns.class_names is None:
        encoded = values.combine_chunks().dictionary_encode()
        encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
        numbers, names = numbered([str(value) for value in encoded.dictionary.to_pylist()], what=what)
        return numbers[encoded.indices.to_numpy()], tuple(names)
    labels = values.to_numpy()
    if labels.min() < 0 or labels.max() >= len(columns.class_names):
        raise DataError(
            f"{what}: labels are {labels.min()} to {labels.max()}, and there are {len(columns.class_names)} classes; "
            "use labelled images"
        )
    return labels.astype(np.int64), columns.class_names
