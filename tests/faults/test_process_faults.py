"""One of several processes is killed, hangs, is told to stop or sees a bad number: all act alike, nothing is lost."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from little_memory import little_memory
from ranks import ENGINES, agree, launch, records
from runs import TINY_MODEL, children
from unmask.cli import main

STEPS = 400
"""Enough that a signal finds the run at work."""
RUN = [
    "pretrain",
    "mae-vit-tiny",
    *TINY_MODEL,
    "model.depth=1",
    "train.batch_size=16",
    "train.log_every=1",
    "optimizer.warmup_epochs=0.04",
    "output=run",
]
DIGITS = ["data.train=bundled:mnist5k/train", f"train.epochs={STEPS * 16 / 4000}"]
TORCH = ENGINES[:1]
BOTH = [TORCH[0], pytest.param("mindspore", marks=[*ENGINES[1].marks, pytest.mark.campaign])]
"""With MindSpore each of these takes half a minute."""
COUNTS = [2, pytest.param(4, marks=pytest.mark.campaign)]


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (folder / "run" / "checkpoints").glob("step-*"))


def end(pids: Mapping[int, int], seconds: float = 30) -> None:
    """Wait until none of the processes is at work; the launcher may take longer."""
    deadline = time.monotonic() + seconds
    while any(map(at_work, pids.values())):
        assert time.monotonic() < deadline, f"{seconds} s later processes are still at work"
        time.sleep(0.1)


def at_work(pid: int) -> bool:
    """Neither gone nor stopped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("T", "Z")
    except OSError:
        return False


@pytest.mark.parametrize("processes", COUNTS)
@pytest.mark.parametrize("engine", BOTH)
def test_a_killed_process_ends_all_with_its_name(engine: str, processes: int, tmp_path: Path) -> None:
    ranks = launch(engine, *RUN, *DIGITS, f"engine={engine}", cwd=tmp_path, processes=processes)
    ranks.until_step(5)
    pids = ranks.pids
    ranks.send(signal.SIGKILL, 1)
    end(pids)
    said = ranks.end()
    assert ranks.launcher.returncode != 0
    # msrun kills the others a second later, and its scheduler names whom it misses first
    assert re.search(f"process {'1' if engine == 'torch' else '.*'} ended or did not answer", said), said
    assert "the same command goes on from the last checkpoint" in said
    if engine == "torch":
        assert_kept(tmp_path, said)


@pytest.mark.parametrize("processes", COUNTS)
@pytest.mark.parametrize("engine", BOTH)
def test_a_process_that_hangs_is_found_within_the_timeout(engine: str, processes: int, tmp_path: Path) -> None:
    timeout = {"torch": 4, "mindspore": 20}[engine]  # the processes of the latter compile, one before the other
    settings = [*RUN, *DIGITS, f"engine={engine}", f"train.process_timeout={timeout}"]
    ranks = launch(engine, *settings, cwd=tmp_path, processes=processes)
    ranks.until_step(5)
    pids = ranks.pids
    ranks.send(signal.SIGSTOP, 1)
    try:
        end({rank: pid for rank, pid in pids.items() if rank != 1}, seconds=timeout + 30)
    finally:
        if Path(f"/proc/{pids[1]}").exists():
            os.kill(pids[1], signal.SIGKILL)  # torchrun would give it another 30 s
    said = ranks.end()
    assert ranks.launcher.returncode != 0
    assert "process 1 ended or did not answer" in said, said
    if engine == "torch":
        assert_kept(tmp_path, said)


