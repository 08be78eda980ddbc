import gc
import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from unmask.config.schema import AugmentConfig, DataConfig, ModelConfig
from unmask.data.batch import Batch, ClassTargets, Needs
from unmask.data.loader import pipeline
from unmask.data.loader.order import sample_at
from unmask.data.loader.pipeline import eval_batches, train_batches
from unmask.data.masking import DropPath, RandomMask
from unmask.data.sources import Source, open_source
from unmask.errors import ConfigError, DataError

MODEL = ModelConfig(image_size=(32, 32), patch_size=8)
MASKED = Needs((RandomMask(16, 4),))
LABELLED = Needs((DropPath(3, 0.3),), ClassTargets(2))
DATA = DataConfig()


@pytest.fixture
def source(colours: Path) -> Source:
    return open_source(str(colours), key="data.train", labels=True)


def train(source: Source, **changes: Any) -> Iterator[list[Batch]]:
    arguments: dict[str, Any] = {
        "needs": MASKED,
        "model": MODEL,
        "data": DATA,
        "augment": AugmentConfig(),
        "seed": 5,
        "batch_size": 8,
        "accumulate": 1,
        "start_step": 0,
        "stop_step": 12,
    }
    return train_batches(source, **arguments | changes)


def assert_same(left: list[list[Batch]], right: list[list[Batch]]) -> None:
    assert [len(step) for step in left] == [len(step) for step in right]
    for a, b in zip((x for step in left for x in step), (x for step in right for x in step), strict=True):
        for field in fields(Batch):
            if field.name != "inputs":
                assert_array_equal(getattr(a, field.name), getattr(b, field.name), err_msg=field.name)
        assert a.inputs.keys() == b.inputs.keys()
        for name in a.inputs:
            assert_array_equal(a.inputs[name], b.inputs[name], err_msg=name)


def test_a_batch_with_masks(source: Source):
    (batch,) = next(train(source))
    assert (batch.images.shape, batch.images.dtype) == ((8, 32, 32, 3), np.uint8)
    assert {name: array.shape for name, array in batch.inputs.items()} == {"ids_keep": (8, 4), "ids_mask": (8, 12)}
    assert batch.labels is batch.valid is None
    assert all(type(values) is np.ndarray for values in (batch.images, batch.index, *batch.inputs.values()))
    np.testing.assert_allclose(
        batch.images.mean((1, 2, 3)), [6 * int(source.name(i)[-6:-4]) for i in batch.index], atol=3
    )


def test_a_batch_with_targets(source: Source):
    (batch,) = next(train(source, needs=LABELLED))
    assert batch.inputs.keys() == {"keep_path", "targets"}
    assert batch.valid is None
    assert batch.labels is not None
    assert_array_equal(batch.inputs["targets"], np.eye(2)[batch.labels])
    assert [source.name(i).split("/")[0] for i in batch.index] == [("even", "odd")[c] for c in batch.labels]
    assert (batch.inputs["keep_path"].shape, batch.inputs["keep_path"].dtype) == ((8, 3, 2), np.bool_)


@pytest.mark.parametrize(("needs", "workers"), [(MASKED, 1), (MASKED, 2), (LABELLED, 2)])
def test_workers_do_not_enter_the_result(source: Source, needs: Needs, workers: int):
    """Parts of 32 rows, so that several workers share a batch of 80."""
    runs = [
        list(train(source, needs=needs, batch_size=160, accumulate=2, stop_step=3, data=DataConfig(workers=count)))
        for count in (0, workers)
    ]
    assert_same(*runs)


@pytest.mark.parametrize("start", [1, 5, 11, 12])
def test_start_step_gives_the_tail(source: Source, start: int):
    assert_same(list(train(source))[start:], list(train(source, start_step=start)))


def test_two_workers_start_in_the_middle(source: Source):
    tail = list(train(source, start_step=7, data=DataConfig(workers=2)))
    assert_same(list(train(source))[7:], tail)


def test_stream_is_one_permutation_after_the_other(source: Source):
    """40 images in steps of 12: epochs end within batches, and nothing is dropped."""
    shown = np.concatenate([batch.index for (batch,) in train(source, batch_size=12, stop_step=10)])
    assert shown.tolist() == [sample_at(position, 40, seed=5)[1] for position in range(120)]
    for epoch in range(3):
        assert sorted(shown[40 * epoch : 40 * epoch + 40]) == list(range(40))


def test_batch_larger_than_the_data(source: Source):
    ((batch,),) = train(source, batch_size=100, stop_step=1)
    assert np.bincount(batch.index).min() == 2


def test_accumulation_and_ranks_share_the_same_rows(source: Source):
    whole = list(train(source, batch_size=16, stop_step=4))
    shares = [list(train(source, batch_size=16, accumulate=2, stop_step=4, rank=rank, world=2)) for rank in (0, 1)]
    for step, (batch,) in enumerate(whole):
        micro = [*shares[0][step], *shares[1][step]]
        assert [len(batch) for batch in micro] == [4, 4, 4, 4]
        for name in ("images", "index"):
            assert_array_equal(np.concatenate([getattr(b, name) for b in micro]), getattr(batch, name))
        assert_array_equal(np.concatenate([b.inputs["ids_keep"] for b in micro]), batch.inputs["ids_keep"])


