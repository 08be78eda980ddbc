"""Checkpoints under real faults: kills, flipped bits, full and read-only disks, two runs in one folder.

Run as a script, this file is the victim: `python test_checkpoint_faults.py VERB FOLDER [ARGUMENT]`.
"""

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from checkpoints import best_of, save_durably
from unmask.checkpoint import Checkpoint, CheckpointStore, RunLock, load_newest, read_checkpoint
from unmask.checkpoint.folder import folder_name
from unmask.engines.base import EngineState
from unmask.errors import CheckpointError

DURABLE_CALLS = ("fsync", "replace", "rmdir", "unlink")
"""What the fate of a save hangs on, as the functions of `os` that do it."""


def make(step: int, size: int = 4096) -> Checkpoint:
    """A checkpoint whose every value derives from its step."""
    weights = {
        f"blocks.{i}.{name}": np.random.default_rng([step, i]).random((size,), np.float32)
        for i in range(3)
        for name in ("weight", "bias")
    }
    moments = {f"exp_avg.{name}": value**2 for name, value in weights.items()}
    return Checkpoint(
        step, EngineState(weights, moments, scalars={"updates": float(step)}), {"config": {"lr": 1 / step}}
    )


def metric_of(step: int) -> float:
    return (step * 37) % 101 / 101


def assert_as_written(actual: Checkpoint) -> None:
    expected = make(actual.step)
    assert (actual.meta, actual.state.scalars) == (expected.meta, expected.state.scalars)
    for ours, theirs in (
        (actual.state.weights, expected.state.weights),
        (actual.state.optimizer, expected.state.optimizer),
    ):
        assert ours.keys() == theirs.keys()
        assert all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs)


# --- the victims ------------------------------------------------------------------------------------------------------


def save_for_ever(root: Path) -> None:
    with CheckpointStore(root, keep=2) as store:
        step = store.load().step if store.steps() else 0
        say("ready")
        while True:
            step += 1
            store.save(make(step), metric=metric_of(step))
            say(str(step - 1))  # durable: the next save waited for it


def save_and_die(root: Path, call: str) -> None:
    store = CheckpointStore(root, keep=1)

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    count = at_call(int(call), die)
    save_durably(store, make(2))
    say(str(count()))
    store.close()


def save_beyond_the_limit(root: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    with CheckpointStore(root, keep=1) as store:
        store.save(make(2))
        try:
            store.wait()
        except CheckpointError as error:
            say(str(error))


def hold_the_lock(folder: Path) -> None:
    lock = RunLock(folder)
    if os.fork() == 0:
        say(str(os.getpid()))  # it runs: what it inherited of the lock is closed
        time.sleep(60)
        os._exit(0)
    time.sleep(60)
    lock.release()


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def at_call(number: int, act: Callable[[], None]) -> Callable[[], int]:
    """Have `act` done before the given one of the durable calls; returns how to learn how many there were."""
    calls = 0

    def wrap(name: str) -> Callable[..., object]:
        original = getattr(os, name)

        def wrapped(*args: object, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            if calls == number:
                act()
            return original(*args, **kwargs)

        return wrapped

    for name in DURABLE_CALLS:
        setattr(os, name, wrap(name))
    return lambda: calls


def victim(verb: str, *args: object) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, verb, *map(str, args)]
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path})


# --- kills ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kills", [40, pytest.param(500, marks=pytest.mark.campaign)])
def test_killed_at_any_moment_the_newest_committed_checkpoint_loads(tmp_path: Path, kills: int):
    rng = random.Random(kills)
    caught_half_way = 0
    for _ in range(kills):
        with victim("save_for_ever", tmp_path) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(rng.uniform(0, 0.05))
            process.kill()
            durable = [int(line) for line in process.stdout.read().split()]
        caught_half_way += any(tmp_path.glob(".tmp-*"))
        with CheckpointStore(tmp_path, keep=2) as store:
            assert not list(tmp_path.glob(".tmp-*"))
            steps = store.steps()
            if not steps:
                assert durable in ([], [0])
                continue
            for step in steps:  # not only the newest: no kill may leave a half-written or half-deleted one
                assert_as_written(read_checkpoint(store.root / folder_name(step)))
            newest = store.load().step
            assert newest == steps[-1] >= max(durable, default=0)
            assert best_of(store) == tmp_path / f"step-{max(range(1, newest + 1), key=metric_of):08d}"
            assert set(steps) >= set(range(max(1, newest - 1), newest + 1))
    assert caught_half_way > 0, "no kill came in the middle of a save: the test has become too slow to mean anything"


