"""A record for each image, in a file or a folder of Parquet files, by any number of processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unmask.data.parts import Parts, Share, ends_of
from unmask.data.sources import Source, files
from unmask.data.sources.base import printable
from unmask.errors import ConfigError, UnmaskError
from unmask.evaluate.bad_images import check_bad, line_of
from unmask.evaluate.inference import Model
from unmask.evaluate.resumable import Records, collect, shared
from unmask.files import cause, check_free, sha256
from unmask.report.progress import Bar, say, speaking

_CHUNK = 4096
"""Rows that are read back and written at a time: those of a row group of a Parquet file."""

_MANIFEST = "_manifest.json"


@dataclass(frozen=True)
class Result:
    """What `embed` and `predict` differ in."""

    command: str
    settings: Mapping[str, Any]
    what: str
    """What there is one of for each image."""
    dtype: np.dtype[np.void]
    suffixes: tuple[str, ...]
    compute: Callable[[Sequence[range]], Iterator[Records]]
    save: Callable[[Path, str, int, Iterable[Records], Records | None], None]
    """Write to a path, as a file of this suffix, the records from an image on; last, all of them if it is one file."""


def write_result(model: Model, source: Source, result: Result, out: str, share: Share) -> bool:
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
    with writing(out):
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
    result: Result
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
            # What is beside a manifest of ours is left over from a result that was removed.
            ours = _manifest(str(manifest)) is not None
            names = [_names_of(out)] if out.suffix == ".npy" else []
            check_free(out, *([] if ours else [manifest, _bad_of(out), *names]))
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
            self.result.save(path, out.suffix, 0, _chunks(records), records)
            facts = {"name": out.name, "bytes": path.stat().st_size, "sha256": sha256(path)}
        if out.suffix == ".npy":
            parts.write_lines(str(_names_of(out)), (printable(source.name(i)) for i in range(len(source))))
        say(f"{len(source)} {self.result.what} in {out}")
        bad = np.flatnonzero(~records["valid"])
        lines = (line_of(self.model, source, int(index)) for index in bad)
        _list_bad(parts, str(_bad_of(out)), lines, len(bad), len(source))
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
                bad.extend(line_of(self.model, self.source, first + int(row)) for row in rows)
                first += len(records)
                bar.update(len(records))
                yield records

        with parts.part(number, f"part-{number:06}.parquet") as (aside, facts):
            self.result.save(aside, ".parquet", start, _gathered(counted()), None)
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


def _bad_of(out: Path) -> Path:
    return Path(f"{out}.bad.txt")


def _list_bad(parts: Parts, path: str, bad: Iterable[str], count: int, images: int) -> None:
    if count:
        parts.write_lines(path, bad)
        say(f"{count} of {images} images cannot be decoded; they are listed in {path}")
    elif files.exists(path):
        files.remove(path)


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


@contextmanager
def writing(out: str | Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise UnmaskError(f"cannot write {out}: {cause(error)}; what is done so far is kept") from error
