"""`unmask pack`: the images of any source in plain tars of one size, to be read at random from disk or from a server.

A pack is `000000.tar`, `000001.tar` … with the images in their source's order, `index.parquet`, `bad_images.txt` where
some could not be decoded, and `manifest.json`, which is written last. Until then `.parts` records what is done: a
shard counts once its part is recorded, so packing that was killed continues after the last complete shard. Every byte
is determined by the images and the settings. For a URL, each file is written to the cache folder and sent when whole.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unmask.config.schema import DataConfig
from unmask.data.decode.picture import DecodeError, FormError
from unmask.data.packs.members import Members
from unmask.data.packs.recode import recode
from unmask.data.sources import Source, files, open_with_labels_if_any, remote
from unmask.data.sources.base import printable
from unmask.data.sources.pack import BAD, FORMAT, INDEX, PARTS, VERSION, index_bytes, manifest_path, read_manifest
from unmask.environment import cores
from unmask.errors import ConfigError, DataError, StorageError
from unmask.files import RunLock, cause, written_aside
from unmask.report.progress import Bar, progress, say

_END = bytes(1024)
"""Of a tar."""
_AHEAD = 4
"""Images that each worker has in progress."""


@dataclass(frozen=True)
class Settings:
    """What determines the bytes of a pack, apart from the images."""

    short_side: int | None
    quality: int | None
    shard_size: int


@dataclass
class Part:
    """A finished shard."""

    start: int
    """Number of the first image of the source that was tried for it."""
    stop: int
    """One past the last that was tried."""
    bytes: int = 0
    sha256: str = ""
    rows: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])
    """For each image: its number in the source, its first byte in the shard, its length in bytes."""
    bad: list[str] = field(default_factory=list[str])
    """Images that cannot be decoded, and why."""


@dataclass(frozen=True)
class Encoded:
    """An image as it goes into the pack, or the reason why it does not."""

    index: int
    data: bytes = b""
    changed: bool = False
    """Whether `data` differs from the source's file."""
    problem: str = ""


def pack(
    source: str | Path,
    out: str | Path,
    *,
    short_side: int | None = None,
    quality: int = 90,
    shard_size: int = 256 << 20,
    max_bad_share: float = 0.001,
    workers: int | None = None,
    max_pixels: int = DataConfig().max_pixels,
) -> None:
    """Write the images of `source`, anything `data.train` may name, as a pack to `out`, a folder or a URL.

    Files go in as they are; with `short_side` (pixels), larger ones are resized (see `recode`), JPEG and WebP with
    `quality` (1 to 100). A shard holds up to `shard_size` bytes; on its way to a URL it is in the cache folder.
    `workers` threads (default: one a core) do not change the result. The same call again continues where an earlier one
    ended. Images that cannot be decoded, or have more than `max_pixels`, are left out.

    Raises ConfigError when a setting is not possible or `out` holds something else; DataError when `source` cannot be
    used, more than `max_bad_share` of its images cannot be decoded, or `out` cannot be written; CheckpointError when
    another process writes to `out`.
    """
    _check_settings(short_side, quality, shard_size, workers)
    out = files.absolute(str(out).removeprefix("file://"))
    images = _open(str(source))
    settings = Settings(short_side, quality if short_side else None, shard_size)
    packer = _Packer(images, out, settings, max_bad_share, max_pixels)
    try:
        packer.run(workers or cores())
    except OSError as error:
        raise DataError(f"cannot write {out}: {cause(error)}; make room or name another folder") from error


def _check_settings(short_side: int | None, quality: int, shard_size: int, workers: int | None) -> None:
    if short_side is not None and short_side < 1:
        raise ConfigError(f"--short-side {short_side} is not a number of pixels")
    if not 1 <= quality <= 100:
        raise ConfigError(f"--quality {quality} is not between 1 and 100")
    if shard_size < 1:
        raise ConfigError(f"--shard-size {shard_size} is not a size; give bytes, such as 256M")
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers {workers}: at least one is needed")


