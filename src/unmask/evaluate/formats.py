"""Predictions and embeddings as CSV, JSONL, Parquet and .npy, chunk by chunk."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from unmask.data.sources import Source
from unmask.data.sources.base import printable
from unmask.evaluate.resumable import Records

Prediction = tuple[str, list[tuple[str, float]]]
"""Name of an image, and its likeliest classes with their probabilities: none where it could not be decoded."""


def write_csv(file: TextIO, chunks: Iterable[list[Prediction]], top: int) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["file", *_columns(top)])
    for chunk in chunks:
        writer.writerows([name, *(cell for label, p in best for cell in (label, f"{p:.6f}"))] for name, best in chunk)


def write_jsonl(file: TextIO, chunks: Iterable[list[Prediction]]) -> None:
    for chunk in chunks:
        for name, best in chunk:
            file.write(json.dumps({"file": name, "predictions": best}, ensure_ascii=False) + "\n")


def write_predictions_parquet(path: Path, chunks: Iterable[list[Prediction]], top: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = [pa.string(), *[pa.string(), pa.float32()] * top]
    schema = pa.schema(list(zip(["file", *_columns(top)], types, strict=True)))
    with pq.ParquetWriter(path, schema) as writer:
        for chunk in chunks:
            rows = [(name, *(cell for pair in best or [(None, None)] * top for cell in pair)) for name, best in chunk]
            arrays = [pa.array(column, type) for column, type in zip(zip(*rows, strict=True), types, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))


def write_npy(path: Path, chunks: Iterable[Records], shape: tuple[int, int]) -> None:
    """Not through a map of memory: on a full disk that ends the process by a signal."""
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in chunks:
            file.write(np.ascontiguousarray(chunk["embedding"]).data)


def write_embeddings_parquet(path: Path, source: Source, index: int, chunks: Iterable[Records], width: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    embedding: Any = pa.list_(pa.float32(), width)
    schema = pa.schema([("file", pa.string()), ("embedding", embedding)])
    with pq.ParquetWriter(path, schema) as writer:
        for chunk in chunks:
            names = pa.array([printable(source.name(i)) for i in range(index, index + len(chunk))], pa.string())
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(chunk["embedding"].reshape(-1)), width)
            writer.write_batch(pa.record_batch([names, vectors], schema=schema))
            index += len(chunk)


def _columns(top: int) -> list[str]:
    return [column for k in range(1, top + 1) for column in (f"class_{k}", f"probability_{k}")]
