"""The log of a run: `metrics.jsonl`, `speed.jsonl` and TensorBoard event files in its folder."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import struct
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import datetime
from io import BytesIO
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from unmask.errors import UnmaskError
from unmask.report.progress import say
from unmask.report.trackers import Trackers

METRICS_FILE = "metrics.jsonl"
SPEED_FILE = "speed.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
_EVENTS = "events.out.tfevents."


class RunLog:
    """Appends to the log in `folder`, which must exist.

    - `metrics.jsonl`: one object a line, `{"step": 20, "split": "train", "loss": 0.51, ...}`. Holds only what the run
      determines and no clock, so that a resumed run's file is byte-equal to an uninterrupted one's.
    - `speed.jsonl`: `{"time": <seconds since 1970>, "step": 20, "images_per_s": 512.0, "data_wait_s": 0.001}`, waits in
      seconds a step; of several processes those of each: `data_wait_s_1`, `exchange_wait_s_1`, ...
    - `tensorboard/`: the same numbers as `train/loss`, `val/loss`, `speed/images_per_s`, ...; `config` as text

    `step` counts the updates applied, so the first update logs step 1. JSON has no non-finite numbers: they are
    written as the strings "nan", "inf" and "-inf", which Python's `float()` reads back.

    `resume_step` is the step of the checkpoint a run goes on from: what was logged after it is cut off, together with
    a line torn by the interruption. `known` is what `written` gave at that step: a log that is not what was written
    then, by a single bit, is said to be damaged. A damaged line is named, and stays as it is. Step 0 starts a new log,
    whatever is there.

    `config` has dotted keys; TensorBoard gets it, and the services `loggers`, see `Trackers`.

    Every line is handed to the operating system at once. Raises UnmaskError when a file cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        resume_step: int,
        known: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        loggers: tuple[str, ...] = (),
    ) -> None:
        last_step = resume_step or -1
        self._folder = folder
        with _writing(self._folder), ExitStack() as files:  # closes them all, whichever fails
            end = _checked_end(folder / METRICS_FILE, known, resume_step) if known and resume_step else None
            self._metrics = files.enter_context(_open_after(folder / METRICS_FILE, last_step, end))
            self._speed = files.enter_context(_open_after(folder / SPEED_FILE, last_step))
            self._tensorboard = _TensorBoard(folder / TENSORBOARD_FOLDER, first_step=last_step + 1)
            files.callback(self._tensorboard.close)
            if config:
                self._tensorboard.text(resume_step, "config", "\n".join(f"    {key}: {config[key]}" for key in config))
            self._trackers = Trackers(loggers, folder, config or {})
            files.callback(self._trackers.close)
            with (folder / METRICS_FILE).open("rb") as file:
                self._digest = hashlib.file_digest(file, "sha256")
                self._bytes = file.tell()
            self._files = files.pop_all()

    def written(self) -> dict[str, Any]:
        """What `metrics.jsonl` holds so far, to be known again: `bytes` and `sha256`."""
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}

    def train(self, step: int, metrics: Mapping[str, float]) -> None:
        self._append_metrics(step, "train", metrics)

    def val(self, step: int, metrics: Mapping[str, float]) -> None:
        self._append_metrics(step, "val", metrics)

    def speed(self, step: int, metrics: Mapping[str, float]) -> None:
        with _writing(self._folder):
            self._speed.write(_line({"time": round(time.time(), 3), "step": step}, metrics))
            self._tensorboard.scalars(step, "speed", metrics)
        self._trackers.log(step, "speed", metrics)

    def flush(self) -> None:
        """Make everything logged so far survive a power failure. Call it before a checkpoint is committed."""
        with _writing(self._folder):
            for file in (self._metrics, self._speed):
                file.flush()
                os.fsync(file.fileno())
            self._tensorboard.flush()

    def close(self) -> None:
        with _writing(self._folder):
            self._files.close()

    def _append_metrics(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        with _writing(self._folder):
            line = _line({"step": step, "split": split}, metrics)
            self._metrics.write(line)
            self._digest.update(line.encode())
            self._bytes += len(line.encode())
            self._tensorboard.scalars(step, split, metrics)
        self._trackers.log(step, split, metrics)


def show_picture(folder: Path, name: str, picture: Path) -> None:
    """Have TensorBoard show a PNG at the last step of the run in `folder`, whose log must be closed."""
    step = max((row["step"] for row in read_log(folder / METRICS_FILE)), default=0)
    with _writing(folder), closing(_TensorBoard(folder / TENSORBOARD_FOLDER, first_step=step + 1)) as tensorboard:
        tensorboard.image(step, name, picture.read_bytes())


class RankLog:
    """`rank-N.log` in `folder`: what one of several processes did and when; a resumed run adds to it.

    Ends with the error that ended the process, if one did. Raises UnmaskError when it cannot be opened.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self._path = folder / f"rank-{rank}.log"
        try:
            self._file = self._path.open("a", buffering=1, encoding="utf-8")
        except OSError as error:
            raise UnmaskError(f"cannot write {self._path}: {error.strerror or error}") from error
        self.say(f"process {os.getpid()} on {platform.node()}")

    def say(self, message: str) -> None:
        """Add a line. A full disk ends no run here: the first process's log does."""
        with suppress(OSError):
            self._file.write(f"{datetime.now().astimezone().isoformat(timespec='milliseconds')}  {message}\n")

    def __enter__(self) -> RankLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.say("done" if error is None else f"{type(error).__name__}: {' '.join(str(error).split())}")
        with suppress(OSError):
            self._file.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl` or `speed.jsonl`; a torn last line is left out, damaged ones too, which is said.

    Non-finite numbers come back as floats.
    """
    if not path.exists():
        return []
    with path.open("rb") as file:
        lines = file.readlines()
    rows = [_parse(line) for line in lines]
    _say_damaged(path, [i for i, row in enumerate(rows, 1) if row is None and lines[i - 1].endswith(b"\n")])
    return [{key: _number(value) for key, value in row.items()} for row in rows if row is not None]


@contextmanager
def _writing(folder: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise UnmaskError(
            f"cannot write the log in {folder}: {error.strerror or error}; "
            "make room there or fix its permissions, then run the same command again to resume"
        ) from error


def _checked_end(path: Path, known: Mapping[str, Any], step: int) -> int | None:
    """Say whether a log is other than it was at a step; returns where that ends, if lines end there as they did."""
    with path.open("rb") if path.exists() else BytesIO() as file:
        before = file.read(known["bytes"])
    if hashlib.sha256(before).hexdigest() != known["sha256"]:
        say(f"{path} is damaged or was changed: up to step {step} it is not what the run wrote")
    return len(before) if len(before) == known["bytes"] and before.endswith(b"\n") else None


def _say_damaged(path: Path, numbers: Sequence[int]) -> None:
    if numbers:
        shown = ", ".join(map(str, numbers[:10])) + (", …" if len(numbers) > 10 else "")
        say(f"{path}: damaged, and not used: line {shown}")


def _line(head: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    return json.dumps({**head, **{name: _jsonable(value) for name, value in metrics.items()}}, allow_nan=False) + "\n"


def _jsonable(value: float) -> int | float | str:
    if isinstance(value, Integral):
        return int(value)
    value = float(value)
    return value if math.isfinite(value) else str(value)


def _number(value: Any) -> Any:
    return float(value) if value in ("nan", "inf", "-inf") else value


def _parse(line: bytes) -> dict[str, Any] | None:
    """None for a line that was not written to its end, or is damaged."""
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _open_after(path: Path, last_step: int, end: int | None = None) -> TextIO:
    """Open for appending, without the lines of later steps, or what is behind `end`."""
    if path.exists():
        found = _bytes_up_to(path, last_step)
        os.truncate(path, found if end is None else end)
    return path.open("a", buffering=1, encoding="utf-8", newline="\n")


def _bytes_up_to(path: Path, last_step: int) -> int:
    """Up to the last line of these steps, damaged ones before it included: they are named."""
    size = end = 0
    damaged: list[int] = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            size += len(line)
            if (row := _parse(line)) is not None:
                end = size if row["step"] <= last_step else end
            elif line.endswith(b"\n"):
                damaged.append(number)
    _say_damaged(path, damaged)
    return end


class _TensorBoard:
    """One event file.

    tensorboardX's SummaryWriter is not used: it writes from a thread behind a bounded queue, and when the disk is full
    that thread dies and the training loop hangs on the queue. Written here, the error reaches the caller.
    """

    def __init__(self, folder: Path, *, first_step: int) -> None:
        # Here, not at the top: importing tensorboardX imports torch where it is installed.
        from tensorboardX import summary
        from tensorboardX.proto import event_pb2
        from tensorboardX.record_writer import RecordWriter

        # Their classes are made when the modules are loaded, where a type checker does not see them.
        self._events: Any = event_pb2
        self._summaries: Any = summary
        folder.mkdir(exist_ok=True)
        # Nanoseconds, because a run resumed within the same second must not overwrite the file; viewers read files in
        # the order of their names, so that must be the order of the steps, although the clock may have been set back.
        times = [path.name.removeprefix(_EVENTS) for path in folder.glob(f"{_EVENTS}*")]
        number = max([time.time_ns(), *(int(earlier) + 1 for earlier in times if earlier.isdecimal())])
        self._records = RecordWriter(str(folder / f"{_EVENTS}{number}"))
        self._write(first_step, file_version="brain.Event:2")
        # Tells TensorBoard to drop what earlier files hold from this step on (SummaryWriter's purge_step).
        session_log = self._events.SessionLog
        self._write(first_step, session_log=session_log(status=session_log.START))

    def scalars(self, step: int, group: str, metrics: Mapping[str, float]) -> None:
        summary = self._summaries.Summary
        values = [summary.Value(tag=f"{group}/{name}", simple_value=value) for name, value in metrics.items()]
        self._write(step, summary=summary(value=values))

    def text(self, step: int, tag: str, markdown: str) -> None:
        self._write(step, summary=self._summaries.text(tag, markdown))

    def image(self, step: int, tag: str, png: bytes) -> None:
        width, height = struct.unpack(">II", png[16:24])
        summary = self._summaries.Summary
        image = summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
        self._write(step, summary=summary(value=[summary.Value(tag=tag, image=image)]))

    def flush(self) -> None:
        self._records.flush()

    def close(self) -> None:
        self._records.close()

    def _write(self, step: int, **content: Any) -> None:
        event = self._events.Event(wall_time=time.time(), step=step, **content)
        self._records.write(event.SerializeToString())