def assert_kept(folder: Path, said: str) -> None:
    """What was computed is saved once, by the first process."""
    assert checkpoints(folder) == [len(records(folder))], said
    assert said.count("The state is saved") == 1, said


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.campaign)])
def test_a_lost_loader_of_one_process_ends_all_and_what_was_computed_is_saved(rank: int, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    ranks = launch("torch", *RUN, *DIGITS, "data.workers=1", cwd=tmp_path)
    ranks.until_step(5)
    pids = ranks.pids
    (loader,) = [c for c in children(pids[rank]) if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
    os.kill(loader, signal.SIGKILL)
    end(pids)
    said = ranks.end()
    assert "a loader process was killed (SIGKILL)" in said, said
    assert_kept(tmp_path, said)


@pytest.mark.campaign
def test_a_process_without_memory_ends_all_and_what_was_computed_is_saved(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    with little_memory(tmp_path / "large") as confine:
        ranks = launch("torch", *RUN, "data.train=large", "train.batch_size=4", "train.epochs=100", cwd=tmp_path)
        ranks.until_step(2)
        pids = ranks.pids
        confine(pids[1])
        end(pids, seconds=60)
        said = ranks.end()
    assert re.search("process 1 ended or did not answer", said), said
    # Saved for the launcher's SIGTERM or for the loss, whichever the first process hears of first.
    assert checkpoints(tmp_path) == [len(records(tmp_path))], said


@pytest.mark.parametrize("processes", COUNTS)
@pytest.mark.parametrize("engine", BOTH)
@pytest.mark.parametrize(
    "told",
    [
        pytest.param("the last process", marks=pytest.mark.campaign),
        pytest.param("the launcher", marks=pytest.mark.campaign),
        "everyone",
    ],
)
def test_sigterm_saves_once_on_all(engine: str, told: str, processes: int, tmp_path: Path) -> None:
    ranks = launch(engine, *RUN, *DIGITS, f"engine={engine}", cwd=tmp_path, processes=processes)
    ranks.until_step(5)
    pids = ranks.pids
    for pid in {"the last process": [pids[processes - 1]], "the launcher": []}.get(told, list(pids.values())):
        os.kill(pid, signal.SIGTERM)
    if told != "the last process":
        ranks.launcher.terminate()
    end(pids)
    assert len(records(tmp_path)) >= 5
    assert checkpoints(tmp_path) == [len(records(tmp_path))], "one checkpoint, of the last step that was logged"
    assert checkpoints(tmp_path)[-1] < STEPS
    said = ranks.end()
    if engine == "torch" or told == "the last process":  # else msrun is gone, and what showed its output
        assert said.count("The state is saved") == 1, said
    if engine == "torch":
        assert said.count("unmask: stopped by SIGTERM") == processes, said


def alone_and_together(engine: str, processes: int, folder: Path, *settings: str) -> tuple[Path, Path, str]:
    """The same run in this process and in several; what these said."""
    alone, together = folder / "alone", folder / "together"
    together.mkdir()
    main([*RUN, *settings, f"engine={engine}", f"output={alone}/run"])
    ranks = launch(engine, *RUN, *settings, f"engine={engine}", cwd=together, processes=processes)
    return alone, together, ranks.end()


def test_torchrun_restarts_from_the_last_checkpoint_and_nothing_is_lost_or_seen_twice(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    # Long enough that the signal comes before the end on a fast machine too.
    settings = [DIGITS[0], f"train.epochs={200 * 16 / 4000}", f"train.checkpoint_every={20 * 16 / 4000}"]
    alone, together = tmp_path / "alone", tmp_path / "together"
    together.mkdir()
    assert main([*RUN, *settings, f"output={alone}/run"]) == 0
    ranks = launch("torch", *RUN, *settings, cwd=together, options=["--max-restarts=1"])
    ranks.until(lambda: bool(checkpoints(together)) and len(records(together)) % 20 > 2)
    ranks.send(signal.SIGKILL, 1)
    said = ranks.end()
    assert ranks.launcher.returncode == 0, said
    assert re.search(r"2 processes, resumed after step \d+\n", said), said
    agree(records(together), records(alone))


@pytest.mark.parametrize("processes", COUNTS)
@pytest.mark.parametrize("engine", BOTH)
@pytest.mark.parametrize("max_skipped", [0, pytest.param(20, marks=pytest.mark.campaign)])
def test_a_number_that_is_not_finite_on_one_process_acts_on_all(
    engine: str, max_skipped: int, processes: int, tmp_path: Path
) -> None:
    images = np.random.default_rng(0).random((64, 28, 28, 1), np.float32)
    images[5] = 3e38  # whose square is infinite
    np.save(tmp_path / "images.npy", images)
    settings = [f"data.train={tmp_path / 'images.npy'}", "data.dtype=float32", "train.epochs=2"]
    settings += [f"train.max_skipped={max_skipped}"]
    alone, together, said = alone_and_together(engine, processes, tmp_path, *settings)
    skipped = [record["skipped"] for record in records(together)]
    assert sum(skipped) == (1 if max_skipped == 0 else 2)
    assert skipped == [record["skipped"] for record in records(alone)]
    finite = [[r["loss"] for r in records(folder) if not r["skipped"]] for folder in (together, alone)]
    assert finite[0] == pytest.approx(finite[1], rel=1e-4)
    for rank in range(processes):
        log = (together / "run" / f"rank-{rank}.log").read_text()
        assert ("TrainingError: the gradient was not finite" in log) == (max_skipped == 0), said


@pytest.mark.parametrize("processes", COUNTS)
@pytest.mark.parametrize("engine", BOTH)
def test_bad_images_count_over_all_processes(engine: str, processes: int, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 28, 28), np.uint8)
    for number, image in enumerate(pixels):
        path = photos / f"{number}.png"
        path.write_bytes(b"no picture") if number % 16 == 0 else Image.fromarray(image).save(path)
    settings = [f"data.train={photos}", "train.epochs=1", f"engine={engine}", "data.max_bad_share=0.06"]
    said = launch(engine, *RUN, *settings, cwd=tmp_path, processes=processes).end()
    assert "4 of 64 images (6.25%) cannot be decoded, more than data.max_bad_share=0.06" in said, said
    (listed,) = (tmp_path / "run").glob("bad_files*")
    names = [line.partition("\t")[0] for line in listed.read_text().splitlines()]
    assert sorted(names) == ["0.png", "16.png", "32.png", "48.png"]
    if engine == "torch":
        assert_kept(tmp_path, said)
