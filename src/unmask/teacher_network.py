"""The teacher `network`: the network of a run, trained beforehand on a part of the labelled images alone.

With a few labels a class it has less to say than features that no network learned; with hundreds it has more, and what
the two get wrong is not the same (docs/few-labels.md). How much each counts is found on the labelled images that it was
not trained on: the weight under which the mean of both has the least squared error there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.checkpoint.resume import differences, identity
from unmask.config.load import to_dict
from unmask.config.schema import Config
from unmask.data.sources import Source
from unmask.data.sources.split import groups_of
from unmask.data.sources.subset import BothSource, SubsetSource
from unmask.environment import launched
from unmask.errors import ConfigError
from unmask.evaluate.fast_probe import FOLDS, folds_of
from unmask.evaluate.handmade import Handmade
from unmask.files import parse_json, read_bytes, written_aside
from unmask.metrics import log_softmax
from unmask.objectives.classify import NETWORK
from unmask.report.progress import say
from unmask.teacher import load_network, network_folder, weight_file

LEAST = 500
"""Labelled images from which on a network is asked: fewer teach it too little, and a fifth of them could not judge."""
EPOCHS, UPDATES = 40, 1500
"""How long it is trained; the latter at least."""
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)

Floats = NDArray[np.float64]


def train_teacher(config: Config, folder: Path, labelled: Source, others: Source, train: Callable[..., object]) -> None:
    """Leaves the network and its weight where `Teacher` looks for them, in the `folder` of the run.

    `others`: images without labels; `train`: `unmask.train.train`, by which this is called. What is there already is
    not made again, and what was interrupted goes on. Raises ConfigError for several processes, and what training does.
    """
    path = weight_file(folder)
    images = {"labelled": identity(labelled), "others": identity(others)}
    if path.exists():
        before = parse_json(path, read_bytes(path))
        if before["images"] == images and not differences(config, before["config"]):
            return
    found: dict[str, Any] = {"weight": 0.0, "set_aside": 0}
    if len(labelled) < LEAST:
        say(f"{len(labelled)} labelled images are fewer than {LEAST}: no network is among the teachers")
    elif launched()[1] > 1:
        raise ConfigError(
            f"objective.teacher: {NETWORK} is trained beforehand in one process; start one, or leave {NETWORK} out"
        )
    else:
        found = _found(config, folder, labelled, others, train)
    if launched()[0] != 0:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside:
        aside.write_text(
            json.dumps({**found, "images": images, "config": to_dict(config)}, indent=2) + "\n", encoding="utf-8"
        )


def _found(
    config: Config, folder: Path, labelled: Source, others: Source, train: Callable[..., object]
) -> dict[str, Any]:
    labels = np.asarray(labelled.labels)
    folds = folds_of(labels, config.seed, count=FOLDS, groups=groups_of(labelled, config.data.val_group))
    learnt, held = np.flatnonzero(folds != 0), np.flatnonzero(folds == 0)
    say(f"a network among the teachers: {len(learnt)} labelled images to learn from, {len(held)} to judge by")
    output = network_folder(folder)
    train(_alone(config, len(learnt), output), output, images=SubsetSource(labelled, learnt))
    with load_network(folder, config) as model:
        network = model.predict(SubsetSource(labelled, held)).astype(np.float64)
    handmade = _handmade(config, labelled, others, learnt, held)
    judges = np.isfinite(network).all(1) & np.isfinite(handmade).all(1)
    losses = [
        _loss((1 - weight) * handmade[judges] + weight * network[judges], labels[held][judges]) for weight in WEIGHTS
    ]
    weight = WEIGHTS[int(np.argmin(losses))]
    right = [int((each[judges].argmax(1) == labels[held][judges]).sum()) for each in (handmade, network)]
    say(
        f"of {judges.sum()} labelled images set aside, handmade features have {right[0]} right and the network "
        f"{right[1]}: it counts {weight:.0%} in what they teach"
    )
    return {"weight": weight, "set_aside": int(judges.sum()), "handmade_right": right[0], "network_right": right[1]}


def _handmade(
    config: Config, labelled: Source, others: Source, learnt: NDArray[np.int64], held: NDArray[np.int64]
) -> Floats:
    """(held, classes) probabilities of a classifier that is fitted to what the network learnt from."""
    handmade = Handmade(BothSource(labelled, others), config)
    features = handmade.features(labelled, "describe the labelled images")
    head = handmade.fit(features.rows(learnt), len(labelled.class_names or ()))
    logits = np.concatenate([each for each, _ in head.logits(features, held)])
    return np.where((features.labels[held] >= 0)[:, None], np.exp(log_softmax(logits)), np.nan)


def _loss(probabilities: Floats, labels: NDArray[np.int64]) -> float:
    """The squared error: the logarithm's would rule out a network for how sure it is, which smoothed labels decide."""
    return float(((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(1).mean())


def _alone(config: Config, images: int, output: Path) -> Config:
    """The run of the network on that many labelled images."""
    accumulate = config.train.accumulate
    batch_size = max(accumulate, min(config.train.batch_size, images) // accumulate * accumulate)
    epochs = max(EPOCHS, UPDATES * batch_size / images)
    share = epochs / (config.train.epochs or 1)
    changes: dict[str, dict[str, Any]] = {
        "data": dict.fromkeys(("train", "val", "unlabelled", "exclude", "labels_per_class")),
        "evaluate": {"every": None, "train": None, "val": None},
        "objective": {"teacher": (), "teacher_share": 0.0},
        "optimizer": {"warmup_epochs": config.optimizer.warmup_epochs * share},
        "train": {
            "epochs": epochs,
            "batch_size": batch_size,
            "checkpoint_every": config.train.checkpoint_every * share,
            "keep": 1,
        },
    }
    sections = {name: getattr(config, name).model_copy(update=values) for name, values in changes.items()}
    return config.model_copy(update={**sections, "output": str(output)})
