"""Predictions and embeddings as files, for any number of images."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from unmask.data.parts import Share
from unmask.data.sources.base import printable
from unmask.data.spreadsheets import csv_file
from unmask.errors import ConfigError
from unmask.evaluate.bad_images import check_bad
from unmask.evaluate.features import embedding_records, embeddings
from unmask.evaluate.formats import (
    Labels,
    Prediction,
    write_embeddings_csv,
    write_embeddings_parquet,
    write_npy,
    write_predictions_csv,
    write_predictions_jsonl,
    write_predictions_parquet,
)
from unmask.evaluate.inference import Images, Model, Pool, Rows
from unmask.evaluate.maps import MOST, neighbourhood
from unmask.evaluate.result import Result, write_result
from unmask.evaluate.resumable import Records
from unmask.report.progress import say

_COLUMNS = 2
"""Raised whenever the columns change: what was begun with others is not gone on with."""


def write_predictions(
    model: Model, images: Images, out: str | Path | None, *, top: int = 5, share: str | None = None
) -> bool:
    """The `top` likeliest classes of each image with their probabilities; `out` None: as CSV on stdout.

    `out` names a file, .csv, .jsonl or .parquet, or a folder of Parquet files, here or at a URL, see `write_result`.
    CSV and Parquet: `file, true, class_1, probability_1, ...`, without `true`, the class of the image, where neither
    folders nor a list tell it. JSONL: `{"file": ..., "true": ..., "predictions": [[class, probability], ...]}` a line.
    An image that cannot be decoded has no predictions. Otherwise as `write_embeddings`.
    """
    source = model.source(images, labels=None)
    labels = Labels(source)
    top = min(top, model.config.model.num_classes or top)
    dtype = np.dtype([("valid", "?"), ("class", "<i4", (top,)), ("probability", "<f4", (top,))])

    def compute(spans: Sequence[range] | None) -> Iterator[Records]:
        return (_likeliest(rows, dtype) for rows in model.predict_batches(source, spans))

    def save(path: Path, suffix: str, start: int, chunks: Iterable[Records], whole: Records | None) -> None:
        named = _named(model, labels, start, chunks)
        if suffix == ".parquet":
            write_predictions_parquet(path, named, top, labelled=labels.known)
        elif suffix == ".csv":
            with csv_file(path, chain(model.class_names or (), labels.texts())) as file:
                write_predictions_csv(file, named, top, labelled=labels.known)
        else:
            with path.open("w", encoding="utf-8", newline="") as file:
                write_predictions_jsonl(file, named, labelled=labels.known)

    if out is None:
        if Share.of(share).count > 1:
            raise ConfigError("of several processes no one can print for all; give --out FILE")
        bad, computed = 0, compute(None)

        def counted() -> Iterator[Records]:
            nonlocal bad
            for records in computed:
                bad += int((~records["valid"]).sum())
                yield records

        write_predictions_csv(sys.stdout, _named(model, labels, 0, counted()), top, labelled=labels.known)
        check_bad(model, source, bad)
        return True
    settings = {"top": top, "labelled": labels.known, "columns": _COLUMNS}
    result = Result("predict", settings, "predictions", dtype, (".csv", ".jsonl", ".parquet"), compute, save)
    return write_result(model, source, result, str(out), Share.of(share))


def write_embeddings(
    model: Model, images: Images, out: str | Path, *, pool: Pool | None = None, share: str | None = None
) -> bool:
    """One feature vector per image, in a table of .parquet or .csv, or .npy (N, width) float32 with `.names.txt`.

    The columns of Parquet are `file`; `path`, where images are files of their own; `class`, where folders or a list
    tell it; and `embedding`. A file of at most 50,000 images, not of patches, also has `x` and `y`, a place on a map
    (t-SNE where openTSNE is installed, else the first two principal components), and `neighbors`, `{"ids": [...],
    "distances": [...]}`: rows of the most similar other images, with one minus the cosine similarity. CSV has the same
    as `neighbor_1, ..., embedding_1, ...`, the neighbours by name.

    `out` names a file, or a folder of Parquet files with a manifest, here or at a URL such as s3://BUCKET/FOLDER. An
    image that cannot be decoded has a vector of NaN, and is listed. Killed on the way, the same call goes on.

    `share`, such as "3/100" for the third of a hundred: compute only every hundredth part. Whoever has each of the
    others may work at the same time or later, on any machine that sees `out`; the last completes the result, and it is
    the same for any number of shares. Returns whether all is there.

    Raises ConfigError for another file type, and where `out` is something else already; DataError, once all that could
    be written is, when more images than `data.max_bad_share` cannot be decoded; UnmaskError when it cannot be written.
    """
    source = model.source(images, labels=None)
    width = model.feature_width(pool)
    dtype = embedding_records(width)

    def compute(spans: Sequence[range]) -> Iterator[Records]:
        return embeddings(model, source, spans, pool)

    def save(path: Path, suffix: str, start: int, chunks: Iterable[Records], whole: Records | None) -> None:
        if suffix == ".npy":
            write_npy(path, chunks, (len(source), width))
            return
        around = None
        if whole is not None and pool != "patches":
            around = neighbourhood(whole["embedding"], np.asarray(whole["valid"]))
            if len(source) > MOST:
                say(f"more than {MOST} images: without x, y and neighbors")
        write = write_embeddings_parquet if suffix == ".parquet" else write_embeddings_csv
        write(path, source, start, chunks, width, around)

    settings = {"pool": pool} | ({} if str(out).endswith(".npy") else {"columns": _COLUMNS})
    result = Result("embed", settings, "embeddings", dtype, (".parquet", ".csv", ".npy"), compute, save)
    return write_result(model, source, result, str(out), Share.of(share))


def _likeliest(rows: Rows, dtype: np.dtype[np.void]) -> Records:
    top = dtype["class"].shape[0]
    best = np.argsort(-rows.values, axis=1, kind="stable")[:, :top]
    records = np.empty(len(rows.index), dtype)
    records["valid"], records["class"] = rows.valid, best
    records["probability"] = np.take_along_axis(rows.values, best, axis=1)
    return records


def _named(model: Model, labels: Labels, index: int, chunks: Iterable[Records]) -> Iterator[list[Prediction]]:
    """Of the images from `index` on."""
    names = {label: printable(name) for label, name in enumerate(model.class_names or ())}
    for chunk in chunks:
        predictions: list[Prediction] = []
        columns = (chunk[name].tolist() for name in ("valid", "class", "probability"))
        for valid, classes, shares in zip(*columns, strict=True):
            best = [(names.get(c, str(c)), p) for c, p in zip(classes, shares, strict=True)]
            predictions.append(Prediction(labels.name(index), labels.true(index), best if valid else []))
            index += 1
        yield predictions
