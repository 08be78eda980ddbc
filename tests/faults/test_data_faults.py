"""Hostile and broken images, folders and loader processes, made for real (cases 7-10, 16 and 23)."""

import json
import multiprocessing
import os
import random
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from little_memory import little_memory
from runs import TINY_MODEL, children, unmask, until_written
from runs import start as run_of
from unmask.cli import main
from unmask.config.schema import AugmentConfig, DataConfig, ModelConfig
from unmask.data.batch import Needs
from unmask.data.decode.picture import DecodeError, Picture
from unmask.data.loader import left_over
from unmask.data.loader.pipeline import train_batches
from unmask.data.loader.processes import WorkerError
from unmask.data.sources import open_source
from unmask.data.sources.left_out import LeftOut
from unmask.errors import DataError

HERE = [str(folder) for folder in Path(__file__).parents[:2]]
"""Where the scripts of processes find this file and what it imports."""
LIMIT = DataConfig().max_pixels
MODEL = ModelConfig(image_size=(32, 32), patch_size=8)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))


def encoded(kind: str, size: tuple[int, int] = (64, 48)) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = BytesIO()
    Image.fromarray(noise).save(file, kind)
    return file.getvalue()


KINDS = ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.5, 0.9])
def test_truncated_file_is_refused(kind: str, share: float):
    data = encoded(kind)
    with pytest.raises(DecodeError):
        Picture(data[: int(len(data) * share)], 3, LIMIT).pixels()


def test_what_is_not_an_image_is_refused():
    for data, message in (
        (b"", "empty file"),
        (b"<html>404 not found</html>", "not a JPEG"),
        (b"\xff\xd8\xff", "decoded"),
    ):
        with pytest.raises(DecodeError, match=message) as caught:
            Picture(data, 3, LIMIT).pixels()
        assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_bytes_decode_or_are_refused(kind: str):
    """Whatever the damage: pixels of the right form or a DecodeError, never another exception."""
    rng = random.Random(0)
    good = encoded(kind)
    refused = 0
    for _ in range(150):
        data = bytearray(good)
        for _ in range(rng.choice((1, 4, 32))):
            data[rng.randrange(min(len(data), rng.choice((40, 400, len(data)))))] = rng.randrange(256)
        try:
            assert Picture(bytes(data), 3, 10**6).pixels().shape[2] == 3
        except DecodeError:
            refused += 1
    assert refused > 10


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    chunks = [body, b"IDAT" + pixels, b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


def with_size(kind: str, width: int, height: int) -> bytes:
    """A small file whose header claims another size."""
    if kind == "PNG":
        return png_header(width, height)
    data = bytearray(encoded(kind))
    if kind == "JPEG":
        start = data.index(b"\xff\xc0") + 5
        data[start : start + 4] = struct.pack(">HH", height, width)
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    else:
        data[6:10] = struct.pack("<HH", width, height)
        start = data.index(b",") + 5
        data[start : start + 4] = struct.pack("<HH", width, height)
    return bytes(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF"])
def test_bomb_is_refused_before_it_is_decoded(kind: str):
    side = 65_000
    data = with_size(kind, side, side)
    code = (
        "import resource, sys, pathlib; from unmask.data.decode.picture import Picture\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"try: Picture(pathlib.Path(sys.argv[1]).read_bytes(), 3, {LIMIT}).pixels()\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    path = Path(os.environ["UNMASK_CACHE"]).with_name("bomb")
    path.write_bytes(data)
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, path], capture_output=True, text=True, check=True
    )
    message, kilobytes = result.stdout.splitlines()
    assert message == f"DecodeError {side} x {side} pixels are more than data.max_pixels={LIMIT}"
    assert int(kilobytes) < 20_000


def test_limit_is_the_configured_one():
    data = encoded("PNG", (100, 50))
    assert Picture(data, 3, 5000).pixels().shape == (50, 100, 3)
    with pytest.raises(DecodeError, match=r"100 x 50 pixels are more than data\.max_pixels=4999"):
        Picture(data, 3, 4999).pixels()


def test_hair_thin_image_does_not_grow_without_bound():
    picture = Picture(encoded("PNG", (20_000, 1)), 3, 10**6)
    with pytest.raises(DecodeError, match=r"5120000 x 256 pixels are more than data\.max_pixels=1000000"):
        picture.crop((0, 0, 20_000, 1), (256, 5_120_000), Image.Resampling.BICUBIC)


def test_links_and_special_files_are_not_followed(tmp_path: Path):
    root, outside = tmp_path / "data", tmp_path / "outside"
    for path in (root / "a" / "real.jpg", outside / "other.jpg", tmp_path / "data-2" / "x.jpg"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded("JPEG"))
    (root / "loop").symlink_to(root)
    (root / "a" / "self.jpg").symlink_to("self.jpg")
    (root / "a" / "out.jpg").symlink_to(outside / "other.jpg")
    (root / "a" / "beside.jpg").symlink_to(tmp_path / "data-2" / "x.jpg")
    (root / "outside").symlink_to(outside)
    (root / "a" / "dangling.jpg").symlink_to("nothing.jpg")
    (root / "a" / "inside.jpg").symlink_to("real.jpg")
    (root / "a" / "folder.jpg").mkdir()
    (root / "a" / "null.jpg").symlink_to("/dev/null")
    os.mkfifo(root / "a" / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "a" / "socket.jpg"))
    source = open_source(f"{root}#left_out=1", key="data.train", labels=False)
    assert [source.name(i) for i in range(len(source))] == ["a/inside.jpg", "a/real.jpg"]
    expected = {"links out of the folder": 3, "links to folders": 2, "broken links": 2, "special files": 2}
    assert LeftOut.of(source).counts() == expected
    with pytest.raises(DataError, match="2 images are taken and 9 that may be some are not"):
        open_source(str(root), key="data.train", labels=False)


