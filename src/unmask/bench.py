"""`unmask bench`: whether the images or the steps of a run bind here, and what to change."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from PIL import Image

from unmask.config.load import Settings, load_config
from unmask.config.schema import Config
from unmask.data.batch import Batch
from unmask.data.sources import Source
from unmask.data.sources.pack import PackSource
from unmask.engines import create_engine, fast_precision, with_precision
from unmask.engines.base import Engine
from unmask.environment import cores
from unmask.errors import ConfigError
from unmask.interchange.start import starting_state
from unmask.objectives.base import create_objective
from unmask.preparation import batches_of, complete, open_sources, read_start
from unmask.report.progress import say, table

SECONDS = 60.0
"""For all of it, once the images are found and the model is made."""
ROUNDS = 3
_FIRST = 4
"""Images of the steps that tell how many can be measured."""
_AHEAD = 3
"""Steps that a loader may have made before it was asked."""
_PICTURES, _PICTURE = 64, (375, 500)
"""How many random pictures stand in for images, and their size: that of most of ImageNet's."""
_ENDLESS = 10**6


@dataclass(frozen=True)
class Rate:
    """Images a second, over the rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, rounds: Sequence[float]) -> Rate:
        return cls(*(round(value, 2) for value in (statistics.median(rounds), min(rounds), max(rounds))))


@dataclass(frozen=True)
class Measured:
    loader: Rate
    step: Rate
    """Of images that are there."""
    both: Rate
    binds: Literal["loader", "step"]
    images: int
    """In a micro-batch that was measured."""
    precision: str
    advice: Mapping[str, str]
    """Settings and commands that change it, and what they do."""


def bench(recipe: str, settings: Settings, seconds: float = SECONDS) -> Measured:
    """Time the loader alone, the step alone, and both together, in turn: the parts of a run, on its images.

    Without `data.train`, on random pictures. Where a step would take too long to be repeated, it is of fewer images.
    Raises ConfigError, DataError, EngineError as a run would.
    """
    with _begun(recipe, settings) as (config, source, unlabelled, engine, hyper):
        config = _in_time(config, source, unlabelled, engine, hyper, seconds / 40)
        batches, size = batches_of(config, source, unlabelled), config.train.batch_size
        there = _one(batches)
        rounds: dict[str, list[float]] = {"loader": [], "step": [], "both": []}
        window = seconds / (6 * ROUNDS)
        for each in range(ROUNDS):
            first = each * 1000  # other images
            with closing(batches(start_step=first, stop_step=first + _ENDLESS)) as steps:
                rounds["loader"].append(_rate(islice(steps, _AHEAD, None), size, window))
            rounds["step"].append(_rate(islice(_steps(engine, repeat(there), hyper), 1, None), size, window))
            with closing(batches(start_step=first, stop_step=first + _ENDLESS)) as steps:
                rounds["both"].append(_rate(islice(_steps(engine, steps, hyper), _AHEAD, None), size, window))
    loader, step, both = map(Rate.of, rounds.values())
    binds = "loader" if loader.median < step.median else "step"
    advice = _of_loader(config, source) if binds == "loader" else _of_step(config)
    return Measured(loader, step, both, binds, size // config.train.accumulate, config.train.precision, advice)


def bench_step(recipe: str, settings: Settings, seconds: float) -> float:
    """Images a second of the step alone, in its real size, however long it takes; raises as `bench`."""
    with _begun(recipe, settings) as (config, source, unlabelled, engine, hyper):
        there = _one(batches_of(config, source, unlabelled))
        return _rate(islice(_steps(engine, repeat(there), hyper), 1, None), config.train.batch_size, seconds)


@contextmanager
def _begun(
    recipe: str, settings: Settings
) -> Generator[tuple[Config, Source, Source | None, Engine, Mapping[str, float]]]:
    """What a run has before its first step: config, images, those without labels, engine, the values of a step."""
    config = load_config(recipe, settings)
    with TemporaryDirectory(prefix="unmask-") as folder:
        config = _with_images(config, Path(folder))
        source, _, unlabelled = open_sources(config)
        start, architecture = read_start(config, Path(folder))
        config = with_precision(complete(config, source, architecture))
        objective = create_objective(config)
        with closing(create_engine(config)) as engine:
            engine.load(starting_state(objective, config, start))
            yield config, source, unlabelled, engine, {"lr": 0.0, **objective.hyper(0, 1)}


def _one(batches: Callable[..., Generator[list[Batch]]]) -> list[Batch]:
    with closing(batches(start_step=0, stop_step=1)) as made:
        return next(made)


def show(measured: Measured, recipe: str) -> None:
    """Print it for a reader."""
    names = {"loader": "loader alone", "step": "step alone", "both": "together"}
    rates = {name: getattr(measured, key) for key, name in names.items()}
    table(
        [[name, rate.median, rate.least, rate.most] for name, rate in rates.items()], ["", "images/s", "least", "most"]
    )
    say(f"in micro-batches of {measured.images}, {measured.precision}, {ROUNDS} rounds")
    slower = min(measured.loader.median, measured.step.median)
    say("loading the images binds" if measured.binds == "loader" else "the step binds")
    if measured.both.median < 0.9 * slower:
        say(f"together {1 - measured.both.median / slower:.0%} slower than that alone: they share {cores()} cores")
    for setting, what in measured.advice.items():
        say(f"  {setting}: {what}")
    if measured.binds == "step":
        say(f"  unmask doctor --tune {recipe}: measures micro-batches and threads")


def _with_images(config: Config, folder: Path) -> Config:
    """`config` with images to train on alone: its own, else random ones in this folder."""
    given = {"val": None}
    if config.data.train is None:
        given |= {"train": str(_pictures(config, folder / "images")), "exclude": None, "labels_per_class": None}
        if config.objective.unlabelled_images or config.objective.teachers:
            given["unlabelled"] = given["train"]
    return config.model_copy(update={"data": config.data.model_copy(update=given)})


def _pictures(config: Config, folder: Path) -> Path:
    channels, dtype = config.model.channels, config.data.dtype
    if channels not in (1, 3) or dtype != "uint8":
        raise ConfigError(f"random pictures have 1 or 3 channels of uint8, not {channels} of {dtype}: set data.train")
    rng = np.random.default_rng(0)
    classes, (height, width) = min(config.model.num_classes or 2, _PICTURES), _PICTURE
    for i in range(_PICTURES):
        path = folder / str(i % classes) / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (height // 8, width // 8, channels), dtype=np.uint8)
        picture = Image.fromarray(coarse if channels == 3 else coarse[..., 0]).resize((width, height))
        picture.save(path, quality=90)
    say(f"data.train is not set: {_PICTURES} random JPEG of {width} x {height} pixels in its place")
    return folder


def _in_time(
    config: Config, source: Source, unlabelled: Source | None, engine: Engine, hyper: Mapping[str, float], most: float
) -> Config:
    """`config`, with fewer images in a step where that would take longer than `most` seconds."""
    train = config.train
    micro = train.batch_size // train.accumulate
    few = _of_size(config, micro, _FIRST)
    begun = time.perf_counter()
    there = _one(batches_of(few, source, unlabelled))
    loading = (time.perf_counter() - begun) / (config.data.workers or cores())
    times: list[float] = []
    for _ in range(3):  # the first compiles and allocates
        begun = time.perf_counter()
        engine.read(engine.train_step(there, hyper))
        times.append(time.perf_counter() - begun)
    fit = most / max(min(times), loading) * few.train.batch_size
    if train.batch_size <= fit:
        return config
    fewer = _of_size(config, micro, max(fit, _FIRST))
    say(f"train.batch_size={train.batch_size} would take long: measured in steps of {fewer.train.batch_size}")
    return fewer


def _of_size(config: Config, micro: int, most: float) -> Config:
    """One micro-batch a step, of `micro` images, halved until it is of so many or odd."""
    while micro > most and micro % 4 == 0:
        micro //= 2
    train = config.train.model_copy(update={"batch_size": micro, "accumulate": 1})
    return config.model_copy(update={"train": train})


def _steps(engine: Engine, batches: Iterable[list[Batch]], hyper: Mapping[str, float]) -> Iterator[None]:
    """Train; each step is begun before the one before is waited for."""
    before: Any = None
    for micro_batches in batches:
        now = engine.train_step(micro_batches, hyper)
        if before is not None:
            engine.read(before)
        before = now
        yield


def _rate(steps: Iterator[Any], size: int, window: float) -> float:
    """Images a second: of the steps that begin within `window` seconds, the first of which is not counted."""
    next(steps)
    begun = time.perf_counter()
    for done, _ in enumerate(steps, 1):
        if (spent := time.perf_counter() - begun) >= window:
            return done * size / spent
    raise AssertionError("the steps are endless")


def _of_loader(config: Config, source: Source) -> dict[str, str]:
    data, advice = config.data, dict[str, str]()
    if data.workers < cores() and cores() > 1:
        advice[f"data.workers={cores()}"] = "processes that load, in place of " + (
            f"{data.workers}" if data.workers else "threads"
        )
    if not isinstance(source, PackSource):
        side = round(min(config.model.image_size) / 0.875)
        train = data.train if data.train and Path(data.train).exists() else "IMAGES"
        advice[f"unmask pack {train} PACK --short-side {side}, then data.train=PACK"] = "smaller images, read in a row"
    if config.augment.repeats == 1 and config.objective.task == "pretrain":
        advice["augment.repeats=2"] = "decodes an image once for two views"
    return advice


def _of_step(config: Config) -> dict[str, str]:
    train, advice = config.train, dict[str, str]()
    if train.precision == "fp32" and (fast := fast_precision(config.engine, config.device)) != "fp32":
        advice["train.precision=auto"] = f"{fast}, which this device has in hardware"
    if config.engine == "torch" and not train.compile:
        advice["train.compile=true"] = "fewer kernels; the first step takes minutes"
    if train.activation_checkpointing:
        advice["train.activation_checkpointing=false"] = "a quarter less time, more memory"
    if train.accumulate > 1:
        advice[f"train.accumulate={train.accumulate // 2}"] = "larger micro-batches, more memory"
    return advice
