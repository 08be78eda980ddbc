"""Predictions, embeddings, evaluations and reconstructions as files, for any number of images."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from unmask.data.decode.raster import why_bad
from unmask.data.parts import Parts, Share, ends_of
from unmask.data.sources import Source, files
from unmask.data.sources.base import printable
from unmask.data.sources.subset import SubsetSource, spread
from unmask.errors import ConfigError, DataError, UnmaskError
from unmask.evaluate.classification import ClassificationReport
from unmask.evaluate.inference import Images, Model, Pool, Rows
from unmask.evaluate.resumable import Records, collect, shared
from unmask.files import cause, sha256, write_text, written_aside
from unmask.report.charts import confusion_chart
from unmask.report.pictures import contact_sheet, reconstruction_grid
from unmask.report.progress import Bar, say, speaking, table

_CHUNK = 4096
"""Rows that are read back and written at a time: those of a row group of a Parquet file."""

_MANIFEST = "_manifest.json"

Prediction = tuple[str, list[tuple[str, float]]]
"""Name of an image, and its likeliest classes with their probabilities: none where it could not be decoded."""


def write_predictions(
    model: Model, images: Images, out: str | Path | None, *, top: int = 5, share: str | None = None
) -> bool:
    """The `top` likeliest classes of each image with their probabilities; `out` None: as CSV on stdout.

    `out` names a file, .csv, .jsonl or .parquet, or a folder of Parquet files, here or at a URL, see `_write`. CSV and
    Parquet: `file, class_1, probability_1, ...`. JSONL: `{"file": ..., "predictions": [[class, probability], ...]}` a
    line. An image that cannot be decoded has no predictions. Otherwise as `write_embeddings`.
    """
    source = model.source(images)
    top = min(top, model.config.model.num_classes or top)
    dtype = np.dtype([("valid", "?"), ("class", "<i4", (top,)), ("probability", "<f4", (top,))])

    def compute(spans: Sequence[range] | None) -> Iterator[Records]:
        return (_likeliest(rows, dtype) for rows in model.predict_batches(source, spans))

    def save(path: Path, suffix: str, start: int, chunks: Iterable[Records]) -> None:
        named = _named(model, source, start, chunks)
        if suffix == ".parquet":
            _write_predictions_parquet(path, named, top)
        else:
            with path.open("w", encoding="utf-8", newline="") as file:
                _write_csv(file, named, top) if suffix == ".csv" else _write_jsonl(file, named)

    if out is None:
        if Share.of(share).count > 1:
            raise ConfigError("of several processes no one can print for all; give --out FILE")
        bad, computed = 0, compute(None)

        def counted() -> Iterator[Records]:
            nonlocal bad
            for records in computed:
                bad += int((~records["valid"]).sum())
                yield records

        _write_csv(sys.stdout, _named(model, source, 0, counted()), top)
        check_bad(model, source, bad)
        return True
    result = _Result("predict", {"top": top}, "predictions", dtype, (".csv", ".jsonl", ".parquet"), compute, save)
    return _write(model, source, result, str(out), Share.of(share))


def write_embeddings(
    model: Model, images: Images, out: str | Path, *, pool: Pool | None = None, share: str | None = None
) -> bool:
    """One feature vector per image: `file` and `embedding` of Parquet, or .npy (N, width) float32 with `.names.txt`.

    `out` names a file, or a folder of Parquet files with a manifest, here or at a URL such as s3://BUCKET/FOLDER. An
    image that cannot be decoded has a vector of NaN, and is listed. Killed on the way, the same call goes on.

    `share`, such as "3/100" for the third of a hundred: compute only every hundredth part. Whoever has each of the
    others may work at the same time or later, on any machine that sees `out`; the last completes the result, and it is
    the same for any number of shares. Returns whether all is there.

    Raises ConfigError for another file type, and where `out` is something else already; DataError, once all that could
    be written is, when more images than `data.max_bad_share` cannot be decoded; UnmaskError when it cannot be written.
    """
    source = model.source(images)
    width = model.feature_width(pool)
    dtype = embedding_records(width)

    def compute(spans: Sequence[range]) -> Iterator[Records]:
        return embeddings(model, source, spans, pool)

    def save(path: Path, suffix: str, start: int, chunks: Iterable[Records]) -> None:
        if suffix == ".parquet":
            _write_embeddings_parquet(path, source, start, chunks, width)
        else:
            _write_npy(path, chunks, (len(source), width))

    result = _Result("embed", {"pool": pool}, "embeddings", dtype, (".parquet", ".npy"), compute, save)
    return _write(model, source, result, str(out), Share.of(share))


def embedding_records(width: int) -> np.dtype[np.void]:
    return np.dtype([("valid", "?"), ("embedding", "<f4", (width,))])


def embeddings(model: Model, source: Source, spans: Sequence[range], pool: Pool | None) -> Iterator[Records]:
    """Records of `embedding_records` of the images in some spans, batch by batch."""
    dtype = embedding_records(model.feature_width(pool))
    for rows in model.embed_batches(source, spans, pool=pool):
        records = np.empty(len(rows.index), dtype)
        records["valid"], records["embedding"] = rows.valid, rows.values
        yield records


@dataclass(frozen=True)
class _Result:
    """What `embed` and `predict` differ in."""

    command: str
    settings: Mapping[str, Any]
    what: str
    """What there is one of for each image."""
    dtype: np.dtype[np.void]
    suffixes: tuple[str, ...]
    compute: Callable[[Sequence[range]], Iterator[Records]]
    save: Callable[[Path, str, int, Iterable[Records]], None]
    """Write to a path, as a file of this suffix, the records from an image on."""


def _write(model: Model, source: Source, result: _Result, out: str, share: Share) -> bool:
    """All records, in a file or a folder of Parquet files; a manifest, written last, says of what.

    A file `OUT` has `OUT.json` beside, `OUT.partial` until it is whole, and `OUT.bad.txt` where images cannot be
    decoded; a folder has `_manifest.json`, `.parts` and `_bad_images.txt` within, which readers of Parquet pass over.
    """
    job = {
        "settings": {"command": result.command, **result.settings, "model": model.fingerprint()},
        "source": {"images": len(source), "fingerprint": source.fingerprint()},
    }
    suffix = "" if out.endswith("/") or files.is_remote(out) else Path(out).suffix
    out = files.absolute(out) if files.is_remote(out) else str(Path(out))
    if suffix in result.suffixes:
        kind = _WholeFile(model, source, result, out, job, share)
    elif not suffix or Path(out).is_dir():
        kind = _Folder(model, source, result, out, job, share)
    else:
        allowed = ", ".join(result.suffixes)
        raise ConfigError(f"--out {out}: a file's name must end in {allowed}; a folder's with a slash")
    with _writing(out):
        bad = kind.run()
    if bad is None:
        return False
    with speaking():
        check_bad(model, source, bad, f"{out} is written, but ")
    return True


@dataclass(frozen=True)
class _Output:
    model: Model
    source: Source
    result: _Result
    out: str
    job: Mapping[str, Mapping[str, Any]]
    share: Share


class _WholeFile(_Output):
    def run(self) -> int | None:
        """How many images are bad; None while parts are missing."""
        out, partial = Path(self.out), Path(f"{self.out}.partial")
        manifest = Path(f"{self.out}.json")
        out.parent.mkdir(parents=True, exist_ok=True)
        parts = Parts(str(partial), self.job, self.share, place=self.out)
        if (known := _manifest(str(manifest), out)) is not None:
            return _there(parts, known)
        if not partial.exists():
            # Names beside a manifest of ours are left over from a result that was removed.
            names = [_names_of(out)] if out.suffix == ".npy" and _manifest(str(manifest)) is None else []
            for path in (out, *names):
                if path.exists():
                    raise ConfigError(
                        f"{path} is there already, and no result of this command; name another, or remove it"
                    )
        size = min(self.model.batch_size, len(self.source))
        records = collect(
            partial,
            self.job,
            self.result.dtype,
            len(self.source),
            self.result.compute,
            batch_size=size,
            title=self.result.command,
            share=self.share,
        )
        if records is None:
            return None
        with parts.completing(lambda: _manifest(str(manifest), out) is not None):
            self._complete(parts, records, manifest)
        return int((_manifest(str(manifest), out) or {"bad": 0})["bad"])

    def _complete(self, parts: Parts, records: Records, manifest: Path) -> None:
        out, source = Path(self.out), self.source
        with parts.written(self.out) as path:
            self.result.save(path, out.suffix, 0, _chunks(records))
            facts = {"name": out.name, "bytes": path.stat().st_size, "sha256": sha256(path)}
        if out.suffix == ".npy":
            parts.write_lines(str(_names_of(out)), (printable(source.name(i)) for i in range(len(source))))
        say(f"{len(source)} {self.result.what} in {out}")
        bad = np.flatnonzero(~records["valid"])
        lines = (_line(self.model, source, int(index)) for index in bad)
        _list_bad(parts, f"{out}.bad.txt", lines, len(bad), len(source))
        parts.write_json(str(manifest), {**_head(self.job), "bad": len(bad), "file": facts})
        parts.forget()


class _Folder(_Output):
    """Parts that stay as they are: no process reads what another has written, but for a few lines of each."""

    def run(self) -> int | None:
        """How many images are bad; None while parts are missing."""
        parts = Parts(f"{self.out}/.parts", self.job, self.share, place=self.out)
        manifest = f"{self.out}/{_MANIFEST}"
        if (known := _manifest(manifest)) is not None:
            return _there(parts, known)
        parts.check_place(self.result.what)
        size = min(self.model.batch_size, len(self.source))
        with parts.begun(lambda: ends_of(len(self.source), size)):
            for number, batches, bar in shared(parts, self.result.compute, self.result.command):
                self._write_part(parts, number, batches, bar)
            if parts.missing():
                parts.say_missing()
                return None
            with parts.completing(lambda: _manifest(manifest) is not None):
                self._complete(parts, manifest)
            return int((_manifest(manifest) or {"bad": 0})["bad"])

    def _write_part(self, parts: Parts, number: int, batches: Iterator[Records], bar: Bar) -> None:
        start = parts.span(number).start
        bad: list[str] = []

        def counted() -> Iterator[Records]:
            first = start
            for records in batches:
                rows = np.flatnonzero(~records["valid"])
                bad.extend(_line(self.model, self.source, first + int(row)) for row in rows)
                first += len(records)
                bar.update(len(records))
                yield records

        with parts.part(number, f"part-{number:06}.parquet") as (aside, facts):
            self.result.save(aside, ".parquet", start, _gathered(counted()))
            facts["bad"] = bad

    def _complete(self, parts: Parts, manifest: str) -> None:
        files_of_parts: list[dict[str, Any]] = []
        bad: list[str] = []
        for record in parts.records():
            files_of_parts.append({**record["file"], "images": record["stop"] - record["start"]})
            bad += record["bad"]
        say(f"{len(self.source)} {self.result.what} in {len(files_of_parts)} files in {self.out}")
        _list_bad(parts, f"{self.out}/_bad_images.txt", bad, len(bad), len(self.source))
        parts.write_json(manifest, {**_head(self.job), "bad": len(bad), "parts": files_of_parts})
        parts.forget()


def _head(job: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {"format": f"unmask {job['settings']['command']}", "version": 1, **job}


def _manifest(path: str, out: Path | None = None) -> dict[str, Any] | None:
    """The manifest at `path`; None where there is none, or `out` is not the file that it is of."""
    if not files.exists(path):
        return None
    try:
        known: Any = json.loads(files.read(path))
    except (ValueError, RecursionError):
        return None
    if not isinstance(known, dict) or not str(known.get("format", "")).startswith("unmask "):
        return None
    file: Any = known.get("file")
    is_of = out is None or (isinstance(file, dict) and out.is_file() and out.stat().st_size == file.get("bytes"))
    return known if is_of else None


def _there(parts: Parts, known: Mapping[str, Any]) -> int:
    """The bad images of a result that is complete. Raises ConfigError when it is of another work."""
    parts.check_job(known)
    say(f"{parts.place} is complete")
    return int(known.get("bad", 0))


def _names_of(out: Path) -> Path:
    return out.with_suffix(".names.txt")


def _list_bad(parts: Parts, path: str, bad: Iterable[str], count: int, images: int) -> None:
    if count:
        parts.write_lines(path, bad)
        say(f"{count} of {images} images cannot be decoded; they are listed in {path}")
    elif files.exists(path):
        files.remove(path)


def write_evaluation(
    model: Model,
    images: Images,
    out: Path | None,
    *,
    class_map: Path | None = None,
    label_offset: int | None = None,
) -> dict[str, float]:
    """What `Model.evaluate` returns, shown, and written to the folder `out` as `metrics.json`.

    For a classifier also `per_class.csv`; `confusion.csv` and `confusion.png`, a row for each true class and a column
    for each predicted one, of those that occur; and `worst.png`, the images of highest loss as the model sees them.
    """
    labelled = model.config.objective.labelled
    source, report = model.source(images, labels=labelled), None
    if "logits" in model.objective.outputs and source.labels is not None:
        report = model.classification_report(source, class_map=class_map, label_offset=label_offset)
    values = report.metrics() if report else model.evaluate(source, class_map=class_map, label_offset=label_offset)
    if model.rank == 0:
        if out is not None:
            _write_evaluation(out, model, source, values, report)
        rows = [[name, f"{value:.4f}" if name != "count" else int(value)] for name, value in values.items()]
        table(rows, ["", "value"])
        if "top1" in values:
            say(f"accuracy={values['top1']:.3f}")
    check_bad(model, source, len(source) - int(values["count"]))
    return values


def _write_evaluation(
    out: Path, model: Model, source: Source, values: Mapping[str, float], report: ClassificationReport | None
) -> None:
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "metrics.json", json.dumps(values, indent=2) + "\n")
        if report is not None:
            _write_per_class(report, out / "per_class.csv")
            _write_confusion(report, out)
            _write_worst(report, model, source, out / "worst.png")
    say(f"evaluation in {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


def _write_per_class(report: ClassificationReport, out: Path) -> None:
    each = report.per_class()
    with written_aside(out) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["class", "images", "precision", "recall", "f1"])
        columns = (report.class_names, each.support, each.precision, each.recall, each.f1)
        for name, support, *shares in zip(*columns, strict=True):
            cells = ("" if np.isnan(share) else f"{share:.6f}" for share in shares)
            writer.writerow([printable(name), int(support), *cells])


def _write_confusion(report: ClassificationReport, folder: Path) -> None:
    occurs = np.flatnonzero(report.confusion.any(0) | report.confusion.any(1))
    counts, names = report.confusion[np.ix_(occurs, occurs)], [printable(report.class_names[i]) for i in occurs]
    with written_aside(folder / "confusion.csv") as aside, aside.open("w", encoding="utf-8", newline="") as file:
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
    source = spread(model.source(images), count)
    painted = model.reconstruct(source)
    section = model.painting()
    note = f"{section.mask_ratio:.0%} masked"
    if section.norm_pix_loss:
        note += "; brightness and contrast of masked patches estimated from the visible ones"
    bad = len(source) - len(painted.original)
    with _aside(out) as path:
        reconstruction_grid(painted.original, painted.masked, painted.reconstruction, painted.pasted, path, note=note)
    say(f"{len(painted.original)} reconstructions in {out}")
    check_bad(model, source, bad, f"{out} is written, but ")


def check_bad(model: Model, source: Source, bad: int, said: str = "") -> None:
    """Raise DataError where more images could not be decoded than `data.max_bad_share` allows. `said` comes first."""
    most = model.config.data.max_bad_share
    if bad > most * len(source):
        raise DataError(
            f"{said}{bad} of {len(source)} images ({bad / len(source):.2%}) cannot be decoded, more than "
            f"data.max_bad_share={most}{_such_as(model, source)}; --set data.max_bad_share=1 accepts any number"
        )


def _such_as(model: Model, source: Source) -> str:
    for index in range(len(source)):
        if why := _why(model, source, index):
            return f", such as {printable(source.name(index))}: {why}"
    return ""


def _why(model: Model, source: Source, index: int) -> str:
    return why_bad(source, index, model.config.model.channels, model.config.data)


def _line(model: Model, source: Source, index: int) -> str:
    """Of a list of bad images: the name, and behind a tab the reason."""
    return f"{printable(source.name(index))}\t{_why(model, source, index) or 'could be read at another attempt'}"


def _likeliest(rows: Rows, dtype: np.dtype[np.void]) -> Records:
    top = dtype["class"].shape[0]
    best = np.argsort(-rows.values, axis=1, kind="stable")[:, :top]
    records = np.empty(len(rows.index), dtype)
    records["valid"], records["class"] = rows.valid, best
    records["probability"] = np.take_along_axis(rows.values, best, axis=1)
    return records


def _chunks(records: Records) -> Iterator[Records]:
    return (records[start : start + _CHUNK] for start in range(0, len(records), _CHUNK))


def _gathered(batches: Iterable[Records]) -> Iterator[Records]:
    """The same in chunks of at least _CHUNK, but for the last."""
    held: list[Records] = []
    for records in batches:
        held.append(records)
        if sum(map(len, held)) >= _CHUNK:
            yield np.concatenate(held)
            held = []
    if held:
        yield np.concatenate(held)


def _named(model: Model, source: Source, index: int, chunks: Iterable[Records]) -> Iterator[list[Prediction]]:
    """Of the images from `index` on."""
    names = {label: printable(name) for label, name in enumerate(model.class_names or ())}
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


def _write_npy(path: Path, chunks: Iterable[Records], shape: tuple[int, int]) -> None:
    """Not through a map of memory: on a full disk that ends the process by a signal."""
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in chunks:
            file.write(np.ascontiguousarray(chunk["embedding"]).data)


def _write_embeddings_parquet(path: Path, source: Source, index: int, chunks: Iterable[Records], width: int) -> None:
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


@contextmanager
def _writing(out: str | Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise UnmaskError(f"cannot write {out}: {cause(error)}; what is done so far is kept") from error


@contextmanager
def _aside(out: Path) -> Generator[Path]:
    """A path to write to that becomes `out` when all is written: there is no half a file under that name."""
    with _writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(out) as path:
            yield path
