"""Errors of the device below the file system, quotas, and power that fails: on a disk made for it, see faulty_disk.py.

Run as a script, in a namespace of its own, this file is the victim: `python test_devices.py VERB FOLDER`.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from test_checkpoint_faults import make, save_durably
from test_full_disks import COMMANDS, NO_SPACE, TRAIN, UNSHARE, photos

from faulty_disk import FaultyDisk
from runs import ENVIRONMENT, start, until_written
from unmask.checkpoint import CheckpointStore, load_newest
from unmask.errors import CheckpointError

LINES = {"EIO": "Input/output error", "EDQUOT": "Disk quota exceeded", "EROFS": "Read-only file system"}


# --- the victims ------------------------------------------------------------------------------------------------------


def each_request(disk: FaultyDisk, act: Callable[[int], None]) -> int:
    """`act` with the number of each request that the same work makes, undisturbed at first; returns how many."""
    disk.heal()
    act(0)
    requests = disk.count()
    for number in range(1, requests + 1):
        act(number)
    return requests


def errors(folder: Path) -> int:
    """An error at each request of a save is one line, and what was saved before stays; once, and for good."""
    with FaultyDisk(folder / "disk") as disk:

        def act(number: int) -> None:
            for kind, line in LINES.items():
                for once in (True, False):
                    root = folder / "disk" / f"{number}-{kind}-{once}"
                    store = CheckpointStore(root, keep=1)
                    save_durably(store, make(1, size=64))
                    disk.fail(number, kind, once=once)
                    failed = ""
                    store.save(make(2, size=64))
                    try:
                        store.wait()
                    except CheckpointError as error:
                        failed = str(error)
                    if number:
                        assert line in failed, (number, kind, failed)
                        assert "\n" not in failed
                    else:
                        assert not failed
                        return
                    disk.heal()
                    assert_as(load_newest(root))
                    with CheckpointStore(root, keep=1) as again:
                        save_durably(again, make(2, size=64))
                        save_durably(again, make(3, size=64))
                        assert [path.name for path in root.iterdir()] == ["step-00000003"]

        return each_request(disk, act)


def assert_as(checkpoint: Any) -> None:
    expected = make(checkpoint.step, size=64)
    assert checkpoint.meta == expected.meta
    ours, theirs = checkpoint.state.weights, expected.state.weights
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def power_of_saves(folder: Path) -> int:
    """Power lost at each request of a save: one of the two checkpoints is whole; once saved, it is the new one."""
    with FaultyDisk(folder / "disk") as disk:
        seen: set[int] = set()

        def act(number: int) -> None:
            for keeps_names in (True, False):
                root = folder / "disk" / f"{number}-{keeps_names}"
                with CheckpointStore(root, keep=1) as store:
                    save_durably(store, make(1, size=64))
                flush(folder / "disk")
                disk.fail(number, "EIO", once=False)
                try:
                    with CheckpointStore(root, keep=1) as store:
                        save_durably(store, make(2, size=64))
                    saved = True
                except CheckpointError:
                    saved = False
                if not number and not keeps_names:
                    return  # what was counted
                disk.lose_power(keeps_names=keeps_names)
                newest = load_newest(root)
                assert_as(newest)
                assert newest.step == 2 or not saved
                seen.add(newest.step)

        requests = each_request(disk, act)
        assert seen == {1, 2}
        return requests


def flush(folder: Path) -> None:
    """As a system does it now and then by itself."""
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def run(words: list[str]) -> tuple[Any, str]:
    from unmask.cli import main

    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            return main(words), err.getvalue()
        except BaseException as error:
            return repr(error), err.getvalue()


OUTPUTS = {
    "embed npy": "e.npy",
    "reconstruct": "r.png",
    "stats": "stats.json",
    "convert timm": "timm/model.safetensors",
}
"""Commands, and what is whole on the disk, or not there, whenever the power fails."""


def power_of_results(folder: Path) -> int:
    """Power lost at some requests of a command: its file is not there, or whole; in the end, whole."""
    os.chdir(folder)
    photos(folder / "photos")
    assert run(["pretrain", "mae-vit-tiny", *TRAIN, "output=mae"])[0] == 0
    shutil.copytree("mae", "classifier")
    total = 0
    with FaultyDisk(folder / "small") as disk:
        for name, out in OUTPUTS.items():
            path = folder / "small" / out
            path.parent.mkdir(exist_ok=True)
            flush(folder / "small")
            disk.heal()
            assert run(COMMANDS[name])[0] == 0
            requests, whole = disk.count(), path.read_bytes()
            total += requests
            disk.lose_power(keeps_names=False)
            assert path.read_bytes() == whole, f"{name}: said to be done, and gone after the power failed"
            for number in sorted({1, 2, 3, requests // 2, requests - 2, requests - 1, requests}):
                for keeps_names in (True, False):
                    clear(path)
                    disk.fail(number, "EIO", once=False)
                    code, said = run(COMMANDS[name])
                    assert code in (0, 1, 3, 4), (name, number, code, said)
                    assert code == 0 or (said.startswith("unmask: ") and said.count("\n") == 1), (name, number, said)
                    disk.lose_power(keeps_names=keeps_names)
                    there = path.read_bytes() if path.exists() else None
                    assert there in ((whole,) if code == 0 else (whole, None)), (name, number, code, keeps_names)
                    if there is not None and name.startswith(("convert", "reconstruct")):  # which overwrite nothing
                        continue
                    code, said = run(COMMANDS[name])
                    assert code == 0, (name, number, said)
                    assert path.read_bytes() == whole, (name, number)
    return total


def clear(path: Path) -> None:
    """Neither a result is there nor what goes with it, as if the command had never run."""
    if path.parent.name == "timm":
        shutil.rmtree(path.parent, ignore_errors=True)
    else:
        for left in [path, *path.parent.glob(f"{path.stem}.*")]:
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    flush(path.parent if path.parent.exists() else path.parent.parent)


def errors_of_a_run(folder: Path) -> int:
    """A disk that fails under a run, once or for good: one line, exit code 1 or 4, and the same command goes on."""
    os.chdir(folder)
    photos(folder / "photos")
    with FaultyDisk(folder / "small") as disk:
        words = ["pretrain", "mae-vit-tiny", *TRAIN, "train.checkpoint_every=0.5", "output=small/run"]
        disk.heal()
        assert run(words)[0] == 0
        requests = disk.count()
        whole, told = Path("small/run/metrics.jsonl").read_bytes(), 0
        shutil.rmtree("small/run")
        numbers = sorted({*range(1, requests, max(1, requests // int(os.environ.get("UNMASK_TEST_ERRORS", "12"))))})
        for index, number in enumerate(numbers):
            kind = list(LINES)[index % 2]
            disk.fail(number, kind, once=index % 4 < 2)
            code, said = run(words)
            if code == 0:  # it failed to remove what is of no use any more
                assert Path("small/run/metrics.jsonl").read_bytes() == whole
            else:
                assert code in (1, 4), (number, code, said)
                assert LINES[kind] in said, (number, said)
                assert said.startswith("unmask: "), said
                assert said.count("\n") == 1, said
                told += 1
            disk.heal()
            code, said = run(words)
            assert code == 0, (number, said)
            assert Path("small/run/metrics.jsonl").read_bytes() == whole
            shutil.rmtree("small/run")
        return told


def hangs_under_a_run(folder: Path) -> int:
    """A disk that no longer answers those that load images: the run ends in time, and what was computed is saved."""
    os.chdir(folder)
    with FaultyDisk(folder / "small") as disk:
        photos(folder / "small" / "photos")
        endless = ["train.epochs=100000", "data.workers=2", "train.log_every=1", "train.process_timeout=6"]
        words = ["pretrain", "mae-vit-tiny", *TRAIN, *endless, "data.train=small/photos", "output=run"]
        process = start(*words, cwd=folder)
        try:
            until_written(folder / "run" / "metrics.jsonl", process)
            disk.hang()
            process.wait(90)
        finally:
            disk.hang(hangs=False)
            process.kill()  # of no effect where it has ended; else the disk could not be unmounted
        said = process.communicate(timeout=60)[1]  # the loaders, which hold the pipe, go when the disk answers
        assert process.returncode == 3, said
        assert ") did not answer within train.process_timeout=6 s" in said.splitlines()[-1], said
        saved = max(path.name for path in (folder / "run" / "checkpoints").iterdir())
        assert int(saved[5:]) == len((folder / "run" / "metrics.jsonl").read_text().splitlines())
        return 1


# --- the tests --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(NO_SPACE or not Path("/dev/fuse").exists(), reason="no file systems can be mounted here")
@pytest.mark.parametrize(
    ("verb", "least"),
    [
        ("errors", 20),
        ("power_of_saves", 20),
        ("errors_of_a_run", 5),
        ("hangs_under_a_run", 1),
        pytest.param("power_of_results", 20, marks=pytest.mark.campaign),
    ],
)
def test_a_disk_that_fails_or_loses_power(verb: str, least: int, tmp_path: Path) -> None:
    if verb != "errors" and verb != "power_of_saves":
        pytest.importorskip("torch", reason="PyTorch is not installed")
    paths = [str(Path(__file__).parents[1]), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = ENVIRONMENT | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "UNMASK_CACHE": str(tmp_path / "c"),
    }
    command = [*UNSHARE, sys.executable, __file__, verb, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) >= least


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](Path(sys.argv[2]))))
