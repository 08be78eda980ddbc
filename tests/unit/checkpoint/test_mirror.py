"""Runs kept in an object store: a real one of the S3 protocol, on loopback, and an engine that needs no framework."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import unmask.api
import unmask.train
from fake_engine import FakeEngine
from unmask.checkpoint.mirror import Mirror, bring, folder_here
from unmask.checkpoint.store import load_newest
from unmask.cli import main
from unmask.config.load import check_config
from unmask.data.sources import remote
from unmask.errors import CheckpointError, ConfigError, DataError, UnmaskError
from unmask.interchange import read_model

URL = "s3://bucket/jobs/run"
SIZES = {"image_size": 16, "patch_size": 8, "width": 16, "depth": 1, "heads": 2}
Machine = Callable[[str], Path]


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Any) -> Machine:
    """Go to another machine: a working folder and a cache of its own. The store is empty at first."""
    monkeypatch.setattr(unmask.train, "create_engine", FakeEngine)
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.0)
    monkeypatch.setattr("unmask.report.pictures.curves", lambda folder: folder / "curves.png")  # takes a second
    rng = np.random.default_rng(0)
    for i in range(24):
        file = tmp_path / "photos" / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(file)

    def go(name: str) -> Path:
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / name)
        monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / name / "cache"))
        return tmp_path / name

    for name in names(store):  # one store serves all tests of a process
        store.delete_object(Bucket="bucket", Key=name)
    go("first")
    return go


def names(store: Any) -> list[str]:
    return [found["Key"] for found in store.list_objects_v2(Bucket="bucket").get("Contents", ())]


def steps(store: Any) -> list[str]:
    """The checkpoints in the store that are whole."""
    return [name.split("/")[3] for name in names(store) if name.endswith("checksums.json")]


def run(tmp_path: Path, *, stop: int | None = None, kept_at: str | None = URL, beside: bool = False) -> Path:
    """A run of 6 steps with a checkpoint every 2, which ends at `stop`; returns its folder here."""
    sections: dict[str, Any] = {
        "model": SIZES,
        "data": {"train": str(tmp_path / "photos")},
        "train": {"epochs": 2, "batch_size": 8, "checkpoint_every": 2 / 3, "log_every": 1},
        "optimizer": {"base_lr": 1.0, "warmup_epochs": 0},
        "objective": {"name": "classify"},
        "output": kept_at,
    }
    folder = folder_here(kept_at) if kept_at else Path("plain")
    stopping = [lambda step, _: step == stop]
    return unmask.api.run(check_config(sections), folder, callbacks=stopping, kept_at=kept_at, beside=beside).folder


def test_another_machine_goes_on_and_ends_as_one_that_was_never_left(tmp_path: Path, machine: Machine, store: Any):
    run(tmp_path, stop=3)
    assert steps(store) == ["step-00000002", "step-00000003"]
    second = machine("second")
    folder = second / run(tmp_path)
    assert steps(store) == ["step-00000004", "step-00000006"]
    machine("third")
    expected = run(tmp_path, kept_at=None)
    assert (folder / "metrics.jsonl").read_bytes() == (expected / "metrics.jsonl").read_bytes()
    weights = "checkpoints/step-00000006/weights.safetensors"
    assert (folder / weights).read_bytes() == (expected / weights).read_bytes()
    body = store.get_object(Bucket="bucket", Key="jobs/run/metrics.jsonl")["Body"].read()
    assert body == (expected / "metrics.jsonl").read_bytes()
    assert not [name for name in names(store) if "/." in name]


def test_init_and_load_take_a_run_or_a_file_in_the_store(tmp_path: Path, machine: Machine, store: Any):
    folder = Path.cwd() / run(tmp_path)
    machine("second")
    expected = read_model(folder)
    found = read_model(URL)
    assert found.class_names == ("a", "b")
    for name, tensor in expected.weights.items():
        np.testing.assert_array_equal(found.weights[name], tensor)
    assert read_model(URL, 4).config == expected.config
    assert not list(Path("cache").rglob("optimizer.safetensors"))
    store.upload_file(str(folder / "checkpoints/step-00000006/weights.safetensors"), "bucket", "x.safetensors")
    alone = read_model("s3://bucket/x.safetensors").weights
    np.testing.assert_array_equal(alone["head.bias"], expected.weights["head.bias"])
    with pytest.raises(CheckpointError, match="s3://bucket/none holds no run"):
        read_model("s3://bucket/none")
    with pytest.raises(DataError, match=r"s3://bucket/none\.pth cannot be read: no such file"):
        read_model("s3://bucket/none.pth")


def test_mindspore_s_files_stand_beside_the_run_there_too(tmp_path: Path, machine: Machine, store: Any):
    run(tmp_path, beside=True)
    assert [name for name in names(store) if name.endswith(".ckpt")] == ["jobs/run-2_1.ckpt", "jobs/run-2_3.ckpt"]


@pytest.mark.parametrize(
    "call", [pytest.param(call, marks=() if call % 9 == 1 else pytest.mark.campaign) for call in range(1, 30)]
)
def test_killed_at_any_call_to_the_store_what_is_there_is_whole(
    call: int, tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
):
    run(tmp_path, stop=2)
    machine("second")
    with monkeypatch.context() as patch:
        calls = iter(range(1, 1000))

        def killed(path: Path, url: str, send: Callable[[Path, str], None] = remote.send) -> None:
            if next(calls) == call:
                raise SystemExit
            send(path, url)

        patch.setattr(remote, "send", killed)
        with suppress(SystemExit):
            run(tmp_path)
    machine("third")
    bring(Path("run"), URL)
    assert load_newest(Path("run/checkpoints")).step in (2, 4, 6)
    folder = run(tmp_path)
    assert load_newest(folder / "checkpoints").step == 6


class Failing:
    """The first `failures` of the calls to the store's file system fail."""

    def __init__(self, failures: int, patch: pytest.MonkeyPatch) -> None:
        self.left = failures
        patch.setattr(remote, "_open", self._open)

    def _open(self, url: str, open: Callable[[str], Any] = remote._open) -> Any:
        if self.left:
            self.left -= 1
            raise ConnectionError("injected")
        return open(url)