def test_epochs_and_seeds_differ(source: Source):
    by_seed = [np.concatenate([b.inputs["ids_keep"] for (b,) in train(source, seed=seed)]) for seed in (5, 6)]
    assert not np.array_equal(by_seed[0], by_seed[1])
    rows = {b.index[i]: [] for (b,) in train(source) for i in range(8)}
    for (batch,) in train(source, stop_step=10):
        for row, index in enumerate(batch.index):
            rows[index].append(batch.inputs["ids_keep"][row].tolist())
    assert sum(first != second for first, second in rows.values()) > 35


def test_evaluation_shows_each_image_once_in_order(source: Source):
    batches = list(eval_batches(source, needs=LABELLED, model=MODEL, data=DATA, seed=0, batch_size=12))
    assert [len(batch) for batch in batches] == [12] * 4
    index = np.concatenate([batch.index for batch in batches])
    valid = np.concatenate([batch.valid for batch in batches])  # pyright: ignore
    labels = np.concatenate([batch.labels for batch in batches])  # pyright: ignore
    assert index.tolist() == [*range(40), *[-1] * 8]
    assert valid.tolist() == [True] * 40 + [False] * 8
    assert_array_equal(labels[:40], source.labels)
    assert labels[40:].tolist() == [0] * 8
    greys = np.concatenate([batch.images for batch in batches]).mean((1, 2, 3))
    np.testing.assert_allclose(greys[:40], [6 * int(source.name(i)[-6:-4]) for i in range(40)], atol=3)


def test_evaluation_masks_do_not_depend_on_the_batch(source: Source):
    runs = []
    for batch_size, workers in ((40, 0), (7, 0), (16, 1)):
        data = DataConfig(workers=workers)
        batches = list(eval_batches(source, needs=MASKED, model=MODEL, data=data, seed=3, batch_size=batch_size))
        runs.append(np.concatenate([batch.inputs["ids_mask"] for batch in batches])[:40])
    assert_array_equal(runs[0], runs[1])
    assert_array_equal(runs[0], runs[2])


def test_evaluation_without_labels(colours: Path):
    source = open_source(str(colours), key="images", labels=False)
    batch = next(iter(eval_batches(source, needs=LABELLED, model=MODEL, data=DATA, seed=0, batch_size=4)))
    assert batch.labels is None


def spoil(colours: Path, *names: str) -> None:
    for name in names:
        (colours / name).write_bytes(b"not an image")


def test_bad_image_is_replaced_the_same_way_each_time(colours: Path, source: Source):
    spoil(colours, "even/04.jpg", "odd/07.jpg")
    positions = {source.name(i): i for i in range(len(source))}
    bad = {positions["even/04.jpg"], positions["odd/07.jpg"]}
    first, second = list(train(source, stop_step=10)), list(train(source, stop_step=10, data=DataConfig(workers=1)))
    assert_same(first, second)
    shown = np.concatenate([batch.index for (batch,) in first])
    assert not bad & set(shown.tolist())
    reported = np.concatenate([batch.bad for (batch,) in first])  # pyright: ignore
    assert set(reported.tolist()) == bad
    original = [sample_at(position, 40, seed=5)[1] for position in range(80)]
    kept = [index not in bad for index in original]
    assert_array_equal(shown[kept], np.array(original)[kept])
    labels = np.concatenate([batch.labels for (batch,) in train(source, needs=LABELLED, stop_step=10)])  # pyright: ignore
    assert source.labels is not None
    assert_array_equal(labels, source.labels[shown])


@pytest.mark.parametrize("workers", [0, 1])
def test_rows_without_an_image_are_black_and_not_counted_in_evaluation(colours: Path, source: Source, workers: int):
    spoil(colours, "odd/33.jpg")  # late, when the workers' memory has held other images
    data = DataConfig(workers=workers)
    batches = list(eval_batches(source, needs=LABELLED, model=MODEL, data=data, seed=0, batch_size=3))
    valid = np.concatenate([batch.valid for batch in batches])  # pyright: ignore
    (bad,) = np.concatenate([batch.bad for batch in batches]).tolist()  # pyright: ignore
    assert source.name(bad) == "odd/33.jpg"
    assert np.flatnonzero(~valid).tolist() == [bad, 40, 41]
    assert not np.concatenate([batch.images for batch in batches])[~valid].any()


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_but_bad_images_is_an_error(colours: Path, source: Source, workers: int):
    spoil(colours, *(source.name(i) for i in range(40)))
    with pytest.raises(
        DataError, match=r"21 images in a row cannot be used, the last is (even|odd)/\d\d\.jpg: not a JPEG"
    ):
        next(train(source, data=DataConfig(workers=workers)))


