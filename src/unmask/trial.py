"""Whether fine-tuning pays: `objective.head=auto` decided by labelled images that are set aside.

With few labels a network that is fine-tuned may well do worse than the linear probe of the network it began as (Kumar
et al. 2022, arXiv 2202.10054; docs/few-labels.md). Which it is depends on the network, the images and the recipe, so
both are tried on a part of the labelled images and judged by the others. Fine-tuning has to be better by more than the
standard error of that comparison. Else the network stays as it is, with the probe as its head.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.config.load import to_dict
from unmask.config.schema import Config
from unmask.data.sources import Source
from unmask.data.sources.split import groups_of
from unmask.data.sources.subset import SubsetSource
from unmask.environment import launched
from unmask.errors import ConfigError
from unmask.evaluate.fast_probe import FOLDS, folds_of
from unmask.evaluate.inference import load
from unmask.files import written_aside
from unmask.preparation import earlier, open_sources
from unmask.report.progress import say
from unmask.train import train

MOST = 10_000
"""Labelled images up to which there is a trial. With more, fine-tuning has always been ahead of the probe."""
HALVES = 500
"""Labelled images below which each half is set aside in turn: a fifth of them would tell nothing."""
_RESULT, _FOLDER = "trial.json", "trial"


def with_head(
    config: Config, folder: Path, *, images: Source | None = None, unlabelled_images: Source | None = None
) -> Config:
    """`objective.head=auto` decided for the run in `folder`: as it was before, in a run that goes on.

    `drawn` from scratch, with more than MOST images, and where a probe cannot be the head. Else `probe`, and with
    `train.epochs=0` if fine-tuning was not better in a trial, which trains in `folder`, leaves `trial.json` there and
    goes on when it was interrupted. Arguments and errors as for `train`; ConfigError where several processes would
    have to try.
    """
    if getattr(config.objective, "head", None) != "auto":
        return config
    if before := earlier(folder):
        head = before["objective"].get("head", "drawn")  # where it has none it is another run, which `train` refuses
        return _decided(config, head, stays=before["train"]["epochs"] == 0)
    if config.init is None:
        return _decided(config, "drawn")
    source, _, unlabelled = open_sources(config, images, unlabelled=unlabelled_images)
    if len(source) > MOST or not _takes_a_probe(config, source):
        return _decided(config, "drawn")
    if launched()[1] > 1:
        raise ConfigError(
            f"objective.head=auto tries on {len(source)} labelled images whether fine-tuning is better than the linear "
            "probe, in one process: start one, or set objective.head=probe or drawn to fine-tune in any case"
        )
    return _decided(config, "probe", stays=not _pays(config, folder, source, unlabelled))


def _decided(config: Config, head: str, *, stays: bool = False) -> Config:
    changes: dict[str, Any] = {"objective": config.objective.model_copy(update={"head": head})}
    if stays:
        changes["train"] = config.train.model_copy(update={"epochs": 0.0})
    return config.model_copy(update=changes)


def _takes_a_probe(config: Config, source: Source) -> bool:
    """Whether each image has one class, each class an image, and the head a row for each of them and no other."""
    if source.labels is None or getattr(config.objective, "loss", None) == "bce":
        return False
    classes = len(source.class_names or ())
    return config.model.num_classes in (None, classes) and bool(np.bincount(source.labels, minlength=classes).all())


def _pays(config: Config, folder: Path, source: Source, unlabelled: Source | None) -> bool:
    """Whether fine-tuning classifies more of the images that are set aside than the probe does, beyond chance."""
    path, wanted = folder / _RESULT, to_dict(config)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if found.get("config") != wanted or "standard_error" not in found:
        right, groups = _tried(config, folder / _FOLDER, source, unlabelled)
        # Each group of images, of which one may be all, that only one of the two has right is a coin thrown, if they
        # are equally good (McNemar 1947).
        ahead = np.bincount(groups, right[1].astype(float) - right[0], 1)
        found = {
            "set_aside": right.shape[1],
            "probe_right": int(right[0].sum()),
            "fine_tuned_right": int(right[1].sum()),
            "standard_error": float(np.sqrt((ahead**2).sum())),
            "config": wanted,
        }
        folder.mkdir(parents=True, exist_ok=True)
        with written_aside(path) as aside:
            aside.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(folder / _FOLDER, ignore_errors=True)
    if not found["set_aside"]:
        say(
            "one image a class, or one group, none to set aside: the network stays as it is, with the probe as its head"
        )
        return False
    pays = found["fine_tuned_right"] - found["probe_right"] > found["standard_error"]
    outcome = "it is worth it" if pays else "the network stays as it is, with the probe as its head"
    say(
        f"of {found['set_aside']} labelled images set aside, the linear probe has {found['probe_right']} right and "
        f"fine-tuning {found['fine_tuned_right']}: {outcome}"
    )
    return pays


def _tried(
    config: Config, folder: Path, source: Source, unlabelled: Source | None
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """(2, N) which of N images that were set aside are classified right, by the probe and after fine-tuning; (N,) the
    number of the group of each (`data.val_group`; else it stands for itself)."""
    right: list[NDArray[np.bool_]] = [np.zeros((2, 0), bool)]
    of: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    groups = groups_of(source, config.data.val_group)
    groups = np.arange(len(source)) if groups is None else groups
    for number, held in enumerate(_set_aside(source, groups, config.seed)):
        rest, judged = (SubsetSource(source, rows) for rows in (np.setdiff1d(np.arange(len(source)), held), held))
        say(f"trial {number + 1}: {len(rest)} labelled images to learn from, {len(judged)} to judge by")
        each: list[NDArray[np.bool_]] = []
        for name, epochs in (("probe", 0.0), ("fine-tuned", config.train.epochs)):
            output = folder / f"{number + 1}-{name}"
            train(
                _on(config, len(source) / len(rest), epochs, output), output, images=rest, unlabelled_images=unlabelled
            )
            with load(output, engine=config.engine, device=config.device) as model:
                probabilities = model.predict(judged)
            readable = np.isfinite(probabilities).all(1)
            each.append((probabilities.argmax(1) == judged.labels)[readable])
        right.append(np.stack(each))
        of.append(groups[held][readable])
    return np.concatenate(right, axis=1), np.concatenate(of)


def _set_aside(source: Source, groups: NDArray[np.int64], seed: int) -> list[NDArray[np.int64]]:
    """Positions of images, about the same share of each class; none where each class has one, or one group."""
    labels = np.asarray(source.labels)
    count, numbers = (2, (0, 1)) if len(labels) < HALVES else (FOLDS, (0,))
    folds = folds_of(labels, seed, count=count, groups=groups)
    return [rows for number in numbers if len(rows := np.flatnonzero(folds == number))]


def _on(config: Config, more: float, epochs: float, output: Path) -> Config:
    """The run on part of the images, whose whole number is `more` times that: with as many updates."""
    changes: dict[str, dict[str, Any]] = {
        "data": dict.fromkeys(("train", "val", "unlabelled", "exclude", "labels_per_class")),
        "evaluate": {"every": None, "train": None, "val": None},
        "objective": {"head": "probe"},
        "optimizer": {"warmup_epochs": config.optimizer.warmup_epochs * more},
        "train": {
            "epochs": epochs * more,
            "checkpoint_every": config.train.checkpoint_every * more,
            "keep": 1,
        },
    }
    sections = {name: getattr(config, name).model_copy(update=values) for name, values in changes.items()}
    return config.model_copy(update={**sections, "output": str(output)})
