"""Work on many images by processes that need not talk to each other, nor run at the same time.

The images are cut into parts: ranges that follow from the images and the settings alone. A share is every n-th part.
What a part comes to is written as a file, and recorded once that is whole. Whoever finds all parts recorded completes
the work, and the last it writes is a manifest. So a process that dies leaves nothing but parts to be done, by any
number of processes later; and since nothing that is written depends on who writes it, a part that is done twice is the
same part.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.data.sources import files, remote
from unmask.data.sources.base import printable
from unmask.environment import launched
from unmask.errors import ConfigError, DataError
from unmask.files import ASIDE, RunLock, check_folder, fsync, sha256
from unmask.report.progress import say, speaking

MOST_PARTS = 4096
"""Parts of one size in which a work of any size is done, so that neither their list nor their number of files grows."""
_JOB = "job.json"
_READERS = 16
"""Requests at a time."""
_TOLD = 40
"""Characters of a value that is told; longer ones are checksums."""


@dataclass(frozen=True)
class Share:
    """Of `count` shares of a work that one whose number, from 0 on, is `index`."""

    index: int = 0
    count: int = 1

    @classmethod
    def of(cls, told: str | None = None) -> Share:
        """The share of this process: `told`, such as "3/100" for the third of a hundred, by default all.

        Processes that torchrun or msrun started together divide that among themselves. Raises ConfigError.
        """
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", "1/1" if told is None else told)
        number, count = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 1 <= number <= count:
            raise ConfigError(f"share {told}: give the number of a share and of all, from 1/100 to 100/100")
        rank, world = launched()
        return cls((number - 1) * world + rank, count * world)

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.count}"


def ends_of(total: int, batch_size: int, *, batches: int = 16) -> list[int]:
    """One past the last image of each part: of `batches` batches, more where there would be over MOST_PARTS."""
    size = batch_size * max(batches, -(-total // (MOST_PARTS * batch_size)))
    return [*range(size, total, size), total]


class Parts:
    """The parts of one work. What is known of them is in `folder`, on disk or behind a URL, which is gone at the end.

    `job` says, as JSON, what the work is: groups of settings by name. The files of the parts are in `place`.
    """

    def __init__(self, folder: str, job: Mapping[str, Mapping[str, Any]], share: Share, *, place: str) -> None:
        if re.match(r"\w+:/*$", place):  # of s3:// nothing is left but this
            raise ConfigError(
                f"{place.rstrip('/:')}:// is no place; give a folder of the store, such as s3://BUCKET/FOLDER"
            )
        self.folder, self.place, self.share = folder, place, share
        self._job = job
        self.ends: Sequence[int] = ()
        self._here = remote.staging(folder) if files.is_remote(folder) else Path(folder)
        """Where files are on their way, and the locks: on this machine."""
        self._name = f"{share.index + 1}-of-{share.count}"

    @contextmanager
    def begun(self, plan: Callable[[], Sequence[int]]) -> Generator[None]:
        """Within, this process has its share, and the parts are those that were planned when the work began, by `plan`.

        Raises ConfigError when `folder` is of another work, CheckpointError when another process has the same share.
        """
        # From afar there are no locks: processes on two machines would write the same bytes.
        with RunLock(self._here, f".lock-{self._name}"):
            path = f"{self.folder}/{_JOB}"
            if not files.exists(path):
                self.write_json(path, {**self._job, "ends": list(plan())})
            known = _json(path)
            self.check_job(known)
            self.ends = known.get("ends", [])
            if not self.ends:
                raise DataError(f"{printable(path)} is damaged; remove {printable(self.folder)}, and start again")
            yield

    def check_job(self, known: Mapping[str, Any]) -> None:
        """Raise ConfigError when `known`, which was made earlier, is of another work, with the differences."""
        before = {group: known[group] if isinstance(known.get(group), dict) else {} for group in self._job}
        changes = [
            f"{key.replace('_', '-')} {_differing(before[group].get(key), value)}"
            for group, values in self._job.items()
            for key, value in values.items()
            if before[group].get(key) != value
        ]
        if changes:
            raise ConfigError(
                f"{self.place} holds another result ({'; '.join(changes)}); remove it, or name another place"
            )

    def check_place(self, what: str) -> None:
        """Raise ConfigError when `place`, a folder, holds something other than this work."""
        if not files.is_remote(self.place):
            check_folder(Path(self.place))
        begun = files.exists(f"{self.folder}/{_JOB}")
        if not begun and files.exists(self.place) and any(files.listing(self.place)):
            raise ConfigError(f"{self.place} is not empty and holds no {what}; name another folder")

    def span(self, number: int) -> range:
        """The images of a part."""
        return range(self.ends[number - 1] if number else 0, self.ends[number])

    def todo(self) -> list[int]:
        """The parts of this share that are still to be done, those among them whose files are not as recorded."""
        recorded = self._recorded()
        mine = range(self.share.index, len(self.ends), self.share.count)
        done = {number for number, facts in self._read([n for n in mine if n in recorded]) if facts}
        return [number for number in mine if number not in done]

    def missing(self) -> int:
        """How many parts, of all shares, are still to be done."""
        return len(self.ends) - len(self._recorded())

    def images_done(self) -> int:
        return sum(len(self.span(number)) for number in self._recorded())

    @contextmanager
    def part(self, number: int, name: str) -> Generator[tuple[Path, dict[str, Any]]]:
        """Where to write a part's file, and a dictionary for what else is to be recorded of it.

        At the end the file is at `place`/`name`, and then the part is recorded.
        """
        facts: dict[str, Any] = {}
        with self.written(f"{self.place}/{name}") as aside:
            yield aside, facts
            facts |= {"file": {"name": name, "bytes": aside.stat().st_size, "sha256": sha256(aside)}}
        self.record(number, facts)

    def record(self, number: int, facts: Mapping[str, Any]) -> None:
        span = self.span(number)
        with self.written(self._record(number)) as aside:
            aside.write_text(json.dumps({"start": span.start, "stop": span.stop, **facts}), "utf-8")

    def records(self) -> Iterator[dict[str, Any]]:
        """What is recorded of each part, in order. Raises DataError when a file is not as recorded."""
        for number, facts in self._read(range(len(self.ends))):
            if facts is None:
                raise DataError(f"{self.place}: part {number} is gone or damaged; the same command does it again")
            yield facts

    @contextmanager
    def completing(self, complete: Callable[[], bool]) -> Generator[None]:
        """Within, this process completes the work for all. What fails is no error if another has completed it."""
        try:
            with speaking():
                yield
        except (OSError, DataError):
            if not complete():
                raise

    def say_missing(self) -> None:
        say(f"share {self.share} is done; {self.missing()} of {len(self.ends)} parts are others' and not there yet")

    @contextmanager
    def written(self, path: str) -> Generator[Path]:
        """A file to write to, which becomes `path`, durable and as a whole, at the end, and is gone after an error."""
        # Of each share and file always the same, so that what was left when it was killed is overwritten.
        aside = self._here / f"{ASIDE}{self._name}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"
        if files.is_remote(path):
            with remote.written(path, aside):
                yield aside
            return
        try:
            yield aside
            fsync(aside)
            aside.replace(path)
            fsync(Path(path).parent)
        finally:
            with suppress(OSError):
                aside.unlink()

    def write_json(self, path: str, value: Mapping[str, Any]) -> None:
        with self.written(path) as aside:
            aside.write_text(json.dumps(value, indent=1), "utf-8")

    def write_lines(self, path: str, lines: Iterable[str]) -> None:
        with self.written(path) as aside, aside.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)

    def forget(self) -> None:
        """Remove what is known of the parts: the work is complete."""
        try:
            if files.is_remote(self.folder):
                remote.remove(self.folder)
        except DataError as error:  # who may write to a store may not remove
            say(f"{error}; the result does not need it any more")
        shutil.rmtree(self._here, ignore_errors=True)

    def _recorded(self) -> set[int]:
        if not files.exists(f"{self.folder}/{_JOB}"):  # complete, and forgotten by another process
            return set(range(len(self.ends)))
        names = (re.fullmatch(r"(\d{6,})\.json", name) for name, _, _ in files.listing(self.folder))
        return {int(found[1]) for found in names if found} & set(range(len(self.ends)))

    def _read(self, numbers: Sequence[int]) -> Iterator[tuple[int, dict[str, Any] | None]]:
        """What is recorded of these parts; None where that is not of this range, or not of the file that is there."""
        sizes: dict[str, int] | None = None
        with ThreadPoolExecutor(_READERS) as pool:
            for first in range(0, len(numbers), _READERS):
                some = numbers[first : first + _READERS]
                for number, facts in zip(some, pool.map(_json, map(self._record, some)), strict=True):
                    file: dict[str, Any] | None = facts.get("file")
                    if file and sizes is None:
                        sizes = dict(_sizes(self.place))
                    span = self.span(number)
                    whole = not file or (sizes or {}).get(file["name"]) == file["bytes"]
                    is_it = (facts.get("start"), facts.get("stop")) == (span.start, span.stop) and whole
                    yield number, facts if is_it else None

    def _record(self, number: int) -> str:
        return f"{self.folder}/{number:06}.json"


def _json(path: str) -> dict[str, Any]:
    """What a file of ours holds; nothing where it is damaged."""
    try:
        found: Any = json.loads(files.read(path))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _sizes(folder: str) -> Iterator[tuple[str, int]]:
    """Name and bytes of each file in a folder, by one request."""
    if files.is_remote(folder):
        yield from ((name, size) for name, size, is_folder in files.listing(folder) if not is_folder)
    else:
        with os.scandir(folder) as entries:
            yield from ((entry.name, entry.stat().st_size) for entry in entries)


def _differing(before: object, now: object) -> str:
    return "differs" if len(str(now)) > _TOLD else f"{before}, not {now}"