def test_killed_at_every_named_point_of_a_save(tmp_path: Path):
    with CheckpointStore(tmp_path / "start", keep=1) as store:
        save_durably(store, make(1))

    def save_in_child(call: int) -> tuple[Path, str]:
        root = tmp_path / f"killed-{call}"
        shutil.copytree(tmp_path / "start", root)
        with victim("save_and_die", root, call) as process:
            output, _ = process.communicate(timeout=30)
        assert process.returncode == (-signal.SIGKILL if call else 0)
        return root, output

    survivors: list[int] = []
    _, calls = save_in_child(0)
    for call in range(1, int(calls) + 1):
        root, _ = save_in_child(call)
        survivor = load_newest(root)
        assert_as_written(survivor)
        survivors.append(survivor.step)
        with CheckpointStore(root, keep=1) as store:
            save_durably(store, make(2))
            assert [path.name for path in root.iterdir()] == ["step-00000002"]
            assert_as_written(store.load())
    assert survivors == sorted(survivors)  # once committed, it stays
    assert {1, 2} == set(survivors)


# --- damage -----------------------------------------------------------------------------------------------------------


def test_every_flipped_bit_and_every_truncation_is_detected(tmp_path: Path):
    with CheckpointStore(tmp_path, keep=1) as store:
        checkpoint = make(3, size=2)
        other = EngineState(**{**vars(checkpoint.state), "ema": {"a": np.ones(2)}})
        save_durably(store, Checkpoint(3, other, {}))
    folder = tmp_path / "step-00000003"
    read_checkpoint(folder)
    trials = undetected = 0

    def is_noticed(path: Path, damaged: bytes) -> bool:
        path.write_bytes(damaged)
        try:
            read_checkpoint(folder)
        except CheckpointError as error:
            return "\n" not in str(error)
        return False

    for path in sorted(folder.iterdir()):
        intact = path.read_bytes()
        flips = (
            intact[:byte] + bytes([intact[byte] ^ 1 << bit]) + intact[byte + 1 :]
            for byte in range(len(intact))
            for bit in range(8)
        )
        for damaged in (*flips, *(intact[:length] for length in range(len(intact))), intact + b"\0"):
            trials += 1
            undetected += not is_noticed(path, damaged)
        path.unlink()
        with pytest.raises(CheckpointError, match="missing"):
            read_checkpoint(folder)
        path.write_bytes(intact)
    assert undetected == 0
    assert trials >= 10_000
    read_checkpoint(folder)


# --- disks ------------------------------------------------------------------------------------------------------------


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_reported_and_the_earlier_checkpoint_stays(tmp_path: Path):
    with mounted(tmp_path / "disk", "size=500k"), CheckpointStore(tmp_path / "disk" / "checkpoints", keep=1) as store:
        save_durably(store, make(1))
        filler = tmp_path / "disk" / "filler"
        filler.write_bytes(bytes(200_000))
        store.save(make(2))
        with pytest.raises(
            CheckpointError, match=r"step-00000002: .*[Nn]o space left on device.*; earlier ones are intact"
        ):
            store.wait()
        assert_as_written(store.load())
        assert [path.name for path in store.root.iterdir()] == ["step-00000001"]
        filler.unlink()
        save_durably(store, make(2))
        assert store.steps() == [2]