def test_impossible_settings_are_refused(source: Source):
    with pytest.raises(
        ConfigError, match=r"train\.batch_size=8 is not a multiple of 1 processes x train\.accumulate=3"
    ):
        train(source, accumulate=3)


def test_closing_ends_threads_and_processes(source: Source):
    before = threading.active_count()
    for workers in (0, 2):
        batches = train(source, stop_step=10**6, batch_size=64, data=DataConfig(workers=workers))
        next(batches)
        batches.close()
    del batches
    gc.collect()
    assert not multiprocessing.active_children()
    until = time.monotonic() + 30
    while loaders(threading.enumerate()) and time.monotonic() < until:
        time.sleep(0.05)
    assert not loaders(threading.enumerate())
    assert before <= threading.active_count() <= before + 5  # Grain keeps a thread that frees shared memory


def loaders(threads: list[threading.Thread]) -> list[str]:
    return [thread.name for thread in threads if thread.name.startswith("grain-prefetch")]


PROBE = """
import sys
from pathlib import Path
from types import SimpleNamespace
from unmask.config.schema import AugmentConfig, DataConfig, ModelConfig
from unmask.data.batch import Needs
from unmask.data.loader.pipeline import train_batches
from unmask.data.masking import RandomMask
from unmask.data.sources import open_source

class Modules:
    labels = class_names = None
    def __len__(self): return 4
    def name(self, index): return "x"
    def read(self, index):
        Path(sys.argv[1]).write_text(" ".join(sys.modules))
        import numpy as np
        return np.zeros((32, 32, 3), np.uint8)

if __name__ == "__main__":
    data, model = DataConfig(workers=1), ModelConfig(image_size=32)
    needs = Needs((RandomMask(196, 49),))
    list(train_batches(Modules(), needs=needs, model=model, data=data, augment=AugmentConfig(), seed=0,
                       batch_size=4, accumulate=1, start_step=0, stop_step=3))
"""


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], str]:
    """Modules in a loader process, and what a whole run printed to stderr."""
    folder = tmp_path_factory.mktemp("probe")
    (folder / "probe.py").write_text(PROBE)
    command = [sys.executable, folder / "probe.py", folder / "modules"]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return set((folder / "modules").read_text().split()), result.stderr


def test_program_that_ends_without_closing_ends_at_once_and_leaves_nothing(tmp_path: Path):
    text = PROBE.replace("list(train", "batches = (train").replace("stop_step=3", "stop_step=99")
    (tmp_path / "probe.py").write_text(text + "    next(batches); print(Path('/proc/self/maps').read_text())")
    command = [sys.executable, tmp_path / "probe.py", tmp_path / "modules"]
    printed = subprocess.run(command, check=True, timeout=25, stdout=subprocess.PIPE, text=True).stdout
    (segment,) = segments(printed)
    assert not segment.exists()


def test_shared_memory_that_cannot_be_made_is_an_error_that_says_so(tmp_path: Path):
    limit = "    import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
    (tmp_path / "probe.py").write_text(PROBE.replace("    data, model", limit + "    data, model"))
    command = [sys.executable, tmp_path / "probe.py", tmp_path / "modules"]
    printed = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60).stderr
    assert (
        "no shared memory for loader processes: File too large; check /dev/shm, or load without them: data.workers=0\n"
        in printed
    )


def test_loader_processes_import_no_framework(probe: tuple[set[str], str]):
    modules, _ = probe
    assert "grain" in modules
    assert not modules & {"torch", "mindspore", "tensorflow", "jax", "transformers", "matplotlib"}


def test_whole_run_leaves_no_shared_memory_and_no_warnings(probe: tuple[set[str], str]):
    assert probe[1] == ""


@pytest.mark.parametrize(("side", "rows"), [(224, 32), (512, 32), (1024, 10), (2048, 2)])
def test_what_sixteen_workers_make_ahead_is_bounded(side: int, rows: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pipeline.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**32))
    buffer = pipeline._Buffer(side * side * 3, workers=16)
    assert buffer.rows == rows
    parts = pipeline._Parts(None, 0, 4096, 4096, 1, range(10), buffer.rows)  # pyright: ignore
    ahead = buffer.ahead(parts)
    assert ahead >= 2 * 16
    assert ahead * rows * side * side * 3 <= pipeline._BUFFER_BYTES


def test_shared_memory_is_as_large_as_what_is_made_ahead(source: Source):
    batches = train(source, batch_size=64, data=DataConfig(workers=2))
    next(batches)
    (segment,) = segments(Path("/proc/self/maps").read_text())
    assert segment.stat().st_size == 4096 + 4 * 32 * 32 * 32 * 3
    batches.close()
    assert not segment.exists()


def segments(maps: str) -> set[Path]:
    """Shared memory that a process has mapped."""
    return {Path(line.split()[-1]) for line in maps.splitlines() if "/dev/shm/unmask-" in line}
