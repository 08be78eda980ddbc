"""Images without labels learnt from as a teacher sees them: pseudo-labels (Lee 2013), or the distillation of
classifiers (Hinton et al. 2015) into a network that is trained on crops, colours and mixtures the teacher never looked
at, which can make it better than its teacher (Xie et al. 2020, arXiv 1911.04252).

With few labels the best teacher may be one that nobody trained: a linear classifier on gradients, colours and a
dictionary of patches needs a hundred images where a network needs thousands (docs/few-labels.md).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.config.load import to_dict
from unmask.config.schema import Config
from unmask.data.parts import Share
from unmask.data.sources import Source
from unmask.data.sources.same_classes import check_same_classes
from unmask.data.sources.subset import BothSource, SpansSource
from unmask.data.sources.taught import TaughtSource
from unmask.engines.base import Engine
from unmask.errors import CheckpointError, ConfigError
from unmask.evaluate.fast_probe import LinearHead
from unmask.evaluate.features import Features
from unmask.evaluate.handmade import Handmade
from unmask.evaluate.inference import Model, load
from unmask.evaluate.resumable import Records, collect
from unmask.files import parse_json, read_bytes
from unmask.metrics import log_softmax
from unmask.models.handmade import handmade_shapes
from unmask.models.parameters import Tensors
from unmask.objectives.classify import HANDMADE, NETWORK
from unmask.preparation import of_first
from unmask.report.progress import say

TEACHER = "teacher"
"""The folder in that of a run where the answers are kept."""
_BATCH = 64
_LOOKED_AT = ("dtype", "range", "nodata", "frame", "eval_crop", "interpolation", "mean", "flip", "val_group")
"""Keys of `data` that decide what a teacher sees, and how one that is fitted here is chosen."""


class Teacher:
    """Who `objective.teacher` names, for a run on `labelled` images and on `others` whose labels are not looked at."""

    def __init__(self, config: Config, labelled: Source, others: Source) -> None:
        self._config, self._labelled, self._others = config, labelled, others

    def taught(
        self, folder: Path, wait: Callable[[], object] = lambda: None, rank: int = 0, world: int = 1
    ) -> TaughtSource:
        """The labelled images, and the others with what is said of them, which is kept in the run's `folder`.

        The teachers are asked once: a run that goes on finds what they said, and does not need them any more. Of
        several processes each asks about a share; `wait` is for all of them to come to the same place. Raises
        ConfigError for a teacher that is no classifier, DataError for one of other classes, and what reading images and
        models raises.
        """
        config, labelled, others = self._config, self._labelled, self._others
        names, data = labelled.class_names or (), to_dict(config)["data"]
        job = {
            "settings": {"command": TEACHER, "teacher": list(config.objective.teachers), "seed": config.seed},
            "model": {"image_size": list(config.model.image_size), "channels": config.model.channels},
            "data": {key: data[key] for key in _LOOKED_AT},
            "labelled": {"images": len(labelled), "fingerprint": labelled.fingerprint()},
            "source": {"images": len(others), "fingerprint": others.fingerprint()},
        }
        name = hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:16]
        record = np.dtype([("probability", "<f4", (len(names),))])

        def compute(spans: Sequence[range]) -> Iterator[Records]:
            for probabilities in self._mean_of_all(spans, folder):
                records = np.empty(len(probabilities), record)
                records["probability"] = probabilities
                yield records

        def ask(share: Share) -> Records | None:
            size, title, place = min(_BATCH, len(others)), "ask the teacher", folder / TEACHER / name
            return collect(place, job, record, len(others), compute, batch_size=size, title=title, share=share)

        answers = ask(Share(rank, world))
        for turn in range(2) if world > 1 else ():
            wait()  # first until all shares are there, then until one process has joined them
            if rank == 0 or turn == 1:
                answers = ask(Share(rank, world)) if answers is None else answers
        assert answers is not None, "no part is missing"
        source = TaughtSource(labelled, others, np.array(answers["probability"]))
        certain = float(source.probabilities[len(labelled) :].max(1).mean())
        say(f"{' and '.join(config.objective.teachers)} of {len(others)} images without labels: sure to {certain:.0%}")
        return source

    def kept(self, engine: Engine, rank: int) -> Tensors:
        """The teacher [handmade] as a part of the network (`objective.teacher_share`): as the first process fitted it,
        for all. Raises ConfigError for a network of other classes."""
        model, classes = self._config.model, len(self._labelled.class_names or ())
        if model.num_classes != classes:
            raise ConfigError(
                f"objective.teacher_share: data.train has {classes} classes of model.num_classes={model.num_classes}; "
                "leave one of the two out"
            )
        shapes = handmade_shapes(model, classes)
        weights: Tensors = {name: np.zeros(shape) for name, shape in shapes.items()}
        if rank == 0:
            handmade, head = self._handmade
            weights |= handmade.parameters(head)
        return of_first(engine, weights)

    @cached_property
    def _handmade(self) -> tuple[Handmade, LinearHead]:
        labelled = self._labelled
        handmade = Handmade(BothSource(labelled, self._others), self._config)
        features = handmade.features(labelled, "describe the labelled images")
        return handmade, handmade.fit(features, len(labelled.class_names or ()))

    def _mean_of_all(self, spans: Sequence[range], folder: Path) -> Iterator[NDArray[np.float32]]:
        """(B, classes) of each batch of the spans; the same for all classes where an image cannot be decoded, for then
        another is trained on in its place."""
        weights = dict.fromkeys(self._config.objective.teachers, 1.0)
        if NETWORK in weights:
            share = parse_json(weight_file(folder), read_bytes(weight_file(folder)))["weight"]
            weights |= {HANDMADE: 2 * (1 - share), NETWORK: 2 * share}
        asked = {teacher: weight for teacher, weight in weights.items() if weight}
        with ExitStack() as stack:
            teachers: list[Iterator[NDArray[Any]]] = []
            for teacher in asked:
                if teacher == HANDMADE:
                    teachers.append(self._say_handmade(spans))
                else:
                    model = stack.enter_context(_loaded(teacher, folder, self._config))
                    teachers.append(self._say(model, teacher, spans))
            for answers in zip(*teachers, strict=True):
                mean = np.average(np.stack(answers), 0, list(asked.values()))
                unknown = 1 / len(self._labelled.class_names or ())
                yield np.where(np.isfinite(mean), mean, unknown).astype(np.float32)

    def _say_handmade(self, spans: Sequence[range]) -> Iterator[NDArray[Any]]:
        handmade, head = self._handmade
        for values, valid in handmade.batches(SpansSource(self._others, spans), min(_BATCH, len(self._others))):
            logits, _ = next(head.logits(Features(values, np.zeros(len(values), np.int64)), np.arange(len(values))))
            yield np.where(valid[:, None], np.exp(log_softmax(logits)), np.nan)

    def _say(self, model: Model, teacher: str, spans: Sequence[range]) -> Iterator[NDArray[Any]]:
        names = self._labelled.class_names or ()
        if model.class_names is not None:
            check_same_classes(model.class_names, names, f"objective.teacher={teacher}", "data.train")
        elif model.config.model.num_classes != len(names):
            raise ConfigError(
                f"objective.teacher={teacher} tells {model.config.model.num_classes or 'no'} classes, but data.train "
                f"has {len(names)}"
            )
        for rows in model.predict_batches(self._others, spans):
            yield rows.values


def network_folder(run: Path) -> Path:
    """The teacher `network` of the run in that folder, see `unmask.teacher_network`."""
    return run / TEACHER / NETWORK


def weight_file(run: Path) -> Path:
    """What it counts, and why."""
    return run / TEACHER / f"{NETWORK}.json"


def load_network(run: Path, config: Config) -> Model:
    """The same, ready to be asked; of an image and its mirror image where left and right mean nothing."""
    return load(
        network_folder(run),
        engine=config.engine,
        device=config.device,
        precision=config.train.precision,
        batch_size=_BATCH,
        flip=config.data.flip > 0,
    )


def _loaded(teacher: str, run: Path, config: Config) -> Model:
    if teacher == NETWORK:
        return load_network(run, config)
    try:
        return load(teacher, engine=config.engine, device=config.device, batch_size=_BATCH)
    except CheckpointError as error:
        raise CheckpointError(f"objective.teacher={teacher}: {error}") from None
