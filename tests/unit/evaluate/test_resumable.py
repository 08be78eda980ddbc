"""Records on disk: appended, cut back to whole batches, and refused to another job."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from unmask.errors import CheckpointError, ConfigError
from unmask.evaluate.resumable import collect

DTYPE = np.dtype([("valid", "?"), ("value", "<f4", (3,))])
JOB = {"model": "a"}


class Source:
    """Computes 25 records in batches of 4, and may break off."""

    def __init__(self, fails_at: int = 99) -> None:
        self.fails_at = fails_at
        self.started_at: list[int] = []

    def __call__(self, start: int) -> Iterator[np.ndarray]:
        self.started_at.append(start)
        for first in range(start, 25, 4):
            if first >= self.fails_at:
                raise RuntimeError("broken off")
            numbers = np.arange(first, min(first + 4, 25))
            records = np.empty(len(numbers), DTYPE)
            records["valid"], records["value"] = numbers % 5 != 0, numbers[:, None] + [0, 0.25, 0.5]
            yield records


def gather(folder: Path, source: Source, job: dict[str, str] = JOB) -> np.ndarray:
    return np.array(collect(folder, job, DTYPE, 25, source, batch_size=4, title="count"))


@pytest.mark.parametrize("torn", [0, 1, 13, 40])
def test_what_was_broken_off_goes_on_after_the_last_whole_batch(tmp_path: Path, torn: int) -> None:
    expected = gather(tmp_path / "whole", Source())
    assert expected["value"][:, 0].tolist() == list(range(25))
    with pytest.raises(RuntimeError):
        gather(tmp_path / "part", Source(fails_at=12))
    with (tmp_path / "part" / "rows.bin").open("ab") as file:
        file.write(b"\xff" * torn)  # as a process killed while it wrote leaves it
    source = Source()
    np.testing.assert_array_equal(gather(tmp_path / "part", source), expected)
    assert source.started_at == [12]


def test_finished_records_are_not_computed_again(tmp_path: Path) -> None:
    expected = gather(tmp_path, Source())
    source = Source()
    np.testing.assert_array_equal(gather(tmp_path, source), expected)
    assert source.started_at == []


def test_another_job_is_refused(tmp_path: Path) -> None:
    gather(tmp_path, Source())
    with pytest.raises(ConfigError, match="another result"):
        gather(tmp_path, Source(), {"model": "b"})


def test_only_one_process_writes(tmp_path: Path) -> None:
    class Second(Source):
        def __call__(self, start: int) -> Iterator[np.ndarray]:
            gather(tmp_path, Source())
            return super().__call__(start)

    with pytest.raises(CheckpointError, match="in use"):
        gather(tmp_path, Second())


@pytest.mark.parametrize(("before", "after"), [((1, 99), 3), ((1, 92), 2), ((3, 150), 1), ((2, 150), 4)])
def test_shares_of_any_number_of_processes_make_the_same_whole(
    tmp_path: Path, before: tuple[int, int], after: int
) -> None:
    """One number of processes breaks off at an image, another goes on. 300 images are five parts."""
    expected = gather_many(tmp_path / "whole", 1)
    world, fails_at = before
    with pytest.raises(RuntimeError):
        gather_many(tmp_path / "shared", world, fails_at)
    np.testing.assert_array_equal(gather_many(tmp_path / "shared", after), expected)
    assert sorted(path.name for path in (tmp_path / "shared").glob("*.bin")) == ["rows.bin"]


def gather_many(folder: Path, world: int, fails_at: int = 999) -> np.ndarray:
    """What several threads, in the place of processes, collect of 300 records."""
    together = threading.Barrier(world)

    def compute(start: int) -> Iterator[np.ndarray]:
        for first in range(start, 300, 4):
            if first >= fails_at:
                together.abort()
                raise RuntimeError("broken off")
            records = np.zeros(4, DTYPE)
            records["value"] = np.arange(first, first + 4)[:, None]
            yield records

    def gather_one(rank: int) -> np.ndarray:
        shared = {"rank": rank, "world": world, "wait": together.wait}
        return np.array(collect(folder, JOB, DTYPE, 300, compute, batch_size=4, title="count", **shared))

    with ThreadPoolExecutor(world) as pool:
        found = [future.result() for future in [pool.submit(gather_one, rank) for rank in range(world)]]
    return found[0]
