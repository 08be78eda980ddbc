"""Batches for training and evaluation, made ahead of time by Grain in threads or loader processes.

The unit of work is a part of a micro-batch: small enough that all workers start on the first batch together, that
closing is quick and that little memory is needed. A part's content does not depend on the worker that makes it. Loader
processes write images into a ring of shared memory; the other arrays, which are small, come through Grain.
"""

from __future__ import annotations

import atexit
import shutil
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np
from numpy.typing import NDArray

from unmask.config.schema import AugmentConfig, DataConfig, ModelConfig
from unmask.data.batch import Arrays, Batch, Needs, check_shares
from unmask.data.loader.left_over import SHARED_MEMORY
from unmask.data.loader.processes import Answers, no_memory, start_worker
from unmask.data.loader.ring import Ring
from unmask.data.loader.samples import EvalSamples, Samples, TrainSamples
from unmask.data.sources.base import Source
from unmask.environment import cores

_PART_ROWS = 32
"""Most rows in a part."""
_BUFFER_BYTES = 2**30
"""Most memory for parts made ahead, over all workers."""
_MAX_THREADS = 16
_TIMEOUT = 600.0
"""Seconds that a loader process may take for its share of a micro-batch."""


def train_batches(
    source: Source,
    *,
    needs: Needs,
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
    unlabelled: Source | None = None,
    timeout: float = _TIMEOUT,
) -> Generator[list[Batch]]:
    """The `accumulate` equally large micro-batches of each step from `start_step` up to, not including, `stop_step`.

    `batch_size` counts the images of a step over all `world` processes; this process gets share `rank` of them. The
    batches of a step do not depend on `start_step`, nor on `data.workers`. `unlabelled`: the images that
    `Needs.unlabelled` asks for. `timeout`: most seconds to wait for a loader process. Closing the iterator ends its
    threads and processes.

    Raises ConfigError when `batch_size` or the class weights are not possible, DataError when too many images in a row
    cannot be decoded or loader processes get no shared memory, and WorkerError when one of them dies or hangs.
    """
    check_shares(batch_size, accumulate, world, augment)
    samples = TrainSamples(source, needs, model, data, seed, augment, batch_size, unlabelled)
    share = batch_size // world
    first = start_step * batch_size + rank * share
    buffer = _Buffer(samples.image_bytes, data.workers, timeout)
    steps = range(start_step, stop_step)
    return _steps(_Parts(samples, first, batch_size, share, accumulate, steps, buffer.rows), buffer)