def test_only_links_is_explained(tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jpg").symlink_to(tmp_path / "real")
    with pytest.raises(DataError, match=r"holds no images \(.*\); there are 1 links to folders \(a\.jpg\)"):
        open_source(str(tmp_path / "data"), key="data.train", labels=False)


def test_root_may_be_a_link(tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.jpg").write_bytes(encoded("JPEG"))
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert len(open_source(str(tmp_path / "link"), key="data.train", labels=False)) == 1


def test_names_of_any_bytes_train(tmp_path: Path):
    names = [
        "é.jpg".encode(),
        "e\u0301.jpg".encode(),
        b"\xff\xfe.jpg",
        b"new\nline.jpg",
        b" .jpg",
        b"-rf.jpg",
        b"%s.jpg",
    ]
    for name in names:
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / os.fsdecode(name)).write_bytes(encoded("JPEG"))
    source = open_source(str(tmp_path / "data"), key="data.train", labels=False)
    assert [os.fsencode(source.name(i)) for i in range(len(source))] == sorted(names)
    batches = list(start(source, workers=1, batch_size=7, stop_step=1))
    assert sorted(batches[0][0].index.tolist()) == list(range(7))
    assert not len(batches[0][0].bad)


def test_bad_name_is_reported_on_one_line(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / os.fsdecode(b"\xff new\nline.jpg")).write_bytes(b"")
    source = open_source(str(tmp_path / "data"), key="data.train", labels=False)
    with pytest.raises(DataError, match=r"the last is \\xff new\\nline\.jpg: empty file") as caught:
        next(start(source, workers=0, batch_size=1))
    assert "\n" not in str(caught.value)


def test_file_that_vanishes_while_training_is_replaced(tmp_path: Path):
    (tmp_path / "data").mkdir()
    for number in range(8):
        (tmp_path / "data" / f"{number}.jpg").write_bytes(encoded("JPEG"))
    source = open_source(str(tmp_path / "data"), key="data.train", labels=False)
    (tmp_path / "data" / "3.jpg").unlink()
    ((batch,),) = start(source, workers=0, batch_size=8, stop_step=1)
    assert batch.bad.tolist() == [3]
    assert 3 not in batch.index


class Digits:
    """Endless images without files."""

    labels = class_names = None

    def __len__(self) -> int:
        return 100

    def name(self, index: int) -> str:
        return str(index)

    def fingerprint(self) -> str:
        return ""

    def read(self, index: int) -> Any:
        return np.full((32, 32, 3), index, np.uint8)


class Large(Digits):
    """Of 600 x 600 pixels."""

    def read(self, index: int) -> Any:
        return np.full((600, 600, 3), index, np.uint8)


def start(source: Any, *, workers: int, batch_size: int = 64, stop_step: int = 10**6) -> Any:
    return train_batches(
        source,
        needs=Needs(),
        model=ModelConfig(image_size=(224, 224), patch_size=16) if isinstance(source, Large) else MODEL,
        data=DataConfig(workers=workers),
        augment=AugmentConfig(),
        seed=0,
        batch_size=batch_size,
        accumulate=1,
        start_step=0,
        stop_step=stop_step,
    )


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGKILL, "was killed"),
        (signal.SIGBUS, "ran out of shared memory; enlarge /dev/shm"),
        (signal.SIGSEGV, "died with exit code -11"),
    ],
)
def test_dead_loader_process_is_an_error_not_a_hang(number: signal.Signals, message: str):
    batches = start(Digits(), workers=2)
    next(batches)
    victim = multiprocessing.active_children()[0]
    os.kill(victim.pid or 0, number)
    began = time.monotonic()
    with pytest.raises(WorkerError, match=message):
        deque(batches, maxlen=0)
    assert time.monotonic() - began < 30  # a hang, not a measurement: docs/log.md has 1.1 s
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("engine", ["torch", pytest.param("mindspore", marks=pytest.mark.campaign)])
def test_a_stopped_loader_process_ends_the_run_which_goes_on(
    engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    settings = [*TINY_MODEL, "data.train=bundled:mnist5k/train", "train.batch_size=20", "train.epochs=0.5"]
    settings += ["train.log_every=1", "data.workers=2", "train.process_timeout=10", "output=run", f"engine={engine}"]
    command = ["pretrain", "mae-vit-tiny", *settings, "optimizer.warmup_epochs=0"]
    process = run_of(*command, cwd=tmp_path)
    until_written(tmp_path / "run" / "metrics.jsonl", process)
    loaders = [pid for pid in children(process.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(loaders[-1], signal.SIGSTOP)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 3, said
    assert f"unmask: loader process {loaders[-1]} (stopped) did not answer within train.process_timeout=10 s" in said
    assert not [pid for pid in loaders if Path(f"/proc/{pid}").exists()]
    steps = len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert 0 < steps < 100
    assert main([*command, "data.workers=0", f"output={tmp_path}/run"]) == 0, "as the message advises"
    assert f"resumed after step {steps}\n" in capsys.readouterr().out


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    folder = tmp_path_factory.mktemp("trained")
    settings = [*TINY_MODEL, "data.train=bundled:mnist5k/val", "train.batch_size=100", "train.epochs=0.1"]
    assert main(["finetune", "scratch-vit-tiny", *settings, "augment.policy=null", f"output={folder}/run"]) == 0
    return folder / "run"


def stop_a_loader(of: int, when: Callable[[], bool], stopped: list[int]) -> None:
    """Stop the newest loader process of a process, once it is time and it is at work, which its threads tell."""
    deadline = time.monotonic() + 200
    while not stopped and time.monotonic() < deadline:
        if when() and (newest := max(filter(is_loader, children(of)), default=0)):
            with suppress(OSError):
                if len(list(Path(f"/proc/{newest}/task").iterdir())) > 2:  # see `start_worker`
                    os.kill(newest, signal.SIGSTOP)
                    stopped.append(newest)
        time.sleep(0.001)


def is_loader(pid: int) -> bool:
    with suppress(OSError):
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


@pytest.mark.parametrize(
    "command",
    [
        pytest.param("evaluate", marks=pytest.mark.campaign),
        "embed",
        pytest.param("predict", marks=pytest.mark.campaign),
    ],
)
def test_a_stopped_loader_process_ends_a_command_which_goes_on(
    command: str, trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    out = {"evaluate": "evaluation", "embed": "e.npy", "predict": "p.csv"}[command]
    words = [command, str(trained), "bundled:mnist5k/train", "--batch-size", "4", "--out", f"{tmp_path}/{out}"]
    loaders = ["--set", "data.workers=2", "--set", "train.process_timeout=8"]
    stopped: list[int] = []
    begun = tmp_path if command == "evaluate" else tmp_path / f"{out}.partial"

    def is_time() -> bool:
        return command == "evaluate" or len(list(begun.glob("??????.bin"))) > 0

    watcher = threading.Thread(target=stop_a_loader, args=(os.getpid(), is_time, stopped))
    watcher.start()
    code = main([*words, *loaders])
    watcher.join()
    said = capfd.readouterr().err
    assert code == 3, said
    assert re.search(rf"loader process .*\b{stopped[0]} \(stopped\).* within train\.process_timeout=8 s", said), said
    assert not Path(f"/proc/{stopped[0]}").exists()
    assert main([*words, "--set", "data.workers=0"]) == 0, "as the message advises"
    said = capfd.readouterr().out
    if command != "evaluate":
        assert re.search(rf"{command}: [1-9]\d* of 4000 images are done already", said), said
    assert (tmp_path / out).exists()


@pytest.mark.parametrize(
    ("workers", "which"), [(2, 1), *(pytest.param(*each, marks=pytest.mark.campaign) for each in ((2, 0), (3, 1)))]
)
@pytest.mark.parametrize(
    ("number", "timeout"), [(signal.SIGSTOP, 10), (signal.SIGKILL, 600)], ids=lambda value: getattr(value, "name", "")
)
def test_a_loader_process_that_is_stopped_or_killed_while_it_starts_is_the_one_that_is_named(
    workers: int, which: int, number: signal.Signals, timeout: int, tmp_path: Path
):
    """And nothing else is said, in the end either. A killed one is not waited for."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    settings = [*TINY_MODEL, "data.train=bundled:mnist5k/val", "train.batch_size=4", "optimizer.warmup_epochs=0"]
    settings += [f"data.workers={workers}", f"train.process_timeout={timeout}", "output=run"]
    process = run_of("pretrain", "mae-vit-tiny", *settings, cwd=tmp_path)
    deadline = time.monotonic() + 200
    while len(loaders := sorted(filter(is_loader, children(process.pid)))) <= which and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(loaders[which], number)
    said = process.communicate(timeout=120)[1].splitlines()
    assert process.returncode == 3, said
    *before, last = [line for line in said if "WARNING:absl:" not in line]
    if number == signal.SIGSTOP:
        assert f"loader process {loaders[which]} (stopped) did not answer within train.process_timeout=10 s" in last
    else:
        assert "a loader process was killed (SIGKILL), as happens when memory runs out; lower data.workers" in last
    assert not before
    assert not [pid for pid in loaders if Path(f"/proc/{pid}").exists()]


def test_a_loader_process_that_is_stopped_in_a_validation_ends_the_run_which_goes_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    """The step before it is saved, and the validation made up for."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    settings = [*TINY_MODEL, "data.train=bundled:mnist5k/val", "data.val=bundled:mnist5k/train", "train.batch_size=50"]
    settings += ["train.epochs=0.2", "train.log_every=1", "data.workers=2", f"output={tmp_path}/run"]
    words = ["pretrain", "mae-vit-tiny", *settings, "optimizer.warmup_epochs=0"]
    log, stopped = tmp_path / "run" / "metrics.jsonl", list[int]()

    came = set[int]()

    def is_validating() -> bool:
        """Its loader processes come after those of the training, which may have ended."""
        came.update(filter(is_loader, children(os.getpid())))
        return len(came) == 4

    watcher = threading.Thread(target=stop_a_loader, args=(os.getpid(), is_validating, stopped))
    watcher.start()
    code = main([*words, "train.process_timeout=20"])
    watcher.join()
    said = capfd.readouterr()
    assert code == 3, said.err
    assert re.search(rf"loader process .*\b{stopped[0]} \(stopped\).* did not answer", said.err), said.err
    assert "The state is saved" in said.out + said.err
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000004"]
    assert main([*words, "data.workers=0"]) == 0
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(row["step"], row["split"]) for row in rows] == [*((n, "train") for n in range(1, 5)), (4, "val")]


@pytest.mark.campaign
def test_a_loader_process_without_memory_ends_the_run_which_goes_on(tmp_path: Path):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    settings = [*TINY_MODEL, "data.train=large", "train.batch_size=4", "train.epochs=8", "optimizer.warmup_epochs=0"]
    command = ["pretrain", "mae-vit-tiny", *settings, "train.log_every=1", "data.workers=2", "output=run"]
    with little_memory(tmp_path / "large") as confine:
        process = run_of(*command, cwd=tmp_path)
        until_written(tmp_path / "run" / "metrics.jsonl", process)
        loaders = [pid for pid in children(process.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        confine(loaders[0])
        said = process.communicate(timeout=120)[1]
    assert process.returncode == 3, said
    assert "a loader process was killed (SIGKILL), as happens when memory runs out; lower data.workers" in said
    resumed = unmask(*command, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed after step" in resumed.stdout


ORPHANS = """
import multiprocessing, os, re, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:]
from test_data_faults import Digits, start

if __name__ == "__main__":
    batches = start(Digits(), workers=2)
    next(batches)
    memory = re.search("/dev/shm/unmask-.*", Path("/proc/self/maps").read_text())[0]
    print(memory, *(f"/proc/{child.pid}" for child in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_loader_processes_and_their_memory_end_with_a_killed_training_process(tmp_path: Path):
    (tmp_path / "orphans.py").write_text(ORPHANS)
    command = [sys.executable, str(tmp_path / "orphans.py"), *HERE]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == -signal.SIGKILL, result.stderr
    left = [Path(path) for path in result.stdout.split()]
    assert len(left) == 1 + 2
    until = time.monotonic() + 30
    while any(path.exists() for path in left) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(path.exists() for path in left)


GROUP = """
import os, signal, sys
sys.path[:0] = sys.argv[1:]
from test_data_faults import Digits, start

if __name__ == "__main__":
    batches = start(Digits(), workers=2)
    next(batches)
    os.killpg(0, signal.SIGKILL)
"""


def in_shared_memory() -> set[Path]:
    return {path for pattern in ("unmask-*", "sem.unmask-*") for path in Path("/dev/shm").glob(pattern)}


def test_what_a_killed_group_left_in_shared_memory_goes_with_the_next_run(tmp_path: Path):
    (tmp_path / "group.py").write_text(GROUP)
    before = in_shared_memory()
    command = [sys.executable, str(tmp_path / "group.py"), *HERE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, start_new_session=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = in_shared_memory() - before
    (lock,) = [path for path in left if path.suffix == ".lock"]
    assert len(left) > 10, "the ring and the semaphores"
    living = before | {path for path in in_shared_memory() if not path.name.removeprefix("sem.").startswith(lock.stem)}
    left_over._remove_left_over()
    assert lock.exists(), "it might be just being made"
    os.utime(lock, (1, 1))
    left_over._remove_left_over()
    assert not left & in_shared_memory()
    batches = start(Digits(), workers=1)
    next(batches)
    mine = left_over.prefix()
    in_use = {path for path in in_shared_memory() if mine and mine in path.name}
    assert len(in_use) > 1, "the lock and the ring; the semaphores, if no earlier test made theirs under another name"
    os.utime(f"/dev/shm/{mine}.lock", (1, 1))
    left_over._remove_left_over()
    next(batches)
    assert in_use <= in_shared_memory()
    batches.close()
    assert living <= in_shared_memory() | before


SMALL = """
import sys
sys.path[:0] = sys.argv[1:]
from test_data_faults import Large, start

if __name__ == "__main__":
    from unmask.errors import DataError
    for workers in (1, 4):
        batches = start(Large(), workers=workers, batch_size=256)
        try:
            for _ in range(4):
                next(batches)
        except DataError as error:
            print(error)
        finally:
            batches.close()
    print("done")
"""


@pytest.mark.parametrize(
    ("size", "said"), [("64m", "^done\n"), ("256k", "no shared memory for loader processes: No space")]
)
def test_the_shared_memory_of_a_container(size: str, said: str, tmp_path: Path):
    """64 MB of it is what docker gives; images wait their turn. Too little of it is an error with a name."""
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("no file systems can be mounted here")
    (tmp_path / "small.py").write_text(
        SMALL.replace("Digits(), w", "Large(), w").replace("import Digits", "import Large")
    )
    script = f"mount -t tmpfs -o size={size} none /dev/shm && exec {sys.executable} small.py {shlex.join(HERE)}"
    done = subprocess.run([*unshare, "sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.search(said, done.stdout), done.stdout + done.stderr
