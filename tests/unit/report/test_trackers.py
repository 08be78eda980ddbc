"""Services that get the figures of a run: they have them, and whatever becomes of a service, the run goes on.

Run as a script, this file is a run: `python test_trackers.py SERVICE`, in the folder `run` of where it is.
"""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from unmask.errors import ConfigError
from unmask.report import trackers
from unmask.report.log import RunLog, read_log
from unmask.report.trackers import Trackers


def write(folder: Path, *names: str, after: int = 0) -> None:
    """Three steps, gone on with from step `after`."""
    log = RunLog(folder, resume_step=after, config={"train.epochs": 3 + after}, loggers=names)
    for step in range(after + 1, after + 4):
        log.train(step, {"loss": 1 / step})
    log.val(after + 3, {"loss": 0.5})
    log.close()
    steps = [row["step"] for row in read_log(folder / "metrics.jsonl") if row["split"] == "train"]
    assert steps == list(range(1, after + 4))


OFFLINE = {
    "wandb": ({"WANDB_MODE": "offline"}, "run/wandb/offline-run-*/*.wandb"),
    "mlflow": ({"MLFLOW_TRACKING_URI": "sqlite:///kept.db"}, "kept.db"),
    "swanlab": ({"SWANLAB_MODE": "offline"}, "run/swanlog/run-*/*.swanlab"),
    "trackio": ({"TRACKIO_DIR": "kept"}, "kept/unmask.db"),
}
"""Settings of each service without a network, and the file it then keeps."""


def runs_kept(name: str, folder: Path) -> set[str]:
    """The runs that the files of a service speak of, by what it knows them by."""
    if name == "wandb":
        names = (path.name for path in folder.glob("run/wandb/offline-run-*"))
        return {run for name in names for run in re.findall(r"[0-9a-f]{32}", name)}  # -1 behind the second of a second
    if name == "swanlab":
        found = [
            set(re.findall(rb"[0-9a-f]{32}", path.read_bytes())) for path in folder.glob("run/swanlog/run-*/*.swanlab")
        ]
        assert len(found) == 2
        return {each.decode() for each in found[0] & found[1]}
    (file,) = folder.glob(OFFLINE[name][1])
    runs = {"mlflow": "SELECT run_uuid FROM runs", "trackio": "SELECT run_name FROM metrics"}
    with closing(sqlite3.connect(file)) as database:
        return {run for (run,) in database.execute(runs[name])}


@pytest.mark.parametrize("name", OFFLINE)
def test_the_service_itself_keeps_all_of_it_offline_as_one_run(name: str, tmp_path: Path) -> None:
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    (tmp_path / "run").mkdir()
    settings, kept = OFFLINE[name]
    done = subprocess.run(
        [sys.executable, __file__, name],
        cwd=tmp_path, env=os.environ | settings | {"HOME": str(tmp_path)}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stdout + done.stderr
    assert "rror" not in done.stdout + done.stderr
    for file in tmp_path.glob(kept):
        files = [file, *file.parent.glob("files/config.yaml"), *file.parent.glob(f"{file.name}-wal")]
        held = b"".join(path.read_bytes() for path in files)
        for word in (b"train/loss", b"val/loss", b"train.epochs"):
            assert word in held, word
    assert len(runs_kept(name, tmp_path)) == 1


def test_what_is_not_installed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'unmask\[mlflow\]'"):
        Trackers(("mlflow",), tmp_path, {})


class Service(ModuleType):
    """A package of a service, which fails where it is told to."""

    def __init__(self, fails_at: str) -> None:
        super().__init__("trackio")
        self.__spec__ = ModuleSpec("trackio", None)
        self.fails_at, self.told, self.hang = fails_at, list[tuple[int, dict[str, float]]](), threading.Event()

    def _do(self, what: str) -> None:
        if what == self.fails_at:
            raise (SystemExit if what == "finish" else OSError)("no space left on device")

    def init(self, **_: Any) -> None:
        self._do("init")

    def log(self, values: dict[str, float], step: int) -> None:
        if self.fails_at == "hangs":
            self.hang.wait(60)
        self.told.append((step, values))
        if step == 2:
            self._do("log")

    def finish(self) -> None:
        self._do("finish")


@pytest.mark.parametrize(("fails_at", "told"), [("init", 0), ("log", 2), ("finish", 4), ("hangs", 0), ("never", 4)])
def test_a_service_that_fails_is_said_once_and_ends_no_run(
    fails_at: str, told: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    service = Service(fails_at)
    monkeypatch.setitem(sys.modules, "trackio", service)
    if fails_at == "hangs":
        monkeypatch.setattr(trackers, "_SECONDS", 0.2)
    write(tmp_path, "trackio")
    assert len(service.told) == told
    said = capsys.readouterr().out
    assert said.count("train.loggers: trackio failed") == (fails_at != "never")
    service.hang.set()


if __name__ == "__main__":
    trackers._SECONDS = 120.0  # a busy machine
    write(Path("run").resolve(), sys.argv[1])
    write(Path("run").resolve(), sys.argv[1], after=3)
