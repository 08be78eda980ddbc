"""Batches for training and evaluation, made ahead of time by Grain in threads or loader processes.

The unit of work is a part of a micro-batch: small enough that all workers start on the first batch together, that
closing is quick and that little shared memory is needed. Which worker makes a part does not enter its content.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from multiprocessing import connection, parent_process
from pathlib import Path

import grain
import numpy as np

from unmask.config.schema import AugmentConfig, DataConfig, ModelConfig
from unmask.data.batch import Batch
from unmask.data.samples import Arrays, EvalSamples, Task, TrainSamples
from unmask.data.sources.base import Source
from unmask.environment import cores
from unmask.errors import ConfigError, DataError

_PART_ROWS = 32
"""Most rows in a part."""
_BUFFER_BYTES = 2**30
"""Most memory for parts made ahead, over all workers."""
_MAX_THREADS = 16
_SHARED_MEMORY = Path("/dev/shm")


class WorkerError(DataError):
    """A loader process died."""


def train_batches(
    source: Source,
    *,
    task: Task,
    model: ModelConfig,
    data: DataConfig,
    augment: AugmentConfig,
    seed: int,
    batch_size: int,
    accumulate: int,
    start_step: int,
    stop_step: int,
    rank: int = 0,
    world: int = 1,
) -> Generator[list[Batch]]:
    """The `accumulate` equally large micro-batches of each step from `start_step` up to, not including, `stop_step`.

    `batch_size` counts the images of a step over all `world` processes; this process gets share `rank` of them. The
    batches of a step do not depend on `start_step`, nor on `data.workers`. Closing the iterator ends its threads and
    processes.

    Raises ConfigError when `batch_size` or the class weights are not possible, DataError when too
    many images in a row cannot be decoded, and WorkerError when a loader process dies.
    """
    if batch_size % (world * accumulate):
        raise ConfigError(
            f"train.batch_size={batch_size} is not a multiple of {world} processes x train.accumulate={accumulate}"
        )
    if augment.mixes and batch_size // (world * accumulate) % 2:
        raise ConfigError(
            f"mixup and cutmix mix pairs of images, but train.batch_size={batch_size} over {world} processes x "
            f"train.accumulate={accumulate} makes micro-batches of {batch_size // (world * accumulate)}; make them even"
        )
    samples = TrainSamples(source, task, model, data, seed, augment, batch_size)
    share = batch_size // world
    first = start_step * batch_size + rank * share
    buffer = _Buffer(_image_bytes(model, data), data.workers)
    parts = _Parts(samples, first, batch_size, share, accumulate, stop_step - start_step, buffer.rows)
    return _steps(parts, buffer)


def eval_batches(
    source: Source,
    *,
    task: Task,
    model: ModelConfig,
    data: DataConfig,
    seed: int,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
) -> Generator[Batch]:
    """Every image once, in order; the end is filled up with rows whose `valid` is False and `index` is -1.

    Of `world` processes, this one gets every `world`-th batch; all get as many.
    For pretraining each image gets the mask of epoch 0. Raises as `train_batches`, but an image that cannot be decoded
    only becomes a row that is not valid.
    """
    samples = EvalSamples(source, task, model, data, seed)
    stride = world * batch_size
    buffer = _Buffer(_image_bytes(model, data), data.workers)
    parts = _Parts(samples, rank * batch_size, stride, batch_size, 1, -(-len(source) // stride), buffer.rows)
    return _singles(_steps(parts, buffer))


@dataclass(frozen=True, eq=False)
class _Parts:
    """Random access to the parts of all micro-batches, in order: what Grain distributes."""

    samples: Callable[[range], Arrays]
    first: int
    """Position of the first row."""
    stride: int
    """Positions from one step to the next."""
    share: int
    """Rows of a step that are made here."""
    accumulate: int
    steps: int
    rows: int
    """Most rows in a part."""

    @property
    def micro(self) -> int:
        """Rows in a micro-batch."""
        return self.share // self.accumulate

    @property
    def per_micro(self) -> int:
        """Parts in a micro-batch."""
        return -(-self.micro // self.rows)

    def __len__(self) -> int:
        return self.steps * self.accumulate * self.per_micro

    def __getitem__(self, index: int) -> Arrays:
        micro, part = divmod(index, self.per_micro)
        step, micro = divmod(micro, self.accumulate)
        start = self.first + step * self.stride + micro * self.micro
        rows = range(part * self.rows, min((part + 1) * self.rows, self.micro))
        return self.samples(range(start + rows.start, start + rows.stop))


def _singles(steps: Generator[list[Batch]]) -> Generator[Batch]:
    with closing(steps):
        for (batch,) in steps:
            yield batch


def _steps(parts: _Parts, buffer: _Buffer) -> Generator[list[Batch]]:
    return _generate(parts, _dataset(parts, buffer))


def _dataset(parts: _Parts, buffer: _Buffer) -> grain.IterDataset[Arrays]:
    dataset = grain.MapDataset.source(parts)
    if not buffer.workers:
        return dataset.to_iter_dataset(grain.ReadOptions(buffer.makers, buffer.ahead(parts)))
    options = grain.MultiprocessingOptions(buffer.workers, buffer.ahead(parts))
    in_process = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return dataset.to_iter_dataset(in_process).mp_prefetch(options, worker_init_fn=_start_worker)


def _generate(parts: _Parts, dataset: grain.IterDataset[Arrays]) -> Generator[list[Batch]]:
    iterator = iter(dataset)
    try:
        for _ in range(parts.steps):
            yield [_merge([_next(iterator) for _ in range(parts.per_micro)]) for _ in range(parts.accumulate)]
    finally:
        iterator.close()


class _Buffer:
    """How much is made ahead: two steps, within `_BUFFER_BYTES` and half of the shared memory.

    With many workers and large images, parts get fewer rows, so that the least each worker holds stays within that
    too; two rows are the least of a part.
    """

    def __init__(self, image_bytes: int, workers: int) -> None:
        self.workers = workers
        self.makers = workers or min(_MAX_THREADS, cores())
        self._image_bytes = image_bytes
        self._memory = _BUFFER_BYTES
        if workers and _SHARED_MEMORY.is_dir():
            self._memory = min(self._memory, shutil.disk_usage(_SHARED_MEMORY).free // 2)
        fit = self._memory // (self._held(1) * image_bytes)
        self.rows = max(2, min(_PART_ROWS, fit) // 2 * 2)  # pairs that are mixed with one another stay together

    def _held(self, ahead: int) -> int:
        """Parts in memory with `ahead` of them made ahead by each: what Grain has in a worker, between, and here."""
        return self.makers * (2 * ahead + 2) if self.workers else self.makers * (ahead + 1)

    def ahead(self, parts: _Parts) -> int:
        """Parts for Grain to make ahead: of each worker, or of all threads."""
        wanted = 2 * parts.accumulate * parts.per_micro
        fit = self._memory // (min(parts.rows, parts.micro) * self._image_bytes)
        if not self.workers:
            return max(self.makers, min(wanted, fit - self.makers))
        return max(1, min(wanted, fit - 2 * self.makers) // (2 * self.makers))


def _image_bytes(model: ModelConfig, data: DataConfig) -> int:
    return math.prod(model.image_size) * model.channels * np.dtype(data.dtype).itemsize


def _merge(parts: list[Arrays]) -> Batch:
    arrays = {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]}
    for part in parts:
        part.clear()  # Grain holds on to the last ones, and their arrays may be shared memory
    return Batch(**arrays)


def _next(iterator: Iterator[Arrays]) -> Arrays:
    try:
        return next(iterator)
    except RuntimeError as error:
        died = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
        if died is None:
            raise
        raise WorkerError(_explain(int(died[1]))) from None


def _explain(code: int) -> str:
    if code == -signal.SIGBUS:
        return f"a loader process ran out of shared memory; enlarge {_SHARED_MEMORY} or lower data.workers"
    if code == -signal.SIGKILL:
        return "a loader process was killed (SIGKILL), as happens when memory runs out; lower data.workers"
    return f"a loader process died with exit code {code}; data.workers=0 loads without processes"


def _start_worker(number: int, count: int) -> None:
    """In a loader process: leave Ctrl-C to the training process, and end with it however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
