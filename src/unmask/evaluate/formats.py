"""Tables of predictions and embeddings as CSV, JSONL, Parquet and .npy, chunk by chunk."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from unmask.data.sources import Source
from unmask.data.sources.base import place_of, printable
from unmask.data.spreadsheets import csv_file, csv_rows
from unmask.evaluate.maps import Neighbourhood
from unmask.evaluate.resumable import Records


@dataclass(frozen=True)
class Prediction:
    """Of one image."""

    file: str
    true: str | None
    """Its class, where folders or a list tell it."""
    best: list[tuple[str, float]]
    """The likeliest classes with their probabilities: none where it could not be decoded."""


class Labels:
    """What is known of the images of a source beside their pixels, as text."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.classes = [printable(name) for name in source.class_names or ()]
        self._labels = source.labels if self.classes else None
        self._sets: NDArray[np.bool_] | None = getattr(source, "label_sets", None) if self.classes else None
        self.known = self._labels is not None or self._sets is not None

    def name(self, index: int) -> str:
        return printable(self._source.name(index))

    def true(self, index: int) -> str | None:
        """The class, several with semicolons between; None where none is known."""
        if self._labels is not None:
            label = int(self._labels[index])
            return self.classes[label] if label >= 0 else None
        if self._sets is not None:
            return ";".join(self.classes[label] for label in np.flatnonzero(self._sets[index]))
        return None

    def texts(self) -> Iterator[str]:
        """All that a table may hold."""
        yield from self.classes
        yield from (self.name(index) for index in range(len(self._source)))


# --- predictions ------------------------------------------------------------------------------------------------------


def prediction_columns(top: int, labelled: bool) -> list[str]:
    pairs = [column for k in range(1, top + 1) for column in (f"class_{k}", f"probability_{k}")]
    return ["file", *["true"] * labelled, *pairs]


def write_predictions_csv(file: TextIO, chunks: Iterable[list[Prediction]], top: int, *, labelled: bool) -> None:
    csv_rows(file, [prediction_columns(top, labelled)])
    for chunk in chunks:
        for one in chunk:
            cells = [cell for name, p in one.best for cell in (name, f"{p:.6f}")] or [None] * (2 * top)
            csv_rows(file, [[one.file, *[one.true] * labelled, *cells]])


def write_predictions_jsonl(file: TextIO, chunks: Iterable[list[Prediction]], *, labelled: bool) -> None:
    for chunk in chunks:
        for one in chunk:
            true = {"true": one.true} if labelled else {}
            line = {"file": one.file, **true, "predictions": one.best}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def write_predictions_parquet(path: Path, chunks: Iterable[list[Prediction]], top: int, *, labelled: bool) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = [pa.string(), *[pa.string()] * labelled, *[pa.string(), pa.float32()] * top]
    schema = pa.schema(list(zip(prediction_columns(top, labelled), types, strict=True)))
    with pq.ParquetWriter(path, schema) as writer:
        for chunk in chunks:
            rows = [
                (
                    one.file,
                    *[one.true] * labelled,
                    *chain.from_iterable(one.best or [(None, None)] * top),
                )
                for one in chunk
            ]
            arrays = [pa.array(column, type) for column, type in zip(zip(*rows, strict=True), types, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))


# --- embeddings -------------------------------------------------------------------------------------------------------


def write_npy(path: Path, chunks: Iterable[Records], shape: tuple[int, int]) -> None:
    """Not through a map of memory: on a full disk that ends the process by a signal."""
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in chunks:
            file.write(np.ascontiguousarray(chunk["embedding"]).data)


def write_embeddings_parquet(
    path: Path, source: Source, index: int, chunks: Iterable[Records], width: int, around: Neighbourhood | None
) -> None:
    """Of the images from `index` on. `path` is a column where images are files of their own, `class` where it is told,
    and `x`, `y` and `neighbors` with `around`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    labels, with_paths = Labels(source), place_of(source, 0) is not None
    vector: Any = pa.list_(pa.float32(), width)
    near: Any = pa.struct([("ids", pa.list_(pa.int64())), ("distances", pa.list_(pa.float32()))])
    schema = pa.schema(
        [("file", pa.string())]
        + [("path", pa.string())] * with_paths
        + [("class", pa.string())] * labels.known
        + ([] if around is None else [("x", pa.float32()), ("y", pa.float32()), ("neighbors", near)])
        + [("embedding", vector)]
    )
    with pq.ParquetWriter(path, schema) as writer:
        for chunk in chunks:
            rows = range(index, index + len(chunk))
            columns = [pa.array([labels.name(i) for i in rows], pa.string())]
            if with_paths:
                columns.append(pa.array([_text(place_of(source, i)) for i in rows], pa.string()))
            if labels.known:
                columns.append(pa.array([labels.true(i) for i in rows], pa.string()))
            if around is not None:
                some = slice(rows.start, rows.stop)
                columns += [pa.array(around.places[some, axis], from_pandas=True) for axis in range(2)]
                columns.append(pa.array([_near(around, i) for i in rows], near))
            columns.append(pa.FixedSizeListArray.from_arrays(pa.array(chunk["embedding"].reshape(-1)), width))
            writer.write_batch(pa.record_batch(columns, schema=schema))
            index = rows.stop


def write_embeddings_csv(
    path: Path, source: Source, index: int, chunks: Iterable[Records], width: int, around: Neighbourhood | None
) -> None:
    """The same for spreadsheets: a column for each value of the vector, and the names of the neighbours."""
    labels, with_paths = Labels(source), place_of(source, 0) is not None
    neighbours = 0 if around is None else around.index.shape[1]
    names = ["file", *["path"] * with_paths, *["class"] * labels.known]
    names += [] if around is None else ["x", "y", *(f"neighbor_{k}" for k in range(1, neighbours + 1))]
    names += [f"embedding_{k}" for k in range(1, width + 1)]

    def row(i: int, record: Any) -> Iterator[Any]:
        yield labels.name(i)
        if with_paths:
            yield printable(place_of(source, i) or "")
        if labels.known:
            yield labels.true(i)
        valid = bool(record["valid"])
        if around is not None:
            yield from _short(around.places[i]) if valid else [None] * 2
            yield from (labels.name(other) if other >= 0 else None for other in around.index[i].tolist())
        yield from _short(record["embedding"]) if valid else [None] * width

    places = (printable(place_of(source, i) or "") for i in range(len(source)))
    with csv_file(path, chain(labels.texts(), places)) as file:
        csv_rows(file, [names])
        for chunk in chunks:
            csv_rows(file, (row(i, record) for i, record in enumerate(chunk, index)))
            index += len(chunk)


def _short(values: NDArray[np.float32]) -> list[float]:
    """In as few digits as tell each from its neighbours."""
    return list(map(float, values.astype(str)))


def _text(place: str | None) -> str | None:
    """None for what is no text: nothing could open it by that."""
    try:
        return place if place is None or place.encode() else None
    except UnicodeEncodeError:
        return None


def _near(around: Neighbourhood, index: int) -> dict[str, list[Any]] | None:
    ids = around.index[index]
    if not len(ids) or ids[0] < 0:
        return None
    return {"ids": ids.tolist(), "distances": around.distance[index].tolist()}
