"""The loop, with an engine that needs no framework."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import unmask.train
from checkpoints import best_of
from fake_engine import FakeEngine
from unmask.checkpoint.store import CheckpointStore, load_newest
from unmask.config.load import check_config, to_dict
from unmask.config.schema import Config
from unmask.data.loader.spikes import Spikes
from unmask.data.sources import Source, open_source
from unmask.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    EngineError,
    StorageError,
    TrainingError,
    UnmaskError,
)
from unmask.files import RunLock
from unmask.interrupts import Interrupted, command_line
from unmask.loop import Callback, Plan
from unmask.report.log import read_log
from unmask.train import train


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
            "optimizer": sections.pop("optimizer", {"base_lr": 1.0, "warmup_epochs": 0}),
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
        assert best_of(store) is not None
        assert store.load().meta["class_names"] == ["cat", "dog"]


@pytest.fixture
def _ctrl_c() -> Iterator[None]:
    """Python's own handler, whatever the tests were started from."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def send(number: signal.Signals, at: int, times: int = 1) -> Callback:
    """A callback that sends the process a signal once a step is read."""

    def callback(step: int, values: Mapping[str, float]) -> None:
        for _ in range(times if step == at and "loss" in values else 0):
            os.kill(os.getpid(), number)

    return callback


def contents(run: Path) -> dict[str, bytes]:
    """The log and the tensors of the newest checkpoint."""
    newest = max((run / "checkpoints").iterdir())
    return {path.name: path.read_bytes() for path in [run / "metrics.jsonl", *newest.glob("*.safetensors")]}


def newest_step(run: Path) -> int:
    return load_newest(run / "checkpoints").step


