import json
import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unmask.errors import UnmaskError
from unmask.report.log import RunLog, read_log, show_picture


def metrics_of(step: int) -> dict[str, float]:
    return {"loss": 1 / step, "lr": 1e-4 * step, "skipped": step % 3}


def log_steps(log: RunLog, first: int, last: int) -> None:
    for step in range(first, last + 1):
        log.train(step, metrics_of(step))
        if step % 4 == 0:
            log.val(step, {"top1": 0.1 * step})
        log.speed(step, {"images_per_s": 100.0})


def test_lines_hold_step_split_and_numbers_and_no_clock(tmp_path: Path) -> None:
    log = RunLog(tmp_path, resume_step=0)
    log.train(1, {"loss": np.float32(0.5), "skipped": np.int64(0)})
    log.val(1, {"top1": 0.25})
    log.close()
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == [
        '{"step": 1, "split": "train", "loss": 0.5, "skipped": 0}',
        '{"step": 1, "split": "val", "top1": 0.25}',
    ]


def test_speed_has_the_time_and_is_kept_apart(tmp_path: Path) -> None:
    log = RunLog(tmp_path, resume_step=0)
    log.speed(20, {"images_per_s": 512.0})
    log.close()
    (row,) = read_log(tmp_path / "speed.jsonl")
    assert row["step"] == 20
    assert row["images_per_s"] == 512.0
    assert row["time"] > 1.6e9
    assert read_log(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize(
    "torn", ["", '{"step": 9, "split": "tr', '{"step": 9, "split": "train", "loss": 0.1}', "\0\0\0"]
)
def test_a_resumed_log_is_byte_equal_to_an_uninterrupted_one(tmp_path: Path, torn: str) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    whole.mkdir()
    resumed.mkdir()
    log = RunLog(whole, resume_step=0)
    log_steps(log, 1, 12)
    log.close()
    killed = RunLog(resumed, resume_step=0)
    log_steps(killed, 1, 8)
    with (resumed / "metrics.jsonl").open("a") as file:
        file.write(torn)
    log = RunLog(resumed, resume_step=6)
    log_steps(log, 7, 12)
    log.close()
    killed.close()
    assert (resumed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert [row["step"] for row in read_log(resumed / "speed.jsonl")] == list(range(1, 13))


def test_no_flipped_bit_takes_the_lines_behind_it_along(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path, resume_step=0)
    log_steps(log, 1, 8)
    log.close()
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    expected = [row["step"] for row in read_log(path)]
    for place in range(0, len(b"".join(whole.splitlines(keepends=True)[:-2])), 23):
        for bit in (1, 6):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            capsys.readouterr()
            RunLog(tmp_path, resume_step=8).close()
            assert path.read_bytes() == damaged
            steps = [row["step"] for row in read_log(path)]
            assert steps[-2:] == expected[-2:]
            assert len(steps) == len(expected) or "damaged, and not used: line " in capsys.readouterr().out


def test_no_flipped_bit_is_believed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the line is still JSON, of another number: the checkpoint knows what the log was."""
    log = RunLog(tmp_path, resume_step=0)
    log_steps(log, 1, 6)
    known = log.written()
    log_steps(log, 7, 8)
    log.close()
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    for place in range(0, known["bytes"], 7):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            capsys.readouterr()
            RunLog(tmp_path, resume_step=6, known=known).close()
            assert f"{path} is damaged or was changed: up to step 6" in capsys.readouterr().out
            assert path.read_bytes() == damaged[: known["bytes"]] or place == known["bytes"] - 1
    for lost in (0, 1, 30):
        path.write_bytes(whole[lost : known["bytes"] - 1])
        RunLog(tmp_path, resume_step=6, known=known).close()
        assert "is damaged or was changed" in capsys.readouterr().out
    path.unlink()
    RunLog(tmp_path, resume_step=6, known=known).close()
    assert "is damaged or was changed" in capsys.readouterr().out
    path.write_bytes(whole)
    log = RunLog(tmp_path, resume_step=6, known=known)
    assert log.written() == known
    log_steps(log, 7, 8)
    log.close()
    assert path.read_bytes() == whole
    assert not capsys.readouterr().out


def test_a_line_is_readable_before_the_log_is_flushed_or_closed(tmp_path: Path) -> None:
    log = RunLog(tmp_path, resume_step=0)
    log.train(1, {"loss": 0.5})
    assert len(read_log(tmp_path / "metrics.jsonl")) == 1
    log.close()


def test_a_run_without_checkpoint_starts_its_log_anew(tmp_path: Path) -> None:
    for _ in range(2):
        log = RunLog(tmp_path, resume_step=0)
        log.val(0, {"top1": 0.1})
        log.close()
    assert len(read_log(tmp_path / "metrics.jsonl")) == 1


def test_non_finite_numbers_are_valid_json_and_come_back(tmp_path: Path) -> None:
    log = RunLog(tmp_path, resume_step=0)
    log.train(1, {"loss": math.nan, "grad_norm": math.inf, "low": -math.inf})
    log.close()

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=refuse)["grad_norm"] == "inf"
    (row,) = read_log(tmp_path / "metrics.jsonl")
    assert math.isnan(row["loss"])
    assert (row["grad_norm"], row["low"]) == (math.inf, -math.inf)
    assert row["split"] == "train"


def test_tensorboard_has_the_numbers_and_forgets_what_was_lost(tmp_path: Path) -> None:
    log = RunLog(tmp_path, resume_step=0)
    log_steps(log, 1, 8)
    log.close()
    log = RunLog(tmp_path, resume_step=6)
    log.close()
    events = [event for path in sorted((tmp_path / "tensorboard").iterdir()) for event in read_events(path)]
    losses = [
        (event.step, value.simple_value)
        for event in events
        for value in event.summary.value
        if value.tag == "train/loss"
    ]
    assert losses == [(step, pytest.approx(1 / step)) for step in range(1, 9)]
    restarts = [event.step for event in events if event.HasField("session_log")]
    assert restarts == [0, 7]  # a viewer drops steps 7 and 8 of the first file
    assert {value.tag for event in events for value in event.summary.value} == {
        "train/loss",
        "train/lr",
        "train/skipped",
        "val/top1",
        "speed/images_per_s",
    }


def test_tensorboard_shows_the_configuration_and_pictures(tmp_path: Path) -> None:
    log = RunLog(tmp_path, resume_step=0, config={"train.epochs": 3, "model.width": 192})
    log_steps(log, 1, 3)
    log.close()
    Image.new("RGB", (40, 30), "red").save(tmp_path / "painted.png")
    show_picture(tmp_path, "reconstruction", tmp_path / "painted.png")
    paths = sorted((tmp_path / "tensorboard").iterdir())
    shown = [(event.step, value) for path in paths for event in read_events(path) for value in event.summary.value]
    ((step, config),) = [(step, value) for step, value in shown if value.metadata.plugin_data.plugin_name == "text"]
    assert (step, config.tag) == (0, "config/text_summary")
    assert config.tensor.string_val[0].decode() == "    train.epochs: 3\n    model.width: 192"
    ((step, picture),) = [(step, value) for step, value in shown if value.HasField("image")]
    assert (step, picture.tag, picture.image.width, picture.image.height) == (3, "reconstruction", 40, 30)
    assert picture.image.encoded_image_string == (tmp_path / "painted.png").read_bytes()
    restarts = [event.step for path in paths for event in read_events(path) if event.HasField("session_log")]
    assert restarts == [0, 4]  # a viewer drops nothing of the run


def test_event_files_are_in_the_order_of_the_steps_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([1_800_000_000, 1_700_000_000, 1_700_000_000, 1_900_000_000, 1])
    monkeypatch.setattr("unmask.report.log.time.time_ns", lambda: next(clock) * 10**9)
    for start in range(5):
        log = RunLog(tmp_path, resume_step=start)
        log_steps(log, start + 1, start + 2)
        log.close()
    paths = sorted((tmp_path / "tensorboard").iterdir())
    assert len(paths) == 5
    assert [read_events(path)[-1].step for path in paths] == [2, 3, 4, 5, 6]


def read_events(path: Path) -> list:
    """TFRecord framing: length (8 bytes), its checksum (4), the event, its checksum (4)."""
    from tensorboardX.proto.event_pb2 import Event

    data, events = path.read_bytes(), []
    while data:
        length = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


@contextmanager
def full_disk() -> Iterator[None]:
    """Files may not grow beyond 4 KiB, which the system reports like a full disk, as an error of the write.

    That goes for the file pytest may be printing to as well: nothing but the log is to be written meanwhile.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("write", ["train", "val", "speed"])
def test_a_write_that_fails_is_one_line_that_says_where_and_never_a_hang(tmp_path: Path, write: str) -> None:
    log = RunLog(tmp_path, resume_step=0)
    append = getattr(log, write)
    with full_disk():
        with pytest.raises(UnmaskError, match="File too large") as caught:
            [append(step, {"loss": 0.5}) for step in range(1000)]
        with pytest.raises(UnmaskError):
            log.close()
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_hold_the_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    with pytest.raises(UnmaskError, match="File exists"):
        RunLog(tmp_path, resume_step=0)
