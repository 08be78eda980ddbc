"""The loop, with an engine that needs no framework."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import unmask.train
from fake_engine import FakeEngine
from unmask.checkpoint.store import CheckpointStore
from unmask.config.load import check_config, to_dict
from unmask.config.schema import Config
from unmask.errors import ConfigError, DataError, TrainingError, UnmaskError
from unmask.report.log import read_log
from unmask.run_lock import RunLock
from unmask.train import Plan, train


@pytest.fixture(autouse=True)
def _fake_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(unmask.train, "create_engine", FakeEngine)
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """24 pictures in two classes."""
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        folder = tmp_path / "photos" / label
        folder.mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 120, (20, 20, 3), dtype=np.uint8) + (100 if label == "dog" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "photos"


def make_config(photos: Path, objective: str = "mae", **sections: Any) -> Config:
    sizes = {"width": 16, "depth": 1, "heads": 2, "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
    return check_config(
        {
            "objective": objective,
            "model": {"image_size": 16, "patch_size": 8, **sizes},
            "data": {"train": str(photos), **sections.pop("data", {})},
            "optimizer": {"base_lr": 1.0, "warmup_epochs": 0},
            "train": {"epochs": 4, "batch_size": 10, **sections.pop("train", {})},
            **sections,
        }
    )


def test_epochs_are_counted_in_images_not_in_full_batches() -> None:
    config = check_config({"train": {"epochs": 3, "batch_size": 64}, "optimizer": {"warmup_epochs": 1}})
    plan = Plan.of(config, 100)
    assert (plan.total, plan.warmup, plan.checkpoint_every) == (round(300 / 64), 100 / 64, 2)
    assert Plan.of(config, 10).total == 1, "fewer images than a batch: still a step"


def test_every_step_is_logged_and_the_last_is_saved(photos: Path, tmp_path: Path) -> None:
    config = make_config(photos, train={"log_every": 4})
    values = train(config, tmp_path / "run")
    rows = read_log(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 11))  # 4 epochs x 24 images / 10
    assert rows[-1]["loss"] == values["loss"] < rows[0]["loss"]
    assert rows[0]["lr"] == pytest.approx(10 / 256)
    with CheckpointStore(tmp_path / "run" / "checkpoints", keep=2) as store:
        assert store.load().step == 10


def test_evaluation_keeps_the_best_and_reports_accuracy(photos: Path, tmp_path: Path) -> None:
    config = make_config(photos, "classify", data={"val": str(photos)}, train={"eval_every": 1, "epochs": 20})
    values = train(config, tmp_path / "run")
    assert values["val_top1"] == 1.0
    rows = [row for row in read_log(tmp_path / "run" / "metrics.jsonl") if row["split"] == "val"]
    assert len(rows) >= 20
    with CheckpointStore(tmp_path / "run" / "checkpoints", keep=2) as store:
        assert store.best() is not None
        assert store.load().meta["class_names"] == ["cat", "dog"]


def test_a_stop_signal_finishes_the_step_saves_and_exits(photos: Path, tmp_path: Path) -> None:
    config = make_config(photos, train={"epochs": 10_000, "log_every": 1})
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(SystemExit) as stopped:
        train(config, tmp_path / "run")
    assert stopped.value.code == 143
    last = read_log(tmp_path / "run" / "metrics.jsonl")[-1]["step"]
    with CheckpointStore(tmp_path / "run" / "checkpoints", keep=2) as store:
        assert store.load().step == last < 24_000
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_gradients_that_stay_non_finite_stop_the_run_and_keep_the_weights(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FakeEngine._loss_and_gradient
    calls = iter(range(1000))

    def poisoned(self: FakeEngine, batch: Any) -> Any:
        loss, gradient = real(self, batch)
        return (loss, gradient) if next(calls) < 5 else (np.nan, {name: g * np.nan for name, g in gradient.items()})

    monkeypatch.setattr(FakeEngine, "_loss_and_gradient", poisoned)
    config = make_config(photos, train={"epochs": 100, "max_skipped": 7, "log_every": 1})
    with pytest.raises(TrainingError, match="8 steps in a row up to step 13"):
        train(config, tmp_path / "run")
    with CheckpointStore(tmp_path / "run" / "checkpoints", keep=2) as store:
        saved = store.load()
    assert saved.step == 13
    assert saved.state.scalars["updates"] == 5
    assert all(np.isfinite(weight).all() for weight in saved.state.weights.values())
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] == "nan"


def test_a_run_from_before_a_key_existed_goes_on(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_the_key(config: Config) -> dict[str, Any]:
        values = to_dict(config)
        del values["train"]["ema_warmup"]
        return values

    with monkeypatch.context() as earlier:
        earlier.setattr("unmask.train.to_dict", without_the_key)
        train(make_config(photos), tmp_path / "run")
    train(make_config(photos), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"holds another run \(train.ema_warmup: False -> True\)"):
        train(make_config(photos, train={"ema_warmup": True}), tmp_path / "run")


def test_a_folder_that_holds_another_run_is_refused_with_the_difference(photos: Path, tmp_path: Path) -> None:
    train(make_config(photos), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"holds another run \(train.batch_size: 10 -> 5\)"):
        train(make_config(photos, train={"batch_size": 5}), tmp_path / "run")
    train(make_config(photos, train={"log_every": 3}), tmp_path / "run")  # decides no number


def test_changed_data_is_refused_on_resume(photos: Path, tmp_path: Path) -> None:
    train(make_config(photos), tmp_path / "run")
    (photos / "cat" / "0.png").unlink()
    with pytest.raises(DataError, match="24 images then, 23 now"):
        train(make_config(photos), tmp_path / "run")


def test_two_runs_in_one_folder_are_refused(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with RunLock(tmp_path / "run"), pytest.raises(UnmaskError, match=str(os.getpid())):
        train(make_config(photos), tmp_path / "run")


def test_classes_that_differ_between_train_and_val_are_refused(photos: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for label in ("cat", "cow"):
        (other / label).mkdir(parents=True)
        Image.new("RGB", (20, 20)).save(other / label / "0.png")
    config = make_config(photos, "classify", data={"val": str(other)})
    with pytest.raises(DataError, match=r"only in train \['dog'\], only in val \['cow'\]"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_too_many_bad_files_stop_the_run_and_are_listed(photos: Path, tmp_path: Path) -> None:
    (photos / "cat" / "3.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"bad_files\.txt"):
        train(make_config(photos), tmp_path / "run")
    assert (tmp_path / "run" / "bad_files.txt").read_text() == "cat/3.png\n"
    train(make_config(photos, data={"max_bad_share": 0.1}), tmp_path / "other")
    assert read_log(tmp_path / "other" / "metrics.jsonl")[-1]["step"] == 10