def test_what_is_shown_moves_by_time_where_steps_are_slow(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    train_step = FakeEngine.train_step

    def counted(*arguments: Any) -> Any:
        begun.append(1)
        return train_step(*arguments)

    monkeypatch.setattr(FakeEngine, "train_step", counted)
    config = make_config(photos, train={"log_every": 1000, "checkpoint_every": 100})

    def late(seconds: float, run: Path) -> list[int]:
        """How many steps were begun beyond each, when it was told of."""
        monkeypatch.setattr("unmask.loop.LOOK_SECONDS", seconds)
        begun.clear()
        beyond: list[int] = []
        train(config, run, callbacks=[lambda step, _: beyond.append(len(begun) - step)])
        return beyond

    assert max(late(1e9, tmp_path / "rarely")) > 3
    assert max(late(0.0, tmp_path / "always")) == 0
    assert contents(tmp_path / "always") == contents(tmp_path / "rarely")


@pytest.mark.usefixtures("_ctrl_c")
@pytest.mark.parametrize("at", [7, 10])
def test_ctrl_c_finishes_the_step_saves_and_interrupts(
    photos: Path, tmp_path: Path, at: int, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(photos, data={"val": str(photos)}, train={"log_every": 1})
    train(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt, match="stopped by SIGINT"):
        train(config, tmp_path / "run", callbacks=[send(signal.SIGINT, at)])
    assert capsys.readouterr().out.count("stopping: this step is finished and saved first") == 1
    assert newest_step(tmp_path / "run") == at
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    train(config, tmp_path / "run")
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


@pytest.mark.usefixtures("_ctrl_c")
def test_a_second_ctrl_c_interrupts_at_once(photos: Path, tmp_path: Path) -> None:
    config = make_config(photos, train={"log_every": 1, "checkpoint_every": 2})  # every fifth step
    with pytest.raises(KeyboardInterrupt) as stopped:
        train(config, tmp_path / "run", callbacks=[send(signal.SIGINT, 7, times=2)])
    assert type(stopped.value) is KeyboardInterrupt
    assert newest_step(tmp_path / "run") == 5
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handlers_of_the_program_stay(photos: Path, tmp_path: Path) -> None:
    received: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in numbers}
    try:
        train(make_config(photos), tmp_path / "run", callbacks=[send(number, 3) for number in numbers])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert received == [signal.SIGTERM, signal.SIGINT]
    assert newest_step(tmp_path / "run") == 10


def test_sigterm_is_left_alone_in_a_library(photos: Path, tmp_path: Path) -> None:
    seen: set[object] = set()
    train(make_config(photos), tmp_path / "run", callbacks=[lambda *_: seen.add(signal.getsignal(signal.SIGTERM))])
    assert seen == {signal.getsignal(signal.SIGTERM)} == {signal.SIG_DFL}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_under_the_command_line_either_signal_saves_and_stops(
    photos: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as stopped, command_line():
        train(make_config(photos, train={"log_every": 1}), tmp_path / "run", callbacks=[send(number, 3)])
    assert stopped.value.exit_code == code
    assert newest_step(tmp_path / "run") == 3
    assert signal.getsignal(number) is before


def test_outside_the_main_thread_no_handler_is_installed(photos: Path, tmp_path: Path) -> None:
    thread = threading.Thread(target=train, args=(make_config(photos), tmp_path / "run"))
    thread.start()
    thread.join()
    assert newest_step(tmp_path / "run") == 10


def test_callbacks_get_the_numbers_of_the_log_in_order(photos: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, dict[str, float]]] = []
    config = make_config(photos, "classify", data={"val": str(photos)}, train={"log_every": 4})
    train(config, tmp_path / "run", callbacks=[lambda step, values: seen.append((step, dict(values)))])
    rows = read_log(tmp_path / "run" / "metrics.jsonl")
    prefix = {"train": "", "val": "val_"}
    assert seen == [
        (row.pop("step"), {f"{prefix[split]}{name}": value for name, value in row.items()})
        for row in rows
        for split in [row.pop("split")]
    ]
    assert {"loss", "lr", "grad_norm"} <= seen[0][1].keys()
    assert seen[-1][0] == 10
    assert {"val_loss", "val_top1"} <= seen[-1][1].keys()


def test_a_callback_stops_the_run_which_is_saved_and_goes_on(photos: Path, tmp_path: Path) -> None:
    config = make_config(photos, train={"log_every": 1})
    train(config, tmp_path / "whole")
    values = train(config, tmp_path / "run", callbacks=[lambda step, _: step == 4, lambda *_: None])
    assert newest_step(tmp_path / "run") == 4
    assert values["loss"] == read_log(tmp_path / "run" / "metrics.jsonl")[-1]["loss"]
    train(config, tmp_path / "run")
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_an_evaluation_may_stop_the_run(photos: Path, tmp_path: Path) -> None:
    config = make_config(photos, data={"val": str(photos)}, train={"eval_every": 1})  # every second step
    train(config, tmp_path / "run", callbacks=[lambda step, values: "val_loss" in values and step >= 4])
    assert newest_step(tmp_path / "run") == 4


def test_an_error_in_a_callback_ends_the_run_which_goes_on(photos: Path, tmp_path: Path) -> None:
    def fail(step: int, _values: Mapping[str, float]) -> None:
        if step == 8:
            raise RuntimeError("enough")

    config = make_config(photos, train={"checkpoint_every": 2})  # every fifth step
    train(config, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="enough"):
        train(config, tmp_path / "run", callbacks=[fail])
    assert newest_step(tmp_path / "run") == 5
    train(config, tmp_path / "run")
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


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
    for _ in range(2):  # the count goes on where it was: the same command does not succeed in the end
        with pytest.raises(TrainingError, match=r"\d+ steps in a row up to step"):
            train(config, tmp_path / "run")


def test_a_run_too_short_to_be_stopped_does_not_end_as_if_all_were_well(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FakeEngine._loss_and_gradient

    def overflowing(self: FakeEngine, batch: Any) -> Any:
        loss, gradient = real(self, batch)
        return loss, {name: g * np.inf for name, g in gradient.items()}

    monkeypatch.setattr(FakeEngine, "_loss_and_gradient", overflowing)
    config = make_config(photos, train={"epochs": 2})
    for _ in range(2):
        with pytest.raises(TrainingError, match="its last 5 updates skipped"):
            train(config, tmp_path / "run")
    monkeypatch.setattr(FakeEngine, "_loss_and_gradient", lambda self, batch: (np.nan, real(self, batch)[1]))
    with pytest.raises(TrainingError, match="the run ends with the loss nan"):
        train(make_config(photos, train={"epochs": 2}), tmp_path / "other")


def test_a_warmup_longer_than_the_run_is_said(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(make_config(photos, optimizer={"base_lr": 1.0, "warmup_epochs": 16}), tmp_path / "run")
    assert (
        "optimizer.warmup_epochs=16 is longer than the run, whose learning rate ends at 23%" in capsys.readouterr().out
    )


def test_a_run_from_before_a_key_existed_goes_on(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_the_key(config: Config) -> dict[str, Any]:
        values = to_dict(config)
        del values["train"]["ema_warmup"]
        return values

    with monkeypatch.context() as earlier:
        earlier.setattr("unmask.loop.to_dict", without_the_key)
        train(make_config(photos), tmp_path / "run")
    train(make_config(photos), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"holds another run \(train.ema_warmup: False -> True\)"):
        train(make_config(photos, train={"ema_warmup": True}), tmp_path / "run")


def test_a_run_stopped_before_its_first_checkpoint_keeps_its_log(photos: Path, tmp_path: Path) -> None:
    def stop(step: int, _: Mapping[str, float]) -> None:
        raise ZeroDivisionError(step)

    with pytest.raises(ZeroDivisionError):
        train(make_config(photos), tmp_path / "run", callbacks=[stop])
    log = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert log
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))
    with pytest.raises(ConfigError, match=r"holds another run \(train.batch_size: 10 -> 5\)"):
        train(make_config(photos, train={"batch_size": 5}), tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == log
    train(make_config(photos), tmp_path / "run")


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
    with pytest.raises(DataError, match=r"only data\.val \['cow'\], only data\.train \['dog'\]"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_too_many_bad_files_stop_the_run_and_are_listed(photos: Path, tmp_path: Path) -> None:
    (photos / "cat" / "3.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"bad_files\.txt"):
        train(make_config(photos), tmp_path / "run")
    assert (tmp_path / "run" / "bad_files.txt").read_text().startswith("cat/3.png\t")
    logged = len(read_log(tmp_path / "run" / "metrics.jsonl"))
    with CheckpointStore(tmp_path / "run" / "checkpoints", keep=2) as store:
        assert store.steps() == [logged], "what was computed is saved"
    allowed = make_config(photos, data={"max_bad_share": 0.1})
    train(allowed, tmp_path / "other")
    assert read_log(tmp_path / "other" / "metrics.jsonl")[-1]["step"] == 10
    train(allowed, tmp_path / "run")
    assert files_of(tmp_path / "run", "metrics.jsonl") == files_of(tmp_path / "other", "metrics.jsonl")


class Unreliable:
    """Images of a disk that fails when it is told to."""

    def __init__(self, source: Source) -> None:
        self.source, self.fails = source, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> Any:
        if self.fails:
            raise StorageError("the disk is gone")
        return self.source.read(index)


def files_of(run: Path, pattern: str) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.glob(pattern) if path.is_file()}


def test_an_evaluation_that_fails_is_made_up_for(photos: Path, tmp_path: Path) -> None:
    config = make_config(photos, "classify", train={"eval_every": 1})
    val = Unreliable(open_source(str(photos), key="data.val", labels=True))
    train(config, tmp_path / "whole", val_images=val)

    def fail(step: int, values: Mapping[str, float]) -> None:
        val.fails = step == 4

    with pytest.raises(StorageError, match="the disk is gone"):
        train(config, tmp_path / "run", val_images=val, callbacks=[fail])
    with CheckpointStore(tmp_path / "run" / "checkpoints", keep=2) as store:
        assert store.steps()[-1] == 4, "what was computed is saved"
    with pytest.raises(StorageError, match="the disk is gone"):
        train(config, tmp_path / "run", val_images=val)
    val.fails = False
    train(config, tmp_path / "run", val_images=val)
    for pattern in ("metrics.jsonl", "checkpoints/*/*"):
        assert files_of(tmp_path / "run", pattern) == files_of(tmp_path / "whole", pattern)


def test_features_are_judged_while_pretraining(photos: Path, tmp_path: Path) -> None:
    wanted = {"every": 1, "train": str(photos), "val": str(photos)}
    values = train(make_config(photos, evaluate=wanted), tmp_path / "run")
    rows = [row for row in read_log(tmp_path / "run" / "metrics.jsonl") if row["split"] == "val"]
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10]
    assert all(row["knn_top1"] == row["probe_top1"] == 1.0 for row in rows), "cats are dark, dogs are bright"
    assert all(1 <= row["effective_rank"] <= 16 for row in rows)
    assert values["val_knn_top1"] == 1.0
    with CheckpointStore(tmp_path / "run" / "checkpoints", keep=2) as store:
        best = best_of(store)
        assert best is not None
        assert best.name == "step-00000002", "the first of equal ones"


def test_an_interrupted_run_judges_its_features_as_one_that_is_not(photos: Path, tmp_path: Path) -> None:
    config = make_config(photos, evaluate={"every": 1, "train": str(photos), "val": str(photos)})
    train(config, tmp_path / "whole")
    train(config, tmp_path / "parts", callbacks=[lambda step, metrics: step >= 5])
    train(config, tmp_path / "parts")
    whole, parts = ((tmp_path / run / "metrics.jsonl").read_bytes() for run in ("whole", "parts"))
    assert whole == parts


def test_without_labels_there_is_the_effective_rank(photos: Path, tmp_path: Path) -> None:
    values = train(make_config(photos, evaluate={"every": 2}), tmp_path / "run")
    assert values.keys() == {"loss", "val_effective_rank"}
    with pytest.raises(ConfigError, match=r"evaluate.train and evaluate.val go together"):
        train(make_config(photos, evaluate={"every": 2, "train": str(photos)}), tmp_path / "other")


def test_an_objective_without_a_loss_for_single_images_refuses_data_val(photos: Path, tmp_path: Path) -> None:
    config = make_config(photos, objective={"name": "lejepa"}, data={"val": str(photos)})
    with pytest.raises(ConfigError, match=r"objective.name=lejepa has no loss for single images: leave out data.val"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("output", ["run", "new/run"])
def test_a_start_that_fails_leaves_no_folder(output: str, photos: Path, tmp_path: Path) -> None:
    for name in ("none.safetensors", "strange.safetensors"):
        config = make_config(photos, init=str(tmp_path / name))
        with pytest.raises(CheckpointError):
            train(config, tmp_path / output)
        save_file({"strange": np.ones(1, np.float32)}, tmp_path / "strange.safetensors")
        assert not (tmp_path / output.partition("/")[0]).exists()


@pytest.mark.parametrize(
    ("sections", "world", "message"),
    [
        (
            {"augment": {"mixup": 0.8}},
            2,
            r"over 2 processes x train.accumulate=1 makes micro-batches of 5",
        ),
        ({}, 3, r"train.batch_size=10 is not a multiple of 3 processes"),
        (
            {"objective": {"name": "classify", "class_weights": [1, 2, 3]}},
            1,
            r"has 3 values for 2 classes",
        ),
    ],
)
def test_batches_that_are_not_possible_are_refused_before_any_work(
    sections: dict[str, Any], world: int, message: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(world))  # with nobody there: it must not wait for them
    monkeypatch.setattr(unmask.train, "create_engine", None)
    with pytest.raises(ConfigError, match=message):
        train(make_config(photos, **{"objective": "classify"} | sections), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_start_that_fails_late_or_in_a_folder_that_was_there_removes_nothing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise EngineError("no")

    monkeypatch.setattr(FakeEngine, "load", failing)
    with pytest.raises(EngineError):
        train(make_config(photos), tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()
    (tmp_path / "there").mkdir()
    with pytest.raises(EngineError):
        train(make_config(photos), tmp_path / "there")
    assert (tmp_path / "there").is_dir()
    monkeypatch.undo()
    monkeypatch.setattr(unmask.train, "create_engine", FakeEngine)
    monkeypatch.setattr(unmask.train, "write_images", failing)
    with pytest.raises(EngineError):
        train(make_config(photos), tmp_path / "run")
    assert (tmp_path / "run" / "run.yaml").exists()


@pytest.mark.parametrize("loss", [np.nan, np.inf, 1e6])
def test_a_sudden_loss_names_its_images(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], loss: float
) -> None:
    real, calls, shown = FakeEngine._loss_and_gradient, iter(range(1000)), list[list[int]]()

    def sudden(self: FakeEngine, batch: Any) -> Any:
        shown.append(batch.index.tolist())
        return (loss, real(self, batch)[1]) if next(calls) == 29 else real(self, batch)

    monkeypatch.setattr(FakeEngine, "_loss_and_gradient", sudden)
    config = make_config(photos, train={"epochs": 15})
    train(config, tmp_path / "run")
    (line,) = (tmp_path / "run" / "spikes.jsonl").read_text("utf-8").splitlines()
    row = json.loads(line)
    source = open_source(str(photos), key="data.train", labels=False)
    assert (row["step"], float(row["loss"])) == (30, pytest.approx(loss, nan_ok=True))
    assert row["images"] == [source.name(index) for index in shown[29]]
    assert "step 30: the loss is" in capsys.readouterr().out


def test_a_loss_that_falls_or_scatters_is_no_spike(photos: Path, tmp_path: Path) -> None:
    source = open_source(str(photos), key="data.train", labels=False)
    spikes = Spikes(source, tmp_path / "spikes.jsonl", seed=0, batch_size=4, repeats=1)
    rng = np.random.default_rng(0)
    for step in range(1, 3000):
        spikes.add(step, float((2 + np.exp(-step / 300)) * rng.lognormal(0, 0.2)))
    assert not (tmp_path / "spikes.jsonl").exists()
    spikes.add(3000, 40.0)
    assert json.loads((tmp_path / "spikes.jsonl").read_text("utf-8"))["step"] == 3000


@pytest.mark.parametrize("share", [0.5, 0.3, 0.2])
def test_batches_that_are_mixed_are_no_spikes_among_those_that_are_not(
    photos: Path, tmp_path: Path, share: float
) -> None:
    """A share of the updates is of mixed images, which are harder; what is learnt by heart hardly scatters."""
    source = open_source(str(photos), key="data.train", labels=False)
    spikes = Spikes(source, tmp_path / "spikes.jsonl", seed=0, batch_size=4, repeats=1)
    rng = np.random.default_rng(1)
    for step in range(1, 1000):
        mixed = rng.random() < share
        spikes.add(step, float(rng.uniform(0.7, 2.1) if mixed else rng.normal(0.62, 0.005)))
    assert not (tmp_path / "spikes.jsonl").exists()
    spikes.add(1000, 15.0)
    assert json.loads((tmp_path / "spikes.jsonl").read_text("utf-8"))["step"] == 1000
