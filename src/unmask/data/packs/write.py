"""`unmask pack`: the images of any source in plain tars of one size, to be read at random from disk or from a server.

A pack is `000000.tar`, `000001.tar` … with the images in their source's order, `index.parquet`, `bad_images.txt` where
some could not be decoded, and `manifest.json`, which is written last. Until then `.parts` records what is done, see
`unmask.data.parts`: which images a shard holds is decided before the first is written, so any number of processes may
write them. For a URL, each file is written to the cache folder and sent when whole.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.config.schema import DataConfig
from unmask.data.decode.picture import DecodeError, FormError
from unmask.data.packs.members import Members
from unmask.data.packs.recode import recode
from unmask.data.parts import Parts, Share
from unmask.data.sources import Source, files, open_with_labels_if_any
from unmask.data.sources.base import printable
from unmask.data.sources.pack import BAD, FORMAT, INDEX, PARTS, VERSION, index_bytes, manifest_path, read_manifest
from unmask.data.sources.table import Table
from unmask.environment import cores
from unmask.errors import ConfigError, DataError, StorageError
from unmask.files import cause
from unmask.report.progress import Bar, progress, say

_END = bytes(1024)
"""Of a tar."""
_AHEAD = 4
"""Images that each worker has in progress."""
_SAMPLED = 256
"""Images that tell how large all are."""


@dataclass(frozen=True)
class Settings:
    """What determines the bytes of a pack, apart from the images."""

    short_side: int | None
    quality: int | None
    shard_size: int


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
    data: DataConfig | None = None,
    share: str | None = None,
) -> bool:
    """Write the images of `source`, anything `data.train` may name, as a pack to `out`, a folder or a URL.

    Files go in as they are; with `short_side` (pixels), larger ones are resized (see `recode`), JPEG and WebP with
    `quality` (1 to 100). A shard holds up to `shard_size` bytes, or about as many where a sample has to tell (with
    `short_side`, and of lists and Parquet); on its way to a URL it is in the cache folder. `workers` threads (default:
    one a core) do not change the result. The same call again continues where an earlier one ended. Images that cannot
    be decoded are left out; of `data`, `max_pixels`, `nodata` and `frame` count. `share`: see
    `unmask.write_embeddings`. Returns whether the pack is complete.

    Raises ConfigError when a setting is not possible or `out` holds something else; DataError when `source` cannot be
    used, more than `max_bad_share` of its images cannot be decoded, or `out` cannot be written; CheckpointError when
    another process writes to `out`.
    """
    _check_settings(short_side, quality, shard_size, workers)
    out = files.absolute(str(out).removeprefix("file://"))
    images = _open(str(source))
    settings = Settings(short_side, quality if short_side else None, shard_size)
    packer = _Packer(images, out, settings, max_bad_share, data or DataConfig(), Share.of(share))
    try:
        return packer.run(workers or cores())
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
        say(f"no labels are packed. A classifier would need them: {without}")
    return images


class _Packer:
    def __init__(
        self, images: Source, out: str, settings: Settings, max_bad_share: float, data: DataConfig, share: Share
    ) -> None:
        self._images, self._out, self._settings = images, out, settings
        self._limits = {name: getattr(data, name) for name in ("max_pixels", "nodata", "frame")}
        self._most_bad = max_bad_share * len(images)
        limits = {name: value for name, value in self._limits.items() if value != getattr(DataConfig(), name)}
        self._job = {
            "settings": asdict(settings) | limits,
            "source": {"images": len(images), "fingerprint": images.fingerprint()},
        }
        self._parts = Parts(f"{out}/{PARTS}", self._job, share, place=out)

    def run(self, workers: int) -> bool:
        if (manifest := read_manifest(self._out)) is not None:
            self._parts.check_job(manifest)
            self._parts.forget()
            say(f"{self._out} is complete")
            return True
        self._parts.check_place("pack")
        members = Members(self._images)
        with self._parts.begun(lambda: self._plan(members)):
            self._write_shards(members, workers)
            if self._parts.missing():
                self._parts.say_missing()
                return False
            with self._parts.completing(lambda: read_manifest(self._out) is not None):
                self._finish(members)
        return True

    def _plan(self, members: Members) -> list[int]:
        """One past the last image of each shard: as many as fit, by the files' sizes, or by what a sample becomes."""
        table = getattr(self._images, "index", None)
        sizes = table.columns.get("size") if isinstance(table, Table) else None
        if sizes is None or not sizes.any() or self._settings.short_side is not None:
            sizes = np.ones(len(self._images)) if sizes is None else np.maximum(sizes, 1)
            rows = np.unique(np.linspace(0, len(sizes) - 1, _SAMPLED).astype(np.int64))
            encoded = [self._encode(row) for row in rows.tolist()]
            of_files = sum(float(sizes[item.index]) for item in encoded if not item.problem)
            sizes = sizes * (sum(len(item.data) for item in encoded) / max(of_files, 1.0))
        filled = np.cumsum(members.bytes_of(sizes))
        room = self._settings.shard_size - len(_END)
        ends = [0]
        while ends[-1] < len(filled):
            before = int(filled[ends[-1] - 1]) if ends[-1] else 0
            ends.append(max(ends[-1] + 1, int(np.searchsorted(filled, before + room, "right"))))
        return ends[1:]

    def _write_shards(self, members: Members, workers: int) -> None:
        """Write those of this share that are not there yet."""
        todo = self._parts.todo()
        if done := self._parts.images_done():
            say(f"{done} of {len(self._images)} images are done already")
        spans = [self._parts.span(number) for number in todo]
        bad: list[str] = []
        with (
            closing(_in_order(self._encode, chain.from_iterable(spans), workers)) as encoded,
            progress("pack", total=sum(map(len, spans)), unit="image") as bar,
        ):
            items = self._watched(encoded, bad, bar)
            for number, span in zip(todo, spans, strict=True):
                self._write_shard(number, islice(items, len(span)), members)

    def _write_shard(self, number: int, items: Iterator[Encoded], members: Members) -> None:
        rows: list[tuple[int, int, int]] = []
        bad: list[str] = []
        with self._parts.part(number, f"{number:06}.tar") as (aside, facts):
            with aside.open("wb") as file:
                for item in items:
                    if item.problem:
                        bad.append(item.problem)
                    else:
                        content, start = members.of(item.index, item.data, changed=item.changed)
                        rows.append((item.index, file.tell() + start, len(item.data)))
                        file.write(content)
                file.write(_END)
            # Of each image its number in the source, its first byte in the shard, its length in bytes.
            facts |= {"rows": rows, "bad": bad}

    def _watched(self, items: Iterator[Encoded], bad: list[str], bar: Bar) -> Iterator[Encoded]:
        """`items`, counted; bad ones are added to `bad`. Raises DataError when too many are."""
        for item in items:
            if item.problem:
                bad.append(item.problem)
                self._check_bad(bad)
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
            stored = recode(data, settings.short_side, settings.quality or 0, **self._limits)
        except FormError as error:  # something to install, which must not decide either
            raise DataError(f"{name}: {error}") from None
        except DecodeError as error:
            return Encoded(index, problem=f"{name}: {error}")
        return Encoded(index, stored, changed=stored is not data)

    def _finish(self, members: Members) -> None:
        rows: list[NDArray[np.int64]] = []
        shards: list[dict[str, Any]] = []
        bad: list[str] = []
        for number, record in enumerate(self._parts.records()):
            of_shard = np.array(record["rows"], np.int64).reshape(-1, 3)
            rows.append(np.insert(of_shard, 0, number, axis=1))
            shards.append({"images": len(of_shard), **record["file"]})
            bad += record["bad"]
        bad_list = f"{self._out}/{BAD}"
        self._check_bad(bad)
        if bad:
            self._parts.write_lines(bad_list, bad)
            say(f"{len(bad)} images cannot be decoded and are left out; they are listed in {bad_list}")
        else:
            files.remove(bad_list)
        places = np.concatenate(rows)
        index = index_bytes(members.names, places, *members.labels(places[:, 1]))
        with self._parts.written(f"{self._out}/{INDEX}") as aside:
            aside.write_bytes(index)
        size = sum(shard["bytes"] for shard in shards)
        images = sum(shard["images"] for shard in shards)
        class_names = self._images.class_names
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "images": images,
            "bytes": size,
            "bad": len(bad),
            "class_names": None if class_names is None else list(class_names),
            "labels_in_names": members.labels_in_names,
            **self._job,
            "index": {"name": INDEX, "bytes": len(index), "sha256": hashlib.sha256(index).hexdigest()},
            "shards": shards,
        }
        self._parts.write_json(manifest_path(self._out), manifest)
        self._parts.forget()
        say(f"{self._out}: {images} images in {len(shards)} shards, {size / 1e6:.1f} MB")

    def _check_bad(self, bad: list[str]) -> None:
        if len(bad) > self._most_bad:
            self._parts.write_lines(f"{self._out}/{BAD}", bad)
            raise DataError(
                f"{len(bad)} of {len(self._images)} images cannot be decoded, the last is {bad[-1]}; "
                f"they are listed in {self._out}/{BAD}: repair them or raise --max-bad-share"
            )


def _in_order(make: Callable[[int], Encoded], indices: Iterable[int], workers: int) -> Generator[Encoded]:
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
