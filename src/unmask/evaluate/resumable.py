"""Records that are computed batch by batch and outlive the process that computes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unmask.errors import ConfigError, UnmaskError
from unmask.files import RunLock, written_aside
from unmask.report.progress import progress, say

_JOB, _ROWS = "job.json", "rows.bin"

_PART_BATCHES = 16
"""Batches in a part: what a process that is killed has to compute again."""

Records = npt.NDArray[np.void]
"""(n,) of a structured type."""


def collect(
    folder: Path,
    job: Mapping[str, Any],
    dtype: npt.DTypeLike,
    total: int,
    compute: Callable[[int], Iterator[Records]],
    *,
    batch_size: int,
    title: str,
    rank: int = 0,
    world: int = 1,
    wait: Callable[[], object] = lambda: None,
) -> Records:
    """(total,) records of `dtype`, in order, memory-mapped from `folder`, where they are appended as they come.

    A process killed on the way leaves those it had, and the next call goes on after the last whole batch:
    `compute(start)` gives the records from `start` on, batch by batch. `job` describes what is computed. Of `world`
    processes, which must all call this and see the same folder, each computes every `world`-th part, a file each;
    `wait` returns once all have called it. The next call may be of any other number of processes. Raises ConfigError if
    the folder holds another job, CheckpointError if another process is at work there, and UnmaskError if it cannot be
    written.
    """
    dtype = np.dtype(dtype)
    rows = _Rows(folder, dtype, total, batch_size, compute, title)
    with ExitStack() as stack:
        try:
            if rank == 0:
                stack.enter_context(RunLock(folder))
                _check_job(folder, json.dumps({**job, "records": str(dtype), "total": total}, indent=2, sort_keys=True))
                rows.tidy()
                if rows.done:
                    say(f"{title}: {rows.done} of {total} images are done already")
            if world > 1:
                wait()
                rows.compute_parts(rank, world)
                wait()
            if rank == 0:
                rows.complete()
            wait()
        except OSError as error:
            raise UnmaskError(f"cannot write {folder}: {error.strerror or error}") from error
    return np.memmap(folder / _ROWS, dtype, "r", shape=(total,))


@dataclass(frozen=True)
class _Rows:
    """`rows.bin`, which grows row by row, and parts of what follows, `part-FIRST.bin`, which go into it in order."""

    folder: Path
    dtype: np.dtype[Any]
    total: int
    batch_size: int
    compute: Callable[[int], Iterator[Records]]
    title: str

    @property
    def done(self) -> int:
        return min((self.folder / _ROWS).stat().st_size // self.dtype.itemsize, self.total)

    def tidy(self) -> None:
        """Leave whole batches, so that the next are those of a run in one go, and take in what follows them."""
        with (self.folder / _ROWS).open("ab") as file:
            done = min(file.tell() // self.dtype.itemsize, self.total)
            if done < self.total:
                done -= done % self.batch_size
            file.truncate(done * self.dtype.itemsize)
        self._take_in()

    def compute_parts(self, rank: int, world: int) -> None:
        """This process's parts of what is not in `rows.bin`, those that are there already left out."""
        size = _PART_BATCHES * self.batch_size
        starts = [self.done, *range((self.done // size + 1) * size, self.total, size)]
        spans = [(start, stop) for start, stop in zip(starts, [*starts[1:], self.total], strict=True) if start < stop]
        with progress(self.title, total=self.total, done=self.done, unit="image") as bar:
            for start, stop in spans[rank::world]:
                part = self._part(start)
                if not part.exists():
                    with written_aside(part) as aside, aside.open("wb") as file:
                        for records in self._between(start, stop):
                            file.write(records.tobytes())
                bar.update(min(world * (stop - start), self.total - start))  # the others are as fast

    def complete(self) -> None:
        """Take in all parts, and compute between them what is missing."""
        self._take_in()
        if self.done == self.total:
            return
        with progress(self.title, total=self.total, done=self.done, unit="image") as bar:
            while self.done < self.total:
                later = (int(path.stem.removeprefix("part-")) for path in self.folder.glob("part-*.bin"))
                stop = min([start for start in later if start > self.done], default=self.total)
                with (self.folder / _ROWS).open("ab") as file:
                    for records in self._between(self.done, stop):
                        file.write(records.tobytes())
                        file.flush()
                        bar.update(len(records))
                bar.update(self._take_in())

    def _between(self, start: int, stop: int) -> Iterator[Records]:
        for records in self.compute(start):
            yield records[: stop - start]
            start += len(records)
            if start >= stop:
                return

    def _take_in(self) -> int:
        """Move the parts that follow to the end of `rows.bin`; how many rows those are."""
        before = self.done
        while (part := self._part(self.done)).exists():
            raw = part.read_bytes()
            with (self.folder / _ROWS).open("ab") as file:
                file.write(raw)
            part.unlink()
        return self.done - before

    def _part(self, start: int) -> Path:
        return self.folder / f"part-{start:012}.bin"


def _check_job(folder: Path, job: str) -> None:
    path = folder / _JOB
    if not path.exists():
        with written_aside(path) as aside:
            aside.write_text(job, encoding="utf-8")
    elif path.read_text(encoding="utf-8") != job:
        raise ConfigError(
            f"{folder} holds the first part of another result (other model, images or options); "
            "remove it or choose another output"
        )
