"""The one loop: schedule, step, log, evaluate, checkpoint, stop.

It counts the steps and survives what interrupts it; it knows no framework, and no objective by name. `train.py` puts
together what it needs.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask import interrupts
from unmask.checkpoint.folder import Checkpoint
from unmask.checkpoint.store import CheckpointStore
from unmask.config.load import to_dict
from unmask.config.schema import Config
from unmask.data.batch import Batch
from unmask.data.loader import gaps
from unmask.data.loader.bad_files import BadFiles
from unmask.data.loader.pipeline import eval_batches
from unmask.data.loader.spikes import Spikes
from unmask.data.sources import Source
from unmask.engines.base import Engine, StepResult
from unmask.environment import versions
from unmask.errors import CheckpointError, DataError, TrainingError
from unmask.evaluate.bad_images import check_judged
from unmask.evaluate.measure import measure, shown
from unmask.evaluate.online import FeatureEvaluation
from unmask.objectives.base import Objective
from unmask.report.log import RankLog, RunLog
from unmask.report.progress import Bar, progress, say
from unmask.schedules import learning_rate, peak_lr

LOOK_SECONDS = 5.0
"""Of one process: most time between two looks at the device, however long `train.log_every` steps take."""
_IS_SAVED = "The state is saved; the same command goes on from there"
Callback = Callable[[int, Mapping[str, float]], bool | None]
"""Called with a step and its numbers, in order: `loss`, `lr`, `grad_norm`, ... of each update, once the loop reads them
(every `train.log_every` steps), and `val_loss`, `val_top1`, ... of an evaluation. True stops the run: its state is
saved, and `train` returns. What it raises ends the run at once, which goes on from its last checkpoint when called
again. Of several processes, each calls its own."""


@dataclass(frozen=True)
class Plan:
    """A run counted in steps. An epoch need not be a whole number of steps: the samples are one endless stream."""

    total: int
    warmup: float
    eval_every: int
    checkpoint_every: int
    features_every: int | None

    @classmethod
    def of(cls, config: Config, images: int) -> Plan:
        train, steps_per_epoch = config.train, images / config.train.batch_size
        every = config.evaluate.every
        return cls(
            total=max(1, round(train.epochs * steps_per_epoch)) if train.epochs else 0,
            warmup=config.optimizer.warmup_epochs * steps_per_epoch,
            eval_every=max(1, round(train.eval_every * steps_per_epoch)),
            checkpoint_every=max(1, round(train.checkpoint_every * steps_per_epoch)),
            features_every=None if every is None else max(1, round(every * steps_per_epoch)),
        )

    def is_due(self, every: int | None, step: int) -> bool:
        return every is not None and (step % every == 0 or step == self.total)


@dataclass
class _Said:
    """What a process told the others after a step."""

    sums: Callable[[], NDArray[np.float64]]
    """Of all, by kind and rank."""
    bad: list[int]
    """The bad images it counted."""


@dataclass
class Output:
    """What one process writes for all."""

    store: CheckpointStore
    log: RunLog
    spikes: Spikes


@dataclass
class Loop:
    config: Config
    objective: Objective
    plan: Plan
    source: Source
    val: Source | None
    batches: Callable[..., Generator[list[Batch]]]
    """For training, from `start_step` up to `stop_step`."""
    data: dict[str, Any]
    engine: Engine
    features: FeatureEvaluation | None
    output: Output | None
    rank_log: RankLog | None
    bad_files: BadFiles
    callbacks: Sequence[Callback]
    rank: int
    world: int
    skipped_in_a_row: int
    """Updates up to here that were skipped for a gradient that was not finite."""
    unevaluated: bool
    """An evaluation was due where an earlier call ended, which did not come to it."""

    def __post_init__(self) -> None:
        self.unread: list[tuple[int, float, StepResult]] = []
        self.read_at = time.monotonic()
        self.latest: dict[str, float] = {}
        self.enough = False
        self.bad: list[int] = []
        self.missing = np.zeros(2)
        self.gaps = gaps.Gaps()
        self.said: deque[_Said] = deque()
        self.step_ended = self.read_at
        self.data_wait = self.between = 0.0
        self.waits = np.zeros((2, self.world))
        self.steps_heard = self.done = self.saved = 0
        self.metric: float | None = None

    def run(self, start: int) -> dict[str, float]:
        with ExitStack() as stack:
            request = stack.enter_context(interrupts.deferred(_say_that_it_stops))
            size = self.config.train.batch_size
            bar = stack.enter_context(progress(self._title(), total=self.plan.total, done=start, images_per_unit=size))
            stop = max(start, self.plan.total)  # data that became fewer may end a run before where it stands
            batches = stack.enter_context(closing(self.batches(start_step=start, stop_step=stop)))
            self.read_at = self.step_ended = time.monotonic()
            self.done = self.saved = start
            try:
                self._steps(start, batches, bar, request)
            except Exception as error:
                self._keep(error, bar)
                raise
            if self.output is not None:
                self.output.store.wait()
            self.gaps.tell()
            if not request.received:
                self._check_end()
            else:
                say(_IS_SAVED)
        return self.latest

    def _steps(self, start: int, batches: Iterator[list[Batch]], bar: Bar, request: interrupts.Request) -> None:
        if self.unevaluated and self._is_evaluated(start):
            self._evaluate(start)
            self._save(start, replace=True)
        for step, micro_batches in enumerate(self._waited_for(batches), start + 1):
            self._step(step, micro_batches)
            self.unevaluated = self._is_evaluated(step)
            save = self.unevaluated or self.plan.is_due(self.plan.checkpoint_every, step)
            read = save or len(self.unread) >= self.config.train.log_every or step == start + 1 or self._is_time()
            if read:
                self._read(bar)
            if self.unevaluated:
                self._evaluate(step)
            self._say_to_others(request)
            stop = len(self.said) > self.delay and self._hear(request)
            if stop and not read:
                self._read(bar)
            if save or stop:
                self._save(step)
            if stop:
                break
        if not self.plan.total:
            if self.val is not None or self.features is not None:
                self._evaluate(0)
            self._save(0)
        while self.said:
            self._hear(request)

    def _is_evaluated(self, step: int) -> bool:
        by_val = self.val is not None and self.plan.is_due(self.plan.eval_every, step)
        return by_val or self.plan.is_due(self.plan.features_every, step)

    def _is_time(self) -> bool:
        """Whether nothing was read for a while, so that what is shown moves however long a step takes.

        Several processes must read after the same steps, which their clocks do not tell.
        """
        return self.world == 1 and time.monotonic() - self.read_at >= LOOK_SECONDS

    @property
    def delay(self) -> int:
        """Steps until what a process says is heard: of several, one, so that nobody waits for it."""
        return int(self.world > 1)

    def _say_to_others(self, request: interrupts.Request) -> None:
        """What all must do alike: the signal that this process received, whether it had enough, its bad images,
        and what of its images was no data.

        And how long it took: waiting for data in this step, and in all from the end of the step before to its begin.
        """
        mine = np.zeros((7, self.world))
        waits = (self.data_wait, self.between)
        mine[:, self.rank] = request.received or 0, self.enough, len(self.bad), *waits, *self.missing
        self.said.append(_Said(self.engine.begin_sum(mine), self.bad))
        self.bad = []

    def _hear(self, request: interrupts.Request) -> bool:
        """Take the next of what all said; returns whether to stop, which a signal to one makes the request of all."""
        said = self.said.popleft()
        signals, enough, bad, data_wait, between, *missing = said.sums()
        self.gaps.add(np.sum(missing, axis=1), self.config.train.batch_size)
        # A step ends for all at once, with the exchange of gradients; the next can begin when the last is ready for it.
        self.waits += data_wait, between.max() - between
        self.steps_heard += 1
        if bad.any():
            mine = np.zeros((self.world, int(bad.max())))
            mine[self.rank, : len(said.bad)] = said.bad
            found = self.engine.sum(mine)
            self.bad_files.add(int(index) for row, count in zip(found, bad, strict=True) for index in row[: int(count)])
        if signals.any():
            request.received = signal.Signals(int(signals.max()))
        return bool(signals.any() or enough.any())

    def _step(self, step: int, micro_batches: list[Batch]) -> None:
        self.bad += [index for batch in micro_batches for index in self.bad_files.new(batch)]
        self.missing = gaps.count(micro_batches)
        lr = learning_rate(
            step - 1,
            total_steps=self.plan.total,
            warmup_steps=self.plan.warmup,
            peak=peak_lr(self.config.optimizer.base_lr, self.config.train.batch_size),
            minimum=self.config.optimizer.min_lr,
        )
        hyper = {"lr": lr, **self.objective.hyper(step - 1, self.plan.total)}
        self.between = time.monotonic() - self.step_ended
        self.unread.append((step, lr, self.engine.train_step(micro_batches, hyper)))
        self.step_ended, self.done = time.monotonic(), step

    def _waited_for(self, batches: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
        begun = time.monotonic()
        for micro_batches in batches:
            self.data_wait = time.monotonic() - begun
            yield micro_batches
            begun = time.monotonic()

    def _keep(self, error: Exception, bar: Bar) -> None:
        """Save what was computed, for a run that ends because images cease to come, or another process is lost.

        Of several processes the others are in the next step already, or gone: the first saves alone, what is whole
        in it. Where the network is shared out that is nothing.
        """
        images_ended = isinstance(error, DataError) and not (self.world > 1 and self.config.train.shard)
        if self.output is None or self.done <= self.saved or not (images_ended or self.engine.is_as_before(error)):
            return
        try:
            if self.unread:
                self._read(bar)
            self._save(self.done)
            self.output.store.wait()
        except CheckpointError as failed:  # what ended the run comes first
            say(f"not saved: {failed}")
        else:
            say(_IS_SAVED)

    def _read(self, bar: Bar) -> None:
        """Wait for the device and log every step since the last look."""
        for step, lr, result in self.unread:
            values = {"lr": lr} | self.engine.read(result)
            self.skipped_in_a_row = self.skipped_in_a_row + 1 if values["skipped"] else 0
            if self.output is not None:
                self.output.log.train(step, values)
                self.output.spikes.add(step, values["loss"])
            self.latest |= {"loss": values["loss"]}
            self._call_back(step, values)
        step, steps, now = self.unread[-1][0], len(self.unread), time.monotonic()
        self.unread.clear()
        rate = steps * self.config.train.batch_size / (now - self.read_at)
        waits = self._mean_waits()
        if self.output is not None:
            by_rank = {f"{name}_{rank}": wait for name, each in waits.items() for rank, wait in enumerate(each)}
            alone = {"data_wait_s": waits["data_wait_s"][0]}
            self.output.log.speed(step, {"images_per_s": round(rate, 2)} | (by_rank if self.world > 1 else alone))
        if self.rank_log is not None:
            mine = "  ".join(f"{name} {each[self.rank]:g}" for name, each in waits.items())
            self.rank_log.say(f"step {step}: images_per_s {rate:.1f} of all  {mine}")
        self.read_at = now
        bar.update(steps, loss=self.latest["loss"])
        if self.skipped_in_a_row > self.config.train.max_skipped:
            self._save(step)
            raise TrainingError(
                f"the gradient was not finite in {self.skipped_in_a_row} steps in a row up to step {step}; the weights "
                "before them are saved. Lower optimizer.base_lr, set optimizer.clip_grad or train.precision=fp32"
            )

    def _check_end(self) -> None:
        """A run too short to have skipped `train.max_skipped` updates must not end as if all were well."""
        loss = self.latest.get("loss", 0.0)
        if not np.isfinite(loss) or self.skipped_in_a_row >= self.plan.total > 0:
            raise TrainingError(
                f"the run ends with the loss {loss:.4g}, its last {self.skipped_in_a_row} updates "
                "skipped for a gradient that was not finite. Lower optimizer.base_lr, set optimizer.clip_grad or "
                "train.precision=fp32, and start anew with another output=FOLDER"
            )

    def _evaluate(self, step: int) -> None:
        """Log the numbers on data.val and of the features; `metric` is the one by which a checkpoint is the best.

        Higher is better: accuracy, else the negative loss on data.val, else the accuracy of k-NN.
        """
        values: dict[str, float] = {}
        if self.val is not None and self.plan.is_due(self.plan.eval_every, step):
            with self._val_batches(self.val) as batches:
                values = measure(self.engine, self.objective, batches)
            bad = len(self.val) - int(values.pop("count"))
            channels, every = self.config.model.channels, range(len(self.val))
            check_judged(self.val, bad, every, channels, self.config.data, "data.val")
        if self.features is not None and self.plan.is_due(self.plan.features_every, step):
            values |= self.features()
        if self.output is not None:
            self.output.log.val(step, values)
        named = {f"val_{name}": value for name, value in values.items()}
        self.latest |= named
        say(f"step {step}: " + "  ".join(f"val {name} {value:.4f}" for name, value in values.items()))
        self._call_back(step, named)
        if "loss" in values:
            self.metric = values.get("top1", -values["loss"])
        elif self.val is None:
            self.metric = values.get("knn_top1")
        self.unevaluated = False

    def _mean_waits(self) -> dict[str, list[float]]:
        """Seconds a step since the last look that each process waited: for its data, and for the others to be ready.

        A straggler is the one that all others wait for.
        """
        data, others = (self.waits / max(self.steps_heard, 1)).round(5).tolist()
        self.waits, self.steps_heard = np.zeros_like(self.waits), 0
        return {"data_wait_s": data, "exchange_wait_s": others}

    def _call_back(self, step: int, values: Mapping[str, float]) -> None:
        for callback in self.callbacks:
            self.enough |= bool(callback(step, values))

    def _save(self, step: int, *, replace: bool = False) -> None:
        state, self.saved = self.engine.state(), step
        metric, self.metric = self.metric, None
        if self.output is None:
            return
        meta = {
            "config": to_dict(self.config),
            "class_names": self.source.class_names,
            "data": self.data,
            "skipped_in_a_row": self.skipped_in_a_row,
            "versions": versions(),
            "log": self.output.log.written(),
        } | ({"unevaluated": True} if self.unevaluated else {})
        self.output.log.flush()
        self.output.store.save(Checkpoint(step, state, meta), metric=metric, replace=replace)
        self.read_at = time.monotonic()

    def _title(self) -> str:
        task = self.objective.section.task
        return task if task == "pretrain" else "fine-tune" if self.config.init else "from scratch"

    def _val_batches(self, val: Source) -> AbstractContextManager[Iterator[Batch]]:
        batches = eval_batches(
            val,
            needs=self.objective.needs(training=False),
            model=self.config.model,
            data=self.config.data,
            seed=self.config.seed,
            batch_size=min(self.config.train.batch_size // self.config.train.accumulate // self.world, len(val)),
            rank=self.rank,
            world=self.world,
            timeout=self.config.train.process_timeout,
        )
        return shown(batches, "validation", -(-len(val) // self.world))


def _say_that_it_stops() -> None:
    say("stopping: this step is finished and saved first (once more stops at once)")
