"""What a run is made of before its first step: its images, the model it begins as, and what only they decide."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from unmask.checkpoint.folder import read_meta
from unmask.checkpoint.store import list_steps, read_chosen
from unmask.config.schema import Config
from unmask.data.batch import Batch
from unmask.data.decode.raster import check_images
from unmask.data.loader.pipeline import train_batches
from unmask.data.sources import Source, open_source
from unmask.data.sources.same_classes import with_classes_of
from unmask.data.sources.split import check_groups, split
from unmask.data.sources.subset import rest_of, subset, without
from unmask.engines.base import Engine, Tensors
from unmask.errors import ConfigError
from unmask.evaluate.fast_probe import fit_head
from unmask.evaluate.features import Features
from unmask.interchange import StoredModel, read_model
from unmask.interchange.start import with_architecture
from unmask.interchange.stored_model import fields_from_shapes
from unmask.objectives.base import create_objective
from unmask.report.progress import say


def open_sources(
    config: Config, source: Source | None = None, val: Source | None = None, unlabelled: Source | None = None
) -> tuple[Source, Source | None, Source | None]:
    """Training and validation images, and those whose labels are not looked at, None for an objective that asks for
    none: those given, or `data.train`, `data.val` and `data.unlabelled`.

    Raises ConfigError or DataError if they are missing or do not go together.
    """
    labels = config.objective.labelled
    if source is None:
        if config.data.train is None:
            raise ConfigError("data.train is not set; give the folder of images: data.train=FOLDER")
        source = open_source(config.data.train, key="data.train", labels=labels)
    source, held = parts_of(source, config)
    val = held if val is None else val
    takes_unlabelled = bool(config.objective.unlabelled_images or config.objective.teachers)
    if takes_unlabelled:
        unlabelled = _unlabelled(config, source) if unlabelled is None else unlabelled
    elif unlabelled is not None or config.data.unlabelled is not None:
        raise ConfigError(
            f"data.unlabelled is of no use to objective.name={config.objective.name}; leave it out, or set "
            "objective.name=semi, or objective.teacher"
        )
    if config.data.labels_per_class is not None:
        whole, source = source, subset(source, config.data.labels_per_class, config.seed)
        if unlabelled is whole and config.objective.teachers:
            unlabelled = rest_of(source)
            if not len(unlabelled):
                raise ConfigError(
                    "objective.teacher: data.labels_per_class leaves no image of data.train without label"
                )
    if val is None and config.data.val is not None:
        val = open_source(config.data.val, key="data.val", labels=labels)
    if labels and val is not None:
        val = with_classes_of(val, source.class_names or (), "data.val", "data.train")
    for key, images in (("data.train", source), ("data.val", val), ("data.unlabelled", unlabelled)):
        if images is not None:
            check_images(images, key, config.model.channels, config.data, exact=True)
    return source, val, unlabelled


def parts_of(source: Source, config: Config) -> tuple[Source, Source | None]:
    """Of the images of `data.train` those to train on, and those to validate on where `data.val` is a share of them."""
    if config.data.exclude is not None:
        source = without(source, config.data.exclude)
    if config.data.val_group is not None and config.data.train is not None:
        check_groups(source, config.data.val_group)
    if config.data.val_share is None:
        return source, None
    return split(source, config.data.val_share, config.seed, config.data.val_group)


def _unlabelled(config: Config, train: Source) -> Source:
    """`data.unlabelled`, else all of `data.train`, where the labels of a part of it alone are looked at."""
    if config.data.unlabelled is not None:
        return open_source(config.data.unlabelled, key="data.unlabelled", labels=False)
    if config.data.labels_per_class is None:
        what = "teacher" if config.objective.teachers else f"name={config.objective.name}"
        raise ConfigError(
            f"objective.{what} is for training on images without labels too: name them in "
            "data.unlabelled=FOLDER, or set data.labels_per_class to take few labels of data.train"
        )
    return train


def read_start(config: Config, folder: Path) -> tuple[StoredModel | None, dict[str, Any]]:
    """The model at `init`, and the architecture it decides; of a run that goes on, that is in its checkpoint."""
    if config.init is None:
        return None, {}
    if before := earlier(folder):
        return None, before["model"]
    start = read_model(config.init)
    return start, fields_from_shapes(start.weights) | start.model


def earlier(folder: Path) -> dict[str, Any]:
    """The config of a run that goes on, from its newest checkpoint; empty where there is none."""
    if not ((folder / "checkpoints").exists() and list_steps(folder / "checkpoints")):
        return {}
    return read_chosen(folder / "checkpoints", "last", read_meta)["config"]


def complete(config: Config, source: Source, architecture: dict[str, Any]) -> Config:
    """The config with what only the data and the start know filled in."""
    config = config.model_copy(update={"model": with_architecture(config.model, architecture)})
    if not config.objective.labelled or source.class_names is None:
        return config
    if source.labels is None and not config.objective.takes_several_classes:
        raise ConfigError("data.train gives several classes an image, which needs objective.loss=bce")
    classes = len(source.class_names)
    if config.model.num_classes is None:
        return config.model_copy(update={"model": config.model.model_copy(update={"num_classes": classes})})
    if config.model.num_classes < classes:
        raise ConfigError(f"model.num_classes={config.model.num_classes}, but data.train has {classes} classes")
    return config


def batches_of(
    config: Config, source: Source, unlabelled: Source | None = None, rank: int = 0, world: int = 1
) -> Callable[..., Generator[list[Batch]]]:
    """The micro-batches of a run's steps, as `train_batches` makes them, from `start_step` up to `stop_step`.

    `unlabelled`: of use where the objective asks for images beside each labelled one.
    """
    return partial(
        train_batches,
        source,
        needs=create_objective(config).needs(training=True),
        model=config.model,
        data=config.data,
        augment=config.augment,
        seed=config.seed,
        batch_size=config.train.batch_size,
        accumulate=config.train.accumulate,
        rank=rank,
        world=world,
        unlabelled=unlabelled if config.objective.unlabelled_images else None,
        timeout=config.train.process_timeout,
    )


def probed_head(engine: Engine, config: Config, features: Features, class_names: Sequence[str], rank: int) -> Tensors:
    """The linear probe of the network that `engine` holds, as its head: fitted by the first process, for all."""
    classes, wanted = len(class_names), config.model.num_classes
    if wanted != classes:
        raise ConfigError(
            f"objective.head=probe: data.train has {classes} classes of model.num_classes={wanted}; "
            "set objective.head=drawn"
        )
    width = config.model.feature_width
    head = {"head.weight": np.zeros((classes, width), np.float32), "head.bias": np.zeros(classes, np.float32)}
    if rank == 0:
        fitted, strength, _ = fit_head(features, classes, seed=config.seed)
        head = fitted.parameters()
        say(f"the head starts as the linear probe of {config.init or 'the drawn network'}, L2 strength {strength:g}")
    return of_first(engine, head)


def of_first(engine: Engine, tensors: Tensors) -> Tensors:
    """What the first process gives, where the others give zeros; all in the same order."""
    return {name: engine.sum(tensor.astype(np.float64)).astype(np.float32) for name, tensor in tensors.items()}