def _open(spec: str) -> Source:
    """With labels, if there are any."""
    images, without = open_with_labels_if_any(spec, key="SOURCE")
    if without:
        say(f"no labels are packed: {without}")
    return images


class _Packer:
    def __init__(self, images: Source, out: str, settings: Settings, max_bad_share: float, max_pixels: int) -> None:
        self._images, self._out, self._settings, self._max_pixels = images, out, settings, max_pixels
        self._parts = f"{out}/{PARTS}"
        self._most_bad = max_bad_share * len(images)
        self._job = {
            "settings": asdict(settings),
            "source": {"images": len(images), "fingerprint": images.fingerprint()},
        }

    def run(self, workers: int) -> None:
        if (manifest := read_manifest(self._out)) is not None:
            self._check_job(manifest)
            self._forget_parts()
            say(f"{self._out} is complete")
            return
        job = f"{self._parts}/job.json"
        if not files.exists(job) and files.exists(self._out) and any(files.listing(self._out)):
            raise ConfigError(f"{self._out} is not empty and holds no pack; name another folder")
        # From afar there are no locks: processes of the same job on two machines would write the same bytes.
        with RunLock(remote.staging(self._out) if files.is_remote(self._out) else Path(self._parts)):
            if files.exists(job):
                self._check_job(json.loads(files.read(job)))
            else:
                _write_json(job, self._job)
            parts = self._finished()
            members = Members(self._images)
            self._write_shards(members, parts, workers)
            self._finish(members, parts)
            self._forget_parts()

    def _check_job(self, there: dict[str, Any]) -> None:
        changes = [
            f"{key.replace('_', '-')} {there[group].get(key)}, not {value}"
            for group, values in self._job.items()
            for key, value in values.items()
            if there[group].get(key) != value
        ]
        if changes:
            raise ConfigError(
                f"{self._out} holds a pack made with other settings or images ({'; '.join(changes)}); "
                "remove it or name another folder"
            )

    def _finished(self) -> list[Part]:
        """The shards that are done, from the first on."""
        parts: list[Part] = []
        while files.exists(record := self._record(len(parts))):
            part = Part(**json.loads(files.read(record)))
            shard = self._shard(len(parts))
            if not files.exists(shard) or files.state(shard).size != part.bytes:
                break
            parts.append(part)
        return parts

    def _write_shards(self, members: Members, parts: list[Part], workers: int) -> None:
        """Write the shards that `parts` lacks, and add them."""
        count = len(self._images)
        start = parts[-1].stop if parts else 0
        if start == count:
            return
        if start:
            say(f"{start} of {count} images are done already")
        bad = [problem for part in parts for problem in part.bad]
        with (
            closing(_in_order(self._encode, range(start, count), workers)) as encoded,
            progress("pack", total=count, done=start, unit="image") as bar,
        ):
            items = self._watched(encoded, bad, bar)
            item = next(items, None)
            while item is not None:
                part, item = self._write_shard(len(parts), item, items, members)
                parts.append(part)

    def _write_shard(
        self, number: int, item: Encoded | None, items: Iterator[Encoded], members: Members
    ) -> tuple[Part, Encoded | None]:
        """Write `item` and as many of the following ones as fit. Returns the first that no longer fitted."""
        part = Part(0 if item is None else item.index, len(self._images))
        digest = hashlib.sha256()
        with _written(self._shard(number)) as aside, aside.open("wb") as file:
            while item is not None:
                if item.problem:
                    part.bad.append(item.problem)
                else:
                    content, start = members.of(item.index, item.data, changed=item.changed)
                    if part.rows and part.bytes + len(content) + len(_END) > self._settings.shard_size:
                        part.stop = item.index
                        break
                    part.rows.append((item.index, part.bytes + start, len(item.data)))
                    part.bytes += file.write(content)
                    digest.update(content)
                item = next(items, None)
            part.bytes += file.write(_END)
            digest.update(_END)
        part.sha256 = digest.hexdigest()
        _write_json(self._record(number), asdict(part))
        return part, item

    def _watched(self, items: Iterator[Encoded], bad: list[str], bar: Bar) -> Iterator[Encoded]:
        """`items`, counted. `bad`: what was found before them. Raises DataError when too many are bad."""
        for item in items:
            if item.problem:
                bad.append(item.problem)
            if len(bad) > self._most_bad:
                _write_lines(f"{self._out}/{BAD}", bad)
                raise DataError(
                    f"{len(bad)} of {len(self._images)} images cannot be decoded, the last is {item.problem}; "
                    f"they are listed in {self._out}/{BAD}: repair them or raise --max-bad-share"
                )
            bar.update()
            yield item

    def _encode(self, index: int) -> Encoded:
        settings, name = self._settings, printable(self._images.name(index))
        try:
            data = self._images.read(index)
        except StorageError:  # a network that fails must not decide what is in the pack
            raise
        except DataError as error:
            return Encoded(index, problem=f"{name}: {error}")
        try:
            stored = recode(data, settings.short_side, settings.quality or 0, max_pixels=self._max_pixels)
        except FormError as error:  # something to install, which must not decide either
            raise DataError(f"{name}: {error}") from None
        except DecodeError as error:
            return Encoded(index, problem=f"{name}: {error}")
        return Encoded(index, stored, changed=stored is not data)

    def _finish(self, members: Members, parts: list[Part]) -> None:
        rows = [(number, *row) for number, part in enumerate(parts) for row in part.rows]
        bad, bad_list = [problem for part in parts for problem in part.bad], f"{self._out}/{BAD}"
        if bad:
            _write_lines(bad_list, bad)
            say(f"{len(bad)} images cannot be decoded and are left out; they are listed in {bad_list}")
        else:
            _remove(bad_list)
        index = index_bytes(members.names, rows, members.labels)
        with _written(f"{self._out}/{INDEX}") as aside:
            aside.write_bytes(index)
        shards = [
            {"name": f"{number:06}.tar", "images": len(part.rows), "bytes": part.bytes, "sha256": part.sha256}
            for number, part in enumerate(parts)
        ]
        size = sum(part.bytes for part in parts)
        class_names = self._images.class_names
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "images": len(rows),
            "bytes": size,
            "bad": len(bad),
            "class_names": None if class_names is None else list(class_names),
            "labels_in_names": members.labels_in_names,
            **self._job,
            "index": {"name": INDEX, "bytes": len(index), "sha256": hashlib.sha256(index).hexdigest()},
            "shards": shards,
        }
        _write_json(manifest_path(self._out), manifest)
        say(f"{self._out}: {len(rows)} images in {len(shards)} shards, {size / 1e6:.1f} MB")

    def _forget_parts(self) -> None:
        try:
            _remove(self._parts)
        except DataError as error:  # who may write to a store may not remove
            say(f"{error}; the pack does not need it any more")

    def _shard(self, number: int) -> str:
        return f"{self._out}/{number:06}.tar"

    def _record(self, number: int) -> str:
        return f"{self._parts}/{number:06}.json"


def _in_order(make: Callable[[int], Encoded], indices: range, workers: int) -> Generator[Encoded]:
    """`make` of each index, by threads: reading files, Pillow and checksums let each other run."""
    with ThreadPoolExecutor(workers, thread_name_prefix="pack") as pool:
        pending: deque[Future[Encoded]] = deque()
        try:
            for index in indices:
                pending.append(pool.submit(make, index))
                if len(pending) > _AHEAD * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _write_json(path: str, value: dict[str, Any]) -> None:
    with _written(path) as aside:
        aside.write_text(json.dumps(value, indent=1), "utf-8")


def _write_lines(path: str, lines: list[str]) -> None:
    with _written(path) as aside:
        aside.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def _written(path: str) -> AbstractContextManager[Path]:
    """A file to write to, which becomes `path` as a whole at the end."""
    return remote.written(path) if files.is_remote(path) else written_aside(Path(path))


def _remove(path: str) -> None:
    """A file, or a folder with all in it, if it is there."""
    if files.is_remote(path):
        remote.remove(path)
    elif Path(path).is_dir():
        shutil.rmtree(path)
    else:
        Path(path).unlink(missing_ok=True)
