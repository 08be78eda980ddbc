"""Records that are computed batch by batch and outlive the process that computes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unmask.data.parts import Parts, Share, ends_of
from unmask.errors import UnmaskError
from unmask.files import cause
from unmask.report.progress import Bar, progress, say

_ROWS = "rows.bin"

Records = npt.NDArray[np.void]
"""(n,) of a structured type."""
Compute = Callable[[Sequence[range]], Iterator[Records]]
"""The records of the images in some spans, in order, batch by batch; no batch has images of two spans."""


def collect(
    folder: Path,
    job: Mapping[str, Mapping[str, Any]],
    dtype: npt.DTypeLike,
    total: int,
    compute: Compute,
    *,
    batch_size: int,
    title: str,
    share: Share = Share(),  # noqa: B008 (frozen)
) -> Records | None:
    """(total,) records of `dtype`, in order, memory-mapped from `folder`; None while parts of others are missing.

    They are computed in parts of 16 batches or more, a file each until all are there: what a process that is killed has
    to do again. `job`, see `Parts`, describes what is computed. Raises ConfigError if the folder holds another job,
    CheckpointError if another process is at work on this share, and UnmaskError if it cannot be written.
    """
    dtype = np.dtype(dtype)
    rows = folder / _ROWS
    parts = Parts(str(folder), {**job, "records": {"type": str(dtype)}}, share, place=str(folder))
    try:
        with parts.begun(lambda: ends_of(total, batch_size)):
            if rows.exists():
                say(f"{title}: {total} of {total} images are done already")
            else:
                for number, batches, bar in shared(parts, compute, title):
                    with parts.part(number, f"{number:06}.bin") as (aside, _), aside.open("wb") as file:
                        for records in batches:
                            file.write(records.tobytes())
                            bar.update(len(records))
                if parts.missing():
                    parts.say_missing()
                    return None
                with parts.completing(rows.exists):
                    _join(parts, rows)
            for name in folder.glob("??????.bin"):
                name.unlink(missing_ok=True)
    except OSError as error:
        raise UnmaskError(f"cannot write {folder}: {cause(error)}") from error
    return np.memmap(rows, dtype, "r", shape=(total,))


def shared(parts: Parts, compute: Compute, title: str) -> Iterator[tuple[int, Iterator[Records], Bar]]:
    """Number and records of each part that this share has to do; all of a part's have been taken before the next."""
    total, todo = parts.ends[-1], parts.todo()
    if done := parts.images_done():
        say(f"{title}: {done} of {total} images are done already")
    spans = [parts.span(number) for number in todo]
    batches = compute(spans)
    with progress(title, total=sum(map(len, spans)), unit="image") as bar:
        for number, span in zip(todo, spans, strict=True):
            yield number, _first(batches, len(span)), bar


def _first(batches: Iterator[Records], count: int) -> Iterator[Records]:
    while count > 0:
        records = next(batches)
        count -= len(records)
        yield records


def _join(parts: Parts, rows: Path) -> None:
    """All records in one file."""
    with parts.written(str(rows)) as aside, aside.open("wb") as file:
        for record in parts.records():
            file.write((rows.parent / record["file"]["name"]).read_bytes())
