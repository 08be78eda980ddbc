"""A run, put together: pretraining, fine-tuning and training from scratch, on any engine.

They differ in model head, loss, augmentation and schedule, all of which the config names. The steps themselves are in
`loop.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from unmask.checkpoint.images import write_images
from unmask.checkpoint.resume import check_same_config, check_same_start, data_record
from unmask.checkpoint.store import CheckpointStore
from unmask.config.load import flatten, to_dict
from unmask.config.schema import Config
from unmask.data.decode.raster import why_bad
from unmask.data.loader.bad_files import BadFiles
from unmask.data.loader.spikes import Spikes
from unmask.data.sources import Source
from unmask.data.sources.left_out import LeftOut
from unmask.data.sources.subset import BothSource
from unmask.engines import create_engine, joined, with_precision
from unmask.engines.base import Engine
from unmask.environment import git_state, launched, versions
from unmask.errors import ConfigError
from unmask.evaluate.features import features_by
from unmask.evaluate.online import FeatureEvaluation
from unmask.files import RunLock, gone_if_unused, write_text
from unmask.interchange.hub import pinned
from unmask.interchange.start import starting_state
from unmask.loop import Callback, Loop, Output, Plan
from unmask.objectives.base import create_objective
from unmask.objectives.classify import NETWORK
from unmask.preparation import batches_of, complete, earlier, open_sources, probed_head, read_start
from unmask.report.log import RankLog, RunLog
from unmask.report.progress import say
from unmask.schedules import learning_rate
from unmask.teacher import Teacher
from unmask.teacher_network import train_teacher

PRECISIONS = ("fp32", "bf16", "fp16")


def train(
    config: Config,
    folder: Path,
    *,
    images: Source | None = None,
    val_images: Source | None = None,
    unlabelled_images: Source | None = None,
    callbacks: Sequence[Callback] = (),
    saved: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Run `config` in `folder` to its end, from where an earlier call stopped if there was one.

    `images`, `val_images` and `unlabelled_images` take the place of `data.train`, `data.val` and `data.unlabelled`.
    `saved` is called as in CheckpointStore.
    Of several processes, launched by torchrun or msrun, each calls this; the first one writes.
    Returns the last numbers of training and, with images to validate on, of evaluation (`val_loss`, `val_top1`, ...).
    Raises ConfigError if the folder holds another run; DataError, CheckpointError, EngineError, TrainingError;
    KeyboardInterrupt after Ctrl-C, once the step is finished and saved (at once after a second Ctrl-C).
    """
    source, val, unlabelled = open_sources(config, images, val_images, unlabelled_images)
    start_model, architecture = read_start(config, folder)
    config = with_precision(complete(config, source, architecture), earlier(folder).get("train", {}).get("precision"))
    objective = create_objective(config)
    if val is not None and objective.evaluated is None:
        raise ConfigError(
            f"objective.name={config.objective.name} has no loss for single images: leave out data.val, and give "
            "labelled images to evaluate.train and evaluate.val, with evaluate.every"
        )
    rank, world = launched()
    # Batches that are not possible are refused before any work.
    batches_of(config, source, unlabelled, rank, world)(start_step=0, stop_step=0).close()
    if NETWORK in config.objective.teachers and unlabelled is not None and not earlier(folder):
        train_teacher(config, folder, source, unlabelled, train)
    with ExitStack() as stack:
        stack.enter_context(joined(config.engine, config.device, config.train.process_timeout))
        engine = stack.enter_context(closing(create_engine(config, world)))
        if rank == 0:
            stack.enter_context(gone_if_unused(folder))
            stack.enter_context(RunLock(folder))
        meet = partial(engine.sum, np.zeros(1))
        meet()  # the others wait until the folder is ours
        left_out, labelled, teacher = LeftOut.of(source).counts(), source, None
        if config.objective.teachers and unlabelled is not None:
            teacher = Teacher(config, source, unlabelled)
            source, unlabelled = teacher.taught(folder, meet, rank, world), None
        plan, batches = Plan.of(config, len(source)), batches_of(config, source, unlabelled, rank, world)
        rank_log = stack.enter_context(RankLog(folder, rank)) if world > 1 else None
        store = stack.enter_context(
            closing(CheckpointStore(folder / "checkpoints", keep=config.train.keep, saved=saved))
        )
        checkpoint = store.load() if store.steps() else None
        if checkpoint is None:
            check_same_start(config, folder)
        else:
            check_same_config(config, checkpoint, folder)
        others = {"val": val} | ({} if unlabelled is None else {"unlabelled": unlabelled})
        data = data_record(source, others, checkpoint, folder, allow_change=config.data.allow_change)
        start = 0 if checkpoint is None else checkpoint.step
        _check_same_start(engine, start, config.train.precision, world, folder)
        embed = partial(
            features_by,
            engine,
            model=config.model,
            data=config.data,
            seed=config.seed,
            batch_size=config.train.batch_size // config.train.accumulate // world,
            timeout=config.train.process_timeout,
            rank=rank,
            world=world,
        )
        if checkpoint is not None:
            engine.load(checkpoint.state)
        else:
            state = starting_state(objective, config, start_model)
            if teacher is not None and config.objective.keeps_teacher:
                state = replace(state, weights={**state.weights, **teacher.kept(engine, rank)})
            engine.load(state)
            if config.objective.starts_at_probe:
                head = probed_head(engine, config, embed(labelled), source.class_names or (), rank)
                engine.load(replace(state, weights={**state.weights, **head}))
        del start_model
        # For the record, the commit of what was loaded: a name of the hub may mean another model tomorrow.
        init = config.init and pinned(config.init) if checkpoint is None else checkpoint.meta["config"].get("init")
        config = config.model_copy(update={"init": init})
        output = None
        if rank == 0:
            given = {"data.train": images, "data.val": val_images, "data.unlabelled": unlabelled_images}
            _describe(config, data, left_out, folder, given)
            write_images(source, data["fingerprint"], folder)
            known = None if checkpoint is None else checkpoint.meta.get("log")
            log = stack.enter_context(closing(RunLog(folder, resume_step=start, known=known, **_told(config))))
            spikes = Spikes(
                source,
                folder / "spikes.jsonl",
                seed=config.seed,
                batch_size=config.train.batch_size,
                repeats=config.augment.repeats,
                unlabelled=unlabelled,
                each=config.objective.unlabelled_images,
            )
            output = Output(store, log, spikes)
        resumed = f", resumed after step {start}" if checkpoint is not None else ""
        processes = f", {world} processes" if world > 1 else ""
        if 0 < plan.total < plan.warmup:
            share = learning_rate(plan.total - 1, total_steps=plan.total, warmup_steps=plan.warmup, peak=1, minimum=0)
            say(
                f"optimizer.warmup_epochs={config.optimizer.warmup_epochs:g} is longer than the run, whose learning "
                f"rate ends at {share:.0%} of its peak; lower it"
            )
        counts = f"{len(source)} images"
        counts += "" if unlabelled is None else f" and {len(unlabelled)} whose labels are not looked at"
        say(f"{config.objective.task} in {folder}: {counts}, {plan.total} steps{processes}{resumed}")
        shown = source if unlabelled is None else BothSource(source, unlabelled)
        why = partial(why_bad, shown, channels=config.model.channels, data=config.data)
        bad_files = BadFiles(shown, config.data.max_bad_share, folder / "bad_files.txt", why, writes=rank == 0)
        features = None
        if config.evaluate.every is not None:
            features = FeatureEvaluation(
                config.evaluate, embed, val or source, dtype=config.data.dtype, seed=config.seed
            )
        skipped = 0 if checkpoint is None else checkpoint.meta.get("skipped_in_a_row", 0)
        unevaluated = checkpoint is not None and checkpoint.meta.get("unevaluated", False)
        return Loop(
            config,
            objective,
            plan,
            source,
            val,
            batches,
            data,
            engine,
            features,
            output,
            rank_log,
            bad_files,
            callbacks,
            rank,
            world,
            skipped,
            unevaluated,
        ).run(start)