def test_a_file_beyond_the_limit_is_reported_and_the_earlier_checkpoint_stays(tmp_path: Path):
    with CheckpointStore(tmp_path, keep=1) as store:
        save_durably(store, make(1))
        with victim("save_beyond_the_limit", tmp_path) as process:
            output, _ = process.communicate(timeout=30)
        assert process.returncode == 0
        assert "step-00000002: " in output
        assert "File too large" in output
        assert output.count("\n") == 1
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
        assert_as_written(store.load())


def test_a_read_only_disk_is_reported_and_can_be_read(tmp_path: Path):
    root = tmp_path / "disk"
    with mounted(root, "size=1m"):
        with CheckpointStore(root, keep=1) as store:
            save_durably(store, make(1))
        (root / ".tmp-step-00000002").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", root], check=True)
        with CheckpointStore(root, keep=1) as store:
            assert_as_written(store.load())
            store.save(make(2))
            with pytest.raises(CheckpointError, match=r"step-00000002: Read-only file system"):
                store.wait()
        with pytest.raises(CheckpointError, match=r"cannot create .*new.*: Read-only file system"):
            CheckpointStore(root / "new", keep=1)
        with pytest.raises(CheckpointError, match=r"\.lock: Read-only file system"):
            RunLock(root)


def test_a_folder_without_permission_is_reported(tmp_path: Path):
    if os.geteuid() == 0:
        pytest.skip("permissions do not bind root")
    tmp_path.chmod(0o555)
    with pytest.raises(CheckpointError, match=r"Permission denied"):
        CheckpointStore(tmp_path / "checkpoints", keep=1)


def test_a_file_in_the_way_is_reported(tmp_path: Path):
    (tmp_path / "checkpoints").write_text("not a folder")
    with pytest.raises(CheckpointError, match=r"cannot create the checkpoint folder .*/checkpoints: "):
        CheckpointStore(tmp_path / "checkpoints", keep=1)


def test_an_error_at_every_call_of_a_save_is_raised_once_and_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def attempt(call: int) -> tuple[CheckpointStore, Callable[[], int]]:
        store = CheckpointStore(tmp_path / str(call), keep=1)
        save_durably(store, make(1))
        with monkeypatch.context() as patch:
            for name in DURABLE_CALLS:
                patch.setattr(os, name, getattr(os, name))  # restored at the end of the block
            count = at_call(call, fail)
            store.save(make(2))
            if call:
                with pytest.raises(CheckpointError, match=r"step-00000002: Input/output error"):
                    (store.wait, store.close, lambda: store.save(make(3)))[call % 3]()
            store.wait()  # an error is told once
        return store, count

    calls = attempt(0)[1]()
    assert calls >= 10
    for call in range(1, calls + 1):
        store, _ = attempt(call)
        assert_as_written(store.load())
        with CheckpointStore(tmp_path / str(call), keep=1) as store:
            save_durably(store, make(2))
            save_durably(store, make(3))
            assert [path.name for path in store.root.iterdir()] == ["step-00000003"]


# --- two runs ---------------------------------------------------------------------------------------------------------


def test_a_second_run_in_one_folder_is_refused_until_the_first_dies(tmp_path: Path):
    with victim("hold_the_lock", tmp_path / "run") as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        try:
            with pytest.raises(CheckpointError, match=rf"in use by another run \(process {process.pid}\)") as raised:
                RunLock(tmp_path / "run")
            assert "\n" not in str(raised.value)
            process.kill()
            process.wait()
            RunLock(tmp_path / "run").release()  # although a loader process of the dead run lives on
            os.kill(worker, 0)
        finally:
            os.kill(worker, signal.SIGKILL)
            process.kill()


def test_a_lock_excludes_within_one_process_and_is_released(tmp_path: Path):
    with RunLock(tmp_path) as first:
        with pytest.raises(CheckpointError, match=rf"process {os.getpid()}"):
            RunLock(tmp_path)
        first.release()
        with RunLock(tmp_path):
            first.release()  # harmless, even now that its descriptor belongs to another
            with pytest.raises(CheckpointError, match=r"in use"):
                RunLock(tmp_path)


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
