"""Records that are computed batch by batch and outlive the process that computes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from io import BufferedWriter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unmask.errors import ConfigError, UnmaskError
from unmask.files import RunLock, written_aside
from unmask.report.progress import progress, say

_JOB, _ROWS = "job.json", "rows.bin"

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
) -> Records:
    """(total,) records of `dtype`, in order, memory-mapped from `folder`, where they are appended as they come.

    A process killed on the way leaves those it had, and the next call goes on after the last whole batch:
    `compute(start)` gives the records from `start` on, batch by batch. `job` describes what is computed. Raises
    ConfigError if the folder holds another job, CheckpointError if another process is at work there, and UnmaskError if
    it cannot be written.
    """
    dtype = np.dtype(dtype)
    with RunLock(folder):
        try:
            _check_job(folder, json.dumps({**job, "records": str(dtype), "total": total}, indent=2, sort_keys=True))
            with (folder / _ROWS).open("ab") as file:
                done = min(file.tell() // dtype.itemsize, total)
                if done < total:
                    done -= done % batch_size  # so that the batches are those of a run in one go
                file.truncate(done * dtype.itemsize)
                file.seek(0, 2)
                _append(file, done, total, compute, title)
        except OSError as error:
            raise UnmaskError(f"cannot write {folder}: {error.strerror or error}") from error
    return np.memmap(folder / _ROWS, dtype, "r", shape=(total,))


def _append(
    file: BufferedWriter, done: int, total: int, compute: Callable[[int], Iterator[Records]], title: str
) -> None:
    if done:
        say(f"{title}: {done} of {total} images are done already")
    if done == total:
        return
    with progress(title, total=total, done=done, unit="image") as bar:
        for records in compute(done):
            file.write(records.tobytes())
            file.flush()
            bar.update(len(records))


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