@pytest.mark.parametrize("failures", [1, 4])
def test_a_store_that_fails_for_a_while_is_asked_again(failures: int, tmp_path: Path, store: Any, monkeypatch: Any):
    Failing(failures, monkeypatch)
    run(tmp_path)
    assert steps(store) == ["step-00000004", "step-00000006"]


def test_a_store_that_is_away_for_long_stops_no_run_and_gets_all_of_it_later(
    tmp_path: Path, store: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    folder = folder_here(URL)
    away = Failing(0, monkeypatch)
    begin = Mirror.begin

    def then_away(mirror: Mirror, *, writes: bool) -> None:
        begin(mirror, writes=writes)
        away.left = 10**6

    monkeypatch.setattr(Mirror, "begin", then_away)
    with pytest.raises(CheckpointError, match=r"5 attempts: ConnectionError: injected\. The run is whole in"):
        run(tmp_path)
    assert "the next checkpoint sends it again" in caplog.text
    assert load_newest(folder / "checkpoints").step == 6
    monkeypatch.setattr(Mirror, "begin", begin)
    away.left = 0
    run(tmp_path)
    assert steps(store) == ["step-00000004", "step-00000006"]


def test_a_damaged_checkpoint_in_the_store_is_not_taken(tmp_path: Path, machine: Machine, store: Any, caplog: Any):
    run(tmp_path)
    store.put_object(Bucket="bucket", Key="jobs/run/checkpoints/step-00000006/weights.safetensors", Body=b"cut")
    machine("second")
    folder = run(tmp_path)
    assert "step-00000006 is damaged and not taken" in caplog.text
    assert load_newest(folder / "checkpoints").step == 6


def test_a_disk_that_takes_no_more_is_said_in_one_line(
    tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
):
    run(tmp_path)
    machine("second")

    def full(url: str, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(remote, "fetch", full)
    with pytest.raises(CheckpointError, match=r"cannot write runs/.*: No space"):
        run(tmp_path)


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("s3://bucket", ConfigError, "output=s3://bucket: give a folder of an object store"),
        ("hf://me/run", ConfigError, "output=hf://me/run: give a folder of an object store"),
        ("s3://no-such-bucket/run", DataError, "s3://no-such-bucket/run/.writable cannot be written"),
        ("obs://bucket/run", DataError, "which needs AWS_ENDPOINT_URL"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_anything_is_written(
    url: str, error: type[UnmaskError], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if url.startswith("obs"):
        monkeypatch.delenv("AWS_ENDPOINT_URL")
    with pytest.raises(error) as raised:
        run(tmp_path, kept_at=url)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not Path("runs").exists()


def test_obs_is_the_s3_protocol_with_an_endpoint(tmp_path: Path, store: Any):
    run(tmp_path, kept_at="obs://bucket/jobs/run", stop=2)
    assert steps(store) == ["step-00000002"]


@pytest.mark.parametrize("command", [["reconstruct", "m", "x.png"], ["evaluate", "m", "x"], ["check", "x"]])
def test_results_are_files_here(command: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main([*command, "--out", "s3://bucket/e.parquet"])
    assert "s3://bucket/e.parquet is a URL; name a file or folder here" in capsys.readouterr().err
