"""Whatever the number of processes, the same samples in the same order, none lost and none twice (case 18)."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from unmask.config.schema import AugmentConfig, DataConfig, ModelConfig
from unmask.data.batch import Batch, Needs
from unmask.data.loader.order import sample_at
from unmask.data.loader.pipeline import eval_batches, train_batches
from unmask.data.masking import RandomMask

SIDE = 8
MODEL = ModelConfig(image_size=(SIDE, SIDE), patch_size=4)
NEEDS = Needs((RandomMask(4, 2),))
FIELDS = ("index", "images", "ids_keep")
Segment = tuple[int, int, int]
"""Steps until the run is stopped, processes, micro-batches."""
Arrays = dict[str, NDArray[Any]]


class Noise:
    """Images in memory, each unlike the others."""

    labels = class_names = None

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Any:
        return np.random.default_rng(index).integers(0, 256, (SIDE + 2, SIDE + 1, 3), np.uint8)

    def name(self, index: int) -> str:
        return str(index)

    def fingerprint(self) -> str:
        return ""


def join(batches: list[Batch]) -> Arrays:
    rows = [{"index": batch.index, "images": batch.images, **batch.inputs} for batch in batches]
    return {name: np.concatenate([row[name] for row in rows]) for name in FIELDS}


def share(
    count: int, batch_size: int, seed: int, segment: Segment, start: int, rank: int = 0, workers: int = 0
) -> list[list[Batch]]:
    """What one process sees of a segment that starts at a step; it is stopped in the middle of an endless run."""
    steps, world, accumulate = segment
    batches = train_batches(
        Noise(count),
        needs=NEEDS,
        model=MODEL,
        data=DataConfig(workers=workers),
        augment=AugmentConfig(),
        seed=seed,
        batch_size=batch_size,
        accumulate=accumulate,
        start_step=start,
        stop_step=10**6,
        rank=rank,
        world=world,
    )
    with closing(batches):
        return list(islice(batches, steps))


@st.composite
def journeys(draw: st.DrawFn) -> tuple[int, list[Segment]]:
    """A batch size, and segments of a run whose processes and micro-batches divide it."""
    batch_size = draw(st.sampled_from([24, 35]))
    segments = []
    for _ in range(draw(st.integers(2, 3))):
        world = draw(st.sampled_from([n for n in range(1, 9) if batch_size % n == 0]))
        rows = batch_size // world
        accumulate = draw(st.sampled_from([n for n in (1, 2, 3, 5) if rows % n == 0]))
        segments.append((draw(st.integers(0, 3)), world, accumulate))
    return batch_size, segments


@example(journey=(24, [(2, 8, 3), (1, 3, 1), (1, 6, 2)]), count=50, seed=0)
@example(journey=(35, [(1, 7, 5), (2, 5, 1), (1, 1, 5)]), count=36, seed=1)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(journey=journeys(), count=st.integers(1, 60), seed=st.integers(0, 2**31 - 1))
def test_a_run_that_changes_its_processes_sees_the_stream_of_one(
    journey: tuple[int, list[Segment]], count: int, seed: int
) -> None:
    batch_size, segments = journey
    seen: list[Batch] = []
    start = 0
    for segment in segments:
        ranks = [share(count, batch_size, seed, segment, start, rank) for rank in range(segment[1])]
        for of_ranks in zip(*ranks, strict=True):
            seen += [batch for micro_batches in of_ranks for batch in micro_batches]
        start += segment[0]
    if not start:
        return
    together = join(seen)
    alone = join([batch for (batch,) in share(count, batch_size, seed, (start, 1, 1), 0)])
    for name in FIELDS:
        assert_array_equal(together[name], alone[name], err_msg=name)

    index = together["index"].tolist()
    assert index == [sample_at(position, count, seed)[1] for position in range(start * batch_size)]
    for epoch in range(len(index) // count):
        assert sorted(index[epoch * count : (epoch + 1) * count]) == list(range(count))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(count=st.integers(1, 60), batch_size=st.integers(1, 17), world=st.integers(1, 8))
def test_evaluation_shows_each_image_once_to_one_process(count: int, batch_size: int, world: int) -> None:
    def evaluate(rank: int, world: int) -> list[Batch]:
        return list(
            eval_batches(
                Noise(count),
                needs=NEEDS,
                model=MODEL,
                data=DataConfig(),
                seed=1,
                batch_size=batch_size,
                rank=rank,
                world=world,
            )
        )

    ranks = [evaluate(rank, world) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1, "all take as many steps, or one would wait for ever"
    together = [batch for of_ranks in zip(*ranks, strict=True) for batch in of_ranks]
    assert all(len(batch) == batch_size for batch in together), "shapes never change"
    valid = np.concatenate([batch.valid for batch in together if batch.valid is not None])
    arrays, alone = join(together), join(evaluate(0, 1))
    assert arrays["index"][valid].tolist() == list(range(count))
    for name in FIELDS:
        assert_array_equal(arrays[name][:count], alone[name][:count], err_msg=name)


PROCESS = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from test_exactness import join, share

if __name__ == "__main__":
    steps, world, accumulate, start, rank, workers = map(int, sys.argv[3:])
    shares = share(50, 24, 3, (steps, world, accumulate), start, rank, workers)
    steps = [join(micro_batches) for micro_batches in shares]
    np.savez(sys.argv[2], **{name: np.stack([step[name] for step in steps]) for name in steps[0]})
"""


def test_real_processes_and_loader_processes_from_1_to_2_to_3_to_1(tmp_path: Path) -> None:
    """Each number is that of the loader processes of one process."""
    (tmp_path / "process.py").write_text(PROCESS)
    parts: list[Arrays] = []
    start = 0
    for number, workers in enumerate([[1], [0, 2], [0, 1, 0], [0]]):
        outputs = [tmp_path / f"{number}-{rank}.npz" for rank in range(len(workers))]
        command = [sys.executable, tmp_path / "process.py", Path(__file__).parent]
        running = [
            subprocess.Popen([*command, out, *map(str, (2, len(workers), 2, start, rank, workers[rank]))])
            for rank, out in enumerate(outputs)
        ]
        assert [process.wait(120) for process in running] == [0] * len(workers)
        ranks = [dict(np.load(out)) for out in outputs]
        parts.append({name: np.concatenate([rank[name] for rank in ranks], axis=1) for name in FIELDS})
        start += 2
    alone = join([batch for (batch,) in share(50, 24, 3, (start, 1, 1), 0)])
    for name in FIELDS:
        rows = np.concatenate([part[name].reshape(-1, *part[name].shape[2:]) for part in parts])
        assert_array_equal(rows, alone[name], err_msg=name)
    assert Counter(alone["index"][:150].tolist()) == dict.fromkeys(range(50), 3)
