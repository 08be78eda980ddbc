"""Predictions, embeddings, evaluations and reconstructions as files, for any number of images."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from unmask.data.sources import Source
from unmask.data.sources.base import printable
from unmask.data.sources.subset import SubsetSource, spread
from unmask.errors import ConfigError, DataError, UnmaskError
from unmask.evaluate.classification import ClassificationReport
from unmask.evaluate.inference import Images, Model, Pool, Rows
from unmask.evaluate.resumable import Records, collect
from unmask.files import written_aside
from unmask.report.charts import confusion_chart
from unmask.report.pictures import contact_sheet, reconstruction_grid
from unmask.report.progress import say

_CHUNK = 4096
"""Rows that are read back and written at a time: those of a row group of a Parquet file."""

Prediction = tuple[str, list[tuple[str, float]]]
"""Name of an image, and its likeliest classes with their probabilities: none where it could not be decoded."""


def write_predictions(model: Model, images: Images, out: Path | None, top: int) -> None:
    """The `top` likeliest classes of each image with their probabilities; `out` None: as CSV on stdout.

    CSV and Parquet: `file, class_1, probability_1, ...`. JSONL: `{"file": ..., "predictions": [[class, probability],
    ...]}` a line. An image that cannot be decoded has no predictions. Killed on the way, the same call goes on from
    what is in `OUT.partial`. Raises ConfigError for another file type.
    """
    _check_suffix(out, (".csv", ".jsonl", ".parquet"))
    source = model.source(images)
    top = min(top, model.config.model.num_classes or top)
    dtype = np.dtype([("valid", "?"), ("class", "<i4", (top,)), ("probability", "<f4", (top,))])

    def compute(start: int) -> Iterator[Records]:
        return (_likeliest(rows, dtype) for rows in model.predict_batches(source, start))

    if out is None:
        if model.world > 1:
            raise ConfigError("of several processes no one can print for all; give --out FILE")
        bad = 0

        def counted() -> Iterator[Records]:
            nonlocal bad
            for records in compute(0):
                bad += int((~records["valid"]).sum())
                yield records

        _write_csv(sys.stdout, _named(model, source, counted()), top)
        _check_bad(model, bad, len(source))
        return
    with _collected(model, source, out, {"command": "predict"}, dtype, compute) as records:
        if model.rank == 0:
            _write_predictions(model, source, out, records, top)


def _write_predictions(model: Model, source: Source, out: Path, records: Records, top: int) -> None:
    with _aside(out) as path:
        chunks = _named(model, source, _chunks(records))
        if out.suffix == ".parquet":
            _write_predictions_parquet(path, chunks, top)
        else:
            with path.open("w", encoding="utf-8", newline="") as file:
                _write_csv(file, chunks, top) if out.suffix == ".csv" else _write_jsonl(file, chunks)
    say(f"{len(source)} predictions in {out}")


def write_embeddings(model: Model, images: Images, out: Path, *, pool: Pool | None = None) -> None:
    """One feature vector per image, as Parquet (`file`, `embedding`) or .npy (N, width) float32 with `.names.txt`.

    An image that cannot be decoded has a vector of NaN. Killed on the way, the same call goes on from what is in
    `OUT.partial`. Raises ConfigError for another file type.
    """
    _check_suffix(out, (".parquet", ".npy"))
    source = model.source(images)
    width = model.feature_width(pool)
    dtype = embedding_records(width)

    def compute(start: int) -> Iterator[Records]:
        return embeddings(model, source, start, pool)

    with _collected(model, source, out, {"command": "embed", "pool": pool}, dtype, compute) as records:
        if model.rank == 0:
            _write_embeddings(source, out, records, width)


def _write_embeddings(source: Source, out: Path, records: Records, width: int) -> None:
    with _aside(out) as path:
        if out.suffix == ".parquet":
            _write_embeddings_parquet(path, source, records, width)
        else:
            array = np.lib.format.open_memmap(path, "w+", np.float32, (len(source), width))
            for start in range(0, len(source), _CHUNK):
                array[start : start + _CHUNK] = records["embedding"][start : start + _CHUNK]
            array.flush()
            _write_lines(out.with_suffix(".names.txt"), (printable(source.name(i)) for i in range(len(source))))
    say(f"{len(source)} embeddings of width {width} in {out}")


def embedding_records(width: int) -> np.dtype[np.void]:
    return np.dtype([("valid", "?"), ("embedding", "<f4", (width,))])


def embeddings(model: Model, source: Source, start: int, pool: Pool | None) -> Iterator[Records]:
    """Records of `embedding_records`, batch by batch, from image `start` on."""
    dtype = embedding_records(model.feature_width(pool))
    for rows in model.embed_batches(source, start, pool=pool):
        records = np.empty(len(rows.index), dtype)
        records["valid"], records["embedding"] = rows.valid, rows.values
        yield records


def write_evaluation(
    model: Model,
    images: Images,
    out: Path | None,
    *,
    class_map: Path | None = None,
    label_offset: int | None = None,
) -> dict[str, float]:
    """What `Model.evaluate` returns, written to the folder `out` as `metrics.json`.

    For a classifier also `per_class.csv`; `confusion.csv` and `confusion.png`, a row for each true class and a column
    for each predicted one, of those that occur; and `worst.png`, the images of highest loss as the model sees them.
    """
    labelled = model.config.objective.labelled
    source, report = model.source(images, labels=labelled), None
    if "logits" in model.objective.outputs and source.labels is not None:
        report = model.classification_report(source, class_map=class_map, label_offset=label_offset)
    values = report.metrics() if report else model.evaluate(source, class_map=class_map, label_offset=label_offset)
    if out is None or model.rank != 0:
        return values
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        (out / "metrics.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        if report is not None:
            _write_per_class(report, out / "per_class.csv")
            _write_confusion(report, out)
            _write_worst(report, model, source, out / "worst.png")
    say(f"evaluation in {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    return values


def _write_per_class(report: ClassificationReport, out: Path) -> None:
    each = report.per_class()
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["class", "images", "precision", "recall", "f1"])
        columns = (report.class_names, each.support, each.precision, each.recall, each.f1)
        for name, support, *shares in zip(*columns, strict=True):
            cells = ("" if np.isnan(share) else f"{share:.6f}" for share in shares)
            writer.writerow([printable(name), int(support), *cells])


def _write_confusion(report: ClassificationReport, folder: Path) -> None:
    occurs = np.flatnonzero(report.confusion.any(0) | report.confusion.any(1))
    counts, names = report.confusion[np.ix_(occurs, occurs)], [printable(report.class_names[i]) for i in occurs]
    with (folder / "confusion.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["true \\ predicted", *names])
        writer.writerows([name, *row] for name, row in zip(names, counts.tolist(), strict=True))
    confusion_chart(counts, names, folder / "confusion.png")


def _write_worst(report: ClassificationReport, model: Model, source: Source, out: Path) -> None:
    names = [printable(name) for name in report.class_names]
    crops = model.center_crops(SubsetSource(source, np.array([mistake.index for mistake in report.worst])))
    captions = [
        f"is {names[m.true]}\ntaken for {names[m.predicted]} ({m.confidence:.0%})\nloss {m.loss:.2f}"
        for m in report.worst
    ]
    contact_sheet(crops, out, captions=captions)


def write_reconstruction(model: Model, images: Images, out: Path, count: int) -> None:
    """`count` of the images original, masked, painted, and with the visible patches pasted, as one PNG."""
    painted = model.reconstruct(spread(model.source(images), count))
    section = model.painting()
    note = f"{section.mask_ratio:.0%} masked"
    if section.norm_pix_loss:
        note += "; brightness and contrast of masked patches estimated from the visible ones"
    with _aside(out) as path:
        reconstruction_grid(painted.original, painted.masked, painted.reconstruction, painted.pasted, path, note=note)
    say(f"{len(painted.original)} reconstructions in {out}")


def _check_bad(model: Model, bad: int, images: int, said: str = "") -> None:
    most = model.config.data.max_bad_share
    if bad > most * images:
        raise DataError(
            f"{said}{bad} of {images} images ({bad / images:.2%}) cannot be decoded, more than "
            f"data.max_bad_share={most}; --set data.max_bad_share=1 accepts any number"
        )


@contextmanager
def _collected(
    model: Model,
    source: Source,
    out: Path,
    job: Mapping[str, Any],
    dtype: np.dtype[np.void],
    compute: Callable[[int], Iterator[Records]],
) -> Generator[Records]:
    """All records, from `OUT.partial`, which is removed once `out` is written; lists bad images in `OUT.bad.txt`.

    Of several processes each computes its share, and the first writes.

    Raises DataError, once all that could be written is, when more images than `data.max_bad_share` are bad.
    """
    folder = out.with_name(f"{out.name}.partial")
    job = {**job, "model": model.fingerprint(), "images": source.fingerprint()}
    size = min(model.batch_size, len(source))
    records = collect(
        folder,
        job,
        dtype,
        len(source),
        compute,
        batch_size=size,
        title=job["command"],
        rank=model.rank,
        world=model.world,
        wait=model.wait,
    )
    yield records
    if model.rank != 0:
        return
    bad = np.flatnonzero(~records["valid"])
    bad_list = out.with_name(f"{out.name}.bad.txt")
    bad_list.unlink(missing_ok=True)
    if len(bad):
        _write_lines(bad_list, (printable(source.name(int(i))) for i in bad))
        say(f"{len(bad)} of {len(source)} images cannot be decoded; they are listed in {bad_list}")
    shutil.rmtree(folder)
    _check_bad(model, len(bad), len(source), f"{out} is written, but ")


def _likeliest(rows: Rows, dtype: np.dtype[np.void]) -> Records:
    top = dtype["class"].shape[0]
    best = np.argsort(-rows.values, axis=1, kind="stable")[:, :top]
    records = np.empty(len(rows.index), dtype)
    records["valid"], records["class"] = rows.valid, best
    records["probability"] = np.take_along_axis(rows.values, best, axis=1)
    return records


def _chunks(records: Records) -> Iterator[Records]:
    return (records[start : start + _CHUNK] for start in range(0, len(records), _CHUNK))


def _named(model: Model, source: Source, chunks: Iterable[Records]) -> Iterator[list[Prediction]]:
    names = dict(enumerate(model.class_names or ()))
    index = 0
    for chunk in chunks:
        predictions: list[Prediction] = []
        columns = (chunk[name].tolist() for name in ("valid", "class", "probability"))
        for valid, classes, shares in zip(*columns, strict=True):
            best = [(names.get(c, str(c)), p) for c, p in zip(classes, shares, strict=True)]
            predictions.append((printable(source.name(index)), best if valid else []))
            index += 1
        yield predictions


def _write_csv(file: TextIO, chunks: Iterable[list[Prediction]], top: int) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["file", *_columns(top)])
    for chunk in chunks:
        writer.writerows([name, *(cell for label, p in best for cell in (label, f"{p:.6f}"))] for name, best in chunk)


def _write_jsonl(file: TextIO, chunks: Iterable[list[Prediction]]) -> None:
    for chunk in chunks:
        for name, best in chunk:
            file.write(json.dumps({"file": name, "predictions": best}, ensure_ascii=False) + "\n")


def _write_predictions_parquet(path: Path, chunks: Iterable[list[Prediction]], top: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = [pa.string(), *[pa.string(), pa.float32()] * top]
    schema = pa.schema(list(zip(["file", *_columns(top)], types, strict=True)))
    with pq.ParquetWriter(path, schema) as writer:
        for chunk in chunks:
            rows = [(name, *(cell for pair in best or [(None, None)] * top for cell in pair)) for name, best in chunk]
            arrays = [pa.array(column, type) for column, type in zip(zip(*rows, strict=True), types, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))


def _write_embeddings_parquet(path: Path, source: Source, records: Records, width: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    embedding: Any = pa.list_(pa.float32(), width)
    schema = pa.schema([("file", pa.string()), ("embedding", embedding)])
    index = 0
    with pq.ParquetWriter(path, schema) as writer:
        for chunk in _chunks(records):
            names = pa.array([printable(source.name(i)) for i in range(index, index + len(chunk))], pa.string())
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(chunk["embedding"].reshape(-1)), width)
            writer.write_batch(pa.record_batch([names, vectors], schema=schema))
            index += len(chunk)


def _columns(top: int) -> list[str]:
    return [column for k in range(1, top + 1) for column in (f"class_{k}", f"probability_{k}")]


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)


def _check_suffix(out: Path | None, allowed: Sequence[str]) -> None:
    if out is not None and out.suffix not in allowed:
        raise ConfigError(f"--out {out}: the file's name must end in {' or '.join(allowed)}")


@contextmanager
def _writing(out: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise UnmaskError(f"cannot write {out}: {error.strerror or error}") from error


@contextmanager
def _aside(out: Path) -> Generator[Path]:
    """A path to write to that becomes `out` when all is written: there is no half a file under that name."""
    with _writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(out) as path:
            yield path
