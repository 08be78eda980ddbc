"""Services that get the figures of a run: they have them, and whatever becomes of a service, the run goes on."""

from __future__ import annotations

import sys
import threading
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from unmask.errors import ConfigError
from unmask.report import trackers
from unmask.report.log import RunLog, read_log
from unmask.report.trackers import Trackers


def write(folder: Path, *names: str) -> None:
    log = RunLog(folder, resume_step=0, config={"train.epochs": 3}, loggers=names)
    for step in (1, 2, 3):
        log.train(step, {"loss": 1 / step})
    log.val(3, {"loss": 0.5})
    log.close()
    assert [row["step"] for row in read_log(folder / "metrics.jsonl")] == [1, 2, 3, 3]


def test_wandb_keeps_all_of_it_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb", reason="W&B is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(trackers, "_SECONDS", 120.0)  # a busy machine
    write(tmp_path, "wandb")
    assert "failed" not in capsys.readouterr().out
    (kept,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert b"train/loss" in kept.read_bytes()
    assert b"train.epochs" in kept.read_bytes()


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
