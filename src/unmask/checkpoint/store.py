"""The checkpoints of one run: written aside by one thread, durable before an older one goes."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Literal, TypeVar

from safetensors import SafetensorError

from unmask.checkpoint.folder import (
    Checkpoint,
    encode_state,
    folder_name,
    folder_step,
    read_checkpoint,
    read_metric,
    verify,
    write_folder,
)
from unmask.engines.base import EngineState
from unmask.errors import CheckpointError, ConfigError
from unmask.files import ASIDE, aside, cause, fsync

log = logging.getLogger("unmask")
T = TypeVar("T")

Choice = Literal["last", "best"] | int
"""Which checkpoint of a run: the newest good one, the one with the highest metric, or that of a step."""


class CheckpointStore:
    """The folder `<run>/checkpoints`, for the one process that writes it (see RunLock).

    A save returns at once; at most one is under way, and a second waits for it. Its failure is raised as
    CheckpointError by the next `save`, `wait` or `close`, and leaves the earlier checkpoints as they were.
    The newest `keep` are kept, and the best by metric. `saved` is called, by the thread that writes, when a checkpoint
    is durable and older ones are gone; what it raises is raised like the failure of a save.
    """

    def __init__(self, root: Path, *, keep: int, saved: Callable[[], None] = lambda: None) -> None:
        self.root = root
        self._keep = keep
        self._saved = saved
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        try:
            root.mkdir(parents=True, exist_ok=True)
            fsync(root.parent)
        except OSError as error:
            raise CheckpointError(f"cannot create the checkpoint folder {root}: {cause(error)}") from error
        for left_over in root.glob(f"{ASIDE}*"):
            shutil.rmtree(left_over, ignore_errors=True)

    def save(self, checkpoint: Checkpoint, *, metric: float | None = None, replace: bool = False) -> None:
        """Write a checkpoint in the background; the arrays of its state must not change any more.

        metric: higher is better; the best is never pruned. A step that is there already, undamaged, stays as it is,
        unless `replace`.
        Raises CheckpointError for the previous save.
        """
        state_json = encode_state(checkpoint, metric)
        self.wait()
        self._pending = self._writer.submit(self._write, checkpoint.step, checkpoint.state, state_json, replace)

    def wait(self) -> None:
        """Return when all is durable. Raises the CheckpointError of the last save, once."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait and stop the thread. Raises like `wait`."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()

    def __enter__(self) -> CheckpointStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def steps(self) -> list[int]:
        """Steps of the committed checkpoints, ascending; damage shows only when one is loaded."""
        return list_steps(self.root)

    def load(self) -> Checkpoint:
        """The newest good checkpoint. Raises CheckpointError."""
        self.wait()
        return load_newest(self.root)

    def _write(self, step: int, state: EngineState, state_json: bytes, replace: bool) -> None:
        folder = self.root / folder_name(step)
        unfinished = aside(folder)
        try:
            if replace or not _is_good(folder):
                if unfinished.exists():
                    shutil.rmtree(unfinished)
                write_folder(unfinished, state, state_json)
                self._remove(folder)
                unfinished.replace(folder)
                fsync(self.root)
            self._prune(step)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise CheckpointError(
                f"cannot write the checkpoint {folder}: {cause(error)}; earlier ones are intact"
            ) from error
        self._saved()

    def _prune(self, newest: int) -> None:
        # Later steps than the one just written are left from before a fall-back: they count for nothing here, and the
        # run replaces them when it comes to them.
        steps = [step for step in self.steps() if step <= newest]
        kept = {*steps[-self._keep :], best_step(self.root, steps)}
        for step in steps:
            if step not in kept:
                self._remove(self.root / folder_name(step))

    def _remove(self, folder: Path) -> None:
        # Renamed first: killed half-way, it must not look like a damaged checkpoint.
        if folder.exists():
            doomed = folder.replace(folder.with_name(f"{ASIDE}old-{folder.name}"))
            shutil.rmtree(doomed)


def list_steps(root: Path) -> list[int]:
    """Steps of the committed checkpoints in a folder `checkpoints`, ascending. Raises CheckpointError."""
    try:
        found = [folder_step(path) for path in root.iterdir()]
    except OSError as error:
        raise CheckpointError(f"cannot list the checkpoints in {root}: {cause(error)}") from error
    return sorted(step for step in found if step is not None)


def load_newest(root: Path) -> Checkpoint:
    """The newest good checkpoint in a folder `checkpoints`. Raises CheckpointError. See first_good."""
    return first_good(root, read_checkpoint)


def read_chosen(root: Path, choice: Choice, read: Callable[[Path], T]) -> T:
    """What `read` gives for the chosen checkpoint in a folder `checkpoints`; for the last as `first_good`.

    Raises ConfigError when there is no such checkpoint, CheckpointError when it is damaged.
    """
    if choice == "last":
        return first_good(root, read)
    steps = list_steps(root)
    step = best_step(root, steps) if choice == "best" else choice
    if step is None:
        raise ConfigError(
            f"no checkpoint in {root} was evaluated, so none is the best; take the last (--checkpoint last)"
        )
    if step not in steps:
        there = f"there are {', '.join(map(str, steps))}" if steps else "it holds none"
        raise ConfigError(f"no checkpoint of step {step} in {root}; {there} (or last, or best)")
    return read(root / folder_name(step))


def first_good(root: Path, read: Callable[[Path], T]) -> T:
    """What `read` gives for the newest checkpoint it raises no CheckpointError for; damaged ones are logged.

    Changes nothing on disk, so it may look on beside a running training. Raises CheckpointError that names each damaged
    one and why, when none is good.
    """
    flaws: list[str] = []
    for step in reversed(list_steps(root)):
        try:
            value = read(root / folder_name(step))
        except CheckpointError as error:
            flaws.append(str(error))
            continue
        for flaw in flaws:
            log.warning("%s; going on from step %d instead", flaw, step)
        return value
    raise CheckpointError(f"no good checkpoint in {root}: {'; '.join(flaws) or 'it holds none'}")


def best_step(root: Path, steps: Sequence[int]) -> int | None:
    """The one of these steps with the highest metric, the earliest among equals; None when none has a metric."""
    metrics: dict[int, float] = {}
    for step in steps:
        try:
            metric = read_metric(root / folder_name(step))
        except CheckpointError:
            continue  # damaged: reading it says so
        if metric is not None:
            metrics[step] = metric
    return max(metrics, key=lambda step: (metrics[step], -step)) if metrics else None


def _is_good(folder: Path) -> bool:
    if not folder.exists():
        return False
    try:
        verify(folder)
    except CheckpointError:
        return False
    return True