def _told(config: Config) -> dict[str, Any]:
    """What the log says of the configuration, and to whom."""
    return {"config": flatten(to_dict(config)), "loggers": config.train.loggers}


def _check_same_start(engine: Engine, start: int, precision: str, world: int, folder: Path) -> None:
    """Processes on several machines must see the same run folder, and compute alike."""
    mine = np.array([start, PRECISIONS.index(precision)], np.float64)
    sums, squares = np.split(engine.sum(np.concatenate([mine, mine**2])), 2)
    starts, precisions = squares * world != sums**2  # the variance is not zero
    if starts:
        raise ConfigError(f"the processes see different checkpoints in {folder}; output must be on shared storage")
    if precisions:
        raise ConfigError("train.precision=auto is not the same on all machines; set train.precision=fp32 or bf16")


def _describe(
    config: Config, data: dict[str, Any], left_out: dict[str, int], folder: Path, given: Mapping[str, Source | None]
) -> None:
    """Write down what ran: the whole config, the data and what of it was left out, the command, the versions and the
    state of the code.

    Of images that were given as objects, the kind: no setting names them.
    """
    objects = {key: type(source).__name__ for key, source in given.items() if source is not None}
    description: dict[str, Any] = {
        "command": sys.argv,
        "versions": versions(),
        "git": git_state(Path(__file__).parent),
        "data": data | ({"objects": objects} if objects else {}) | ({"left_out": left_out} if left_out else {}),
        "config": to_dict(config),
    }
    write_text(folder / "run.yaml", yaml.safe_dump(description, sort_keys=False, allow_unicode=True))
