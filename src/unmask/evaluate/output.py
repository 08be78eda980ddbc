"""Predictions, embeddings and reconstructions as files. Rows are written as they come: memory does not grow."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from unmask.data.sources import Source
from unmask.data.sources.subset import spread
from unmask.errors import ConfigError, UnmaskError
from unmask.evaluate.model import Images, Model, Rows, as_source
from unmask.report.figures import reconstruction_grid
from unmask.report.progress import progress, say


def write_predictions(model: Model, images: Images, out: Path | None, top: int) -> None:
    """The `top` likeliest classes of each image with their probabilities, as CSV or JSON; None: CSV on stdout.

    CSV: `file, class_1, probability_1, ...`. JSON: `[{"file": ..., "predictions": [[class, probability], ...]}]`.
    An image that cannot be decoded has no predictions. Raises ConfigError for another file type.
    """
    _check_suffix(out, (".csv", ".json"))
    source = as_source(images)
    rows = _predictions(model, source, top, quiet=out is None)
    if out is None:
        _write_csv(sys.stdout, rows, top)
        return
    with _aside(out) as path, path.open("w", encoding="utf-8", newline="") as file:
        if out.suffix == ".csv":
            _write_csv(file, rows, top)
        else:
            _write_json(file, rows)
    say(f"{len(source)} predictions in {out}")


def write_embeddings(model: Model, images: Images, out: Path) -> None:
    """One feature vector per image, as Parquet (`file`, `embedding`) or .npy (N, width) float32 with `.names.txt`.

    An image that cannot be decoded has a vector of NaN. Raises ConfigError for another file type.
    """
    _check_suffix(out, (".parquet", ".npy"))
    source = as_source(images)
    rows = _counted("embed", source, model.embed_batches(source))
    width = model.config.model.width
    with _aside(out) as path:
        if out.suffix == ".parquet":
            _write_parquet(path, source, rows, width)
        else:
            array = np.lib.format.open_memmap(path, "w+", np.float32, (len(source), width))
            for index, embeddings in rows:
                array[index] = embeddings
            array.flush()
            names = "".join(f"{source.name(i)}\n" for i in range(len(source)))
            out.with_suffix(".names.txt").write_text(names, "utf-8", "surrogateescape")
    say(f"{len(source)} embeddings of width {width} in {out}")


def write_reconstruction(model: Model, images: Images, out: Path, count: int) -> None:
    """`count` of the images original, masked, painted, and with the visible patches pasted, as one PNG."""
    painted = model.reconstruct(spread(as_source(images), count))
    note = f"{model.config.model.mask_ratio:.0%} masked"
    if model.config.model.norm_pix_loss:
        note += "; brightness and contrast of masked patches estimated from the visible ones"
    with _aside(out) as path:
        reconstruction_grid(painted.original, painted.masked, painted.reconstruction, painted.pasted, path, note=note)
    say(f"{len(painted.original)} reconstructions in {out}")


def _predictions(
    model: Model, source: Source, top: int, *, quiet: bool
) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    """(file, [(class, probability), ...])."""
    names = model.class_names
    batches = model.predict_batches(source)
    for index, probabilities in batches if quiet else _counted("predict", source, batches):
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        for i, row, classes in zip(index, probabilities, best, strict=True):
            known = [] if np.isnan(row).any() else classes.tolist()
            yield source.name(int(i)), [(names[c] if names else str(c), float(row[c])) for c in known]


def _counted(title: str, source: Source, batches: Iterator[Rows]) -> Iterator[Rows]:
    with progress(title, total=len(source), unit="image") as bar:
        for index, values in batches:
            yield index, values
            bar.update(len(index))


def _write_csv(file: TextIO, rows: Iterator[tuple[str, list[tuple[str, float]]]], top: int) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["file", *(column for k in range(1, top + 1) for column in (f"class_{k}", f"probability_{k}"))])
    for name, best in rows:
        writer.writerow([name, *(cell for label, p in best for cell in (label, f"{p:.6f}"))])


def _write_json(file: TextIO, rows: Iterator[tuple[str, list[tuple[str, float]]]]) -> None:
    separator = "[\n"
    for name, best in rows:
        file.write(separator + json.dumps({"file": name, "predictions": best}, ensure_ascii=False))
        separator = ",\n"
    file.write("\n]\n")


def _write_parquet(path: Path, source: Source, rows: Iterator[Rows], width: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    embedding: Any = pa.list_(pa.float32(), width)
    schema = pa.schema([("file", pa.string()), ("embedding", embedding)])
    with pq.ParquetWriter(path, schema) as writer:
        for index, embeddings in rows:
            names = pa.array([source.name(int(i)) for i in index], pa.string())
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), width)
            writer.write_batch(pa.record_batch([names, vectors], schema=schema))


def _check_suffix(out: Path | None, allowed: tuple[str, ...]) -> None:
    if out is not None and out.suffix not in allowed:
        raise ConfigError(f"--out {out}: the file's name must end in {' or '.join(allowed)}")


@contextmanager
def _aside(out: Path) -> Generator[Path]:
    """A path to write to that becomes `out` when all is written: there is no half a file under that name."""
    path = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield path
        path.replace(out)
    except OSError as error:
        raise UnmaskError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        path.unlink(missing_ok=True)