def eval_batches(
    source: Source,
    *,
    needs: Needs,
    model: ModelConfig,
    data: DataConfig,
    seed: int,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    timeout: float = _TIMEOUT,
) -> Generator[Batch]:
    """Every image once, in order; the end is filled up with rows whose `valid` is False and `index` is -1.

    Of `world` processes, this one gets every `world`-th batch; all get as many.
    Each image gets the inputs of epoch 0, such as its mask. Raises as `train_batches`, but an image that cannot be
    decoded only becomes a row that is not valid.
    """
    samples = EvalSamples(source, needs, model, data, seed)
    stride = world * batch_size
    buffer = _Buffer(samples.image_bytes, data.workers, timeout)
    steps = range(-(-len(source) // stride))
    return _singles(_steps(_Parts(samples, rank * batch_size, stride, batch_size, 1, steps, buffer.rows), buffer))


@dataclass(frozen=True, eq=False)
class _Parts:
    """Random access to the parts of all micro-batches, in order: what Grain distributes."""

    samples: Samples
    first: int
    """Position of the first row."""
    stride: int
    """Positions from one step to the next."""
    share: int
    """Rows of a step that are made here."""
    accumulate: int
    steps: range
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
        return len(self.steps) * self.accumulate * self.per_micro

    def positions(self, index: int) -> range:
        """The positions of a part's rows in the stream of samples."""
        micro, part = divmod(index, self.per_micro)
        step, micro = divmod(micro, self.accumulate)
        start = self.first + step * self.stride + micro * self.micro
        return range(start + part * self.rows, start + min((part + 1) * self.rows, self.micro))

    def __getitem__(self, index: int) -> Arrays:
        return self.samples(self.positions(index))


@dataclass(frozen=True, eq=False)
class _SharedParts:
    """Used in loader processes: images go into the ring."""

    parts: _Parts
    ring: Ring

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> _Others:
        arrays = self.parts.samples(self.parts.positions(index), self.ring.slot(index))
        del arrays["images"]
        return _Others(arrays)


class _Others:
    """The arrays of a part other than its images; hidden in an object, because Grain makes shared memory for each array
    it sees.
    """

    def __init__(self, arrays: Arrays) -> None:
        self.arrays = arrays


def _singles(steps: Generator[list[Batch]]) -> Generator[Batch]:
    with closing(steps):
        for (batch,) in steps:
            yield batch


def _steps(parts: _Parts, buffer: _Buffer) -> Generator[list[Batch]]:
    if len(parts) == 1:
        return _directly(parts)
    return _by_processes(parts, buffer) if buffer.workers else _by_threads(parts, buffer)


def _directly(parts: _Parts) -> Generator[list[Batch]]:
    """A part that is the only one is made here: to start threads takes longer."""

    def take(index: int, out: NDArray[Any]) -> Arrays:
        arrays = parts.samples(parts.positions(index), out)
        del arrays["images"]
        return arrays

    yield from _batches(parts, take)


def _by_threads(parts: _Parts, buffer: _Buffer) -> Generator[list[Batch]]:
    options = grain.ReadOptions(buffer.makers, buffer.ahead(parts))
    with closing(iter(grain.MapDataset.source(parts).to_iter_dataset(options))) as iterator:

        def take(_: int, out: NDArray[Any]) -> Arrays:
            arrays = next(iterator)
            out[:] = arrays.pop("images")
            return arrays

        yield from _batches(parts, take)


def _by_processes(parts: _Parts, buffer: _Buffer) -> Generator[list[Batch]]:
    samples, slots = parts.samples, buffer.ahead(parts)
    with ExitStack() as stack:
        try:
            ring = Ring.make(slots, (min(parts.rows, parts.micro), *samples.shape), samples.data.dtype)
        except OSError as error:
            raise no_memory(error) from None
        stack.callback(ring.close)
        in_process = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        options = grain.MultiprocessingOptions(buffer.workers, slots // buffer.workers)
        dataset = grain.MapDataset.source(_SharedParts(parts, ring)).to_iter_dataset(in_process)
        iterator = iter(dataset.mp_prefetch(options, worker_init_fn=start_worker))
        answers = stack.enter_context(closing(Answers(iterator, buffer.timeout)))
        stack.callback(ring.release)
        atexit.register(stack.close)  # for a program that ends without closing this generator
        stack.callback(atexit.unregister, stack.close)

        def take(index: int, out: NDArray[Any]) -> Arrays:
            others = answers.next(lambda: ring.writer(index))
            ring.take(index, out)
            return others.arrays

        yield from _batches(parts, take)


def _batches(parts: _Parts, take: Callable[[int, NDArray[Any]], Arrays]) -> Generator[list[Batch]]:
    """`take` writes the images of a part into the second argument, and returns the other arrays."""
    needs, seed = parts.samples.needs, parts.samples.seed
    for number, step in enumerate(parts.steps):
        shared = {} if needs.step is None else needs.step(seed, step)
        micro_batches = range(number * parts.accumulate, (number + 1) * parts.accumulate)
        yield [_batch(parts, micro, shared, take) for micro in micro_batches]


def _batch(parts: _Parts, micro: int, shared: Arrays, take: Callable[[int, NDArray[Any]], Arrays]) -> Batch:
    samples = parts.samples
    images = np.empty((parts.micro, *samples.shape), samples.data.dtype)
    starts = range(0, parts.micro, parts.rows)
    others = [
        take(micro * parts.per_micro + part, images[start : start + parts.rows]) for part, start in enumerate(starts)
    ]
    if any("valid_pixels" in each for each in others):
        for each in others:
            each.setdefault("valid_pixels", np.ones((len(each["index"]), *samples.shape), bool))
    if any("gaps" in each for each in others):
        for each in others:
            each.setdefault("gaps", np.zeros(len(each["index"]), np.float32))
    arrays = {name: np.concatenate([each[name] for each in others]) for name in others[0]}
    own = {name: arrays.pop(name) for name in ("index", "labels", "valid", "bad", "gaps") if name in arrays}
    return Batch(images, inputs=arrays | shared, **own)


class _Buffer:
    """How much is made ahead: two steps, within `_BUFFER_BYTES` and half of the shared memory.

    With many workers and large images, parts get fewer rows, so that the two that each worker needs, one to write and
    one that is ready, stay within that too; a part has at least two rows.
    """

    def __init__(self, image_bytes: int, workers: int, timeout: float = _TIMEOUT) -> None:
        self.workers, self.timeout = workers, timeout
        self.makers = workers or min(_MAX_THREADS, cores())
        self._image_bytes = image_bytes
        self._memory = _BUFFER_BYTES
        if workers and SHARED_MEMORY.is_dir():
            self._memory = min(self._memory, shutil.disk_usage(SHARED_MEMORY).free // 2)
        fit = self._memory // (2 * self.makers * image_bytes)
        self.rows = max(2, min(_PART_ROWS, fit) // 2 * 2)  # pairs that are mixed with one another stay together

    def ahead(self, parts: _Parts) -> int:
        """Most parts in memory, those being made included; as many for each worker."""
        fit = self._memory // (min(parts.rows, parts.micro) * self._image_bytes)
        return max(2, min(2 * parts.accumulate * parts.per_micro, fit) // self.makers) * self.makers
