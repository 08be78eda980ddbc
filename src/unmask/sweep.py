"""What pretraining is worth when labels are few: accuracy against their number, over several seeds."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unmask.api import run
from unmask.config.load import Settings, load_config, to_dict
from unmask.config.schema import Config
from unmask.data.sources import Source, open_source
from unmask.data.sources.files import is_remote
from unmask.data.sources.same_classes import with_classes_of
from unmask.data.sources.subset import SubsetSource, subset
from unmask.data.spreadsheets import csv_file, csv_rows
from unmask.errors import ConfigError, UnmaskError
from unmask.evaluate.attentive import judge_attentive
from unmask.evaluate.fast_probe import fit_probe
from unmask.evaluate.features import embed_labelled, labelled
from unmask.evaluate.handmade import handmade_features
from unmask.evaluate.inference import load
from unmask.files import write_text, written_aside
from unmask.objectives.classify import ClassifySection
from unmask.report.charts import few_labels_chart, mean_and_deviation
from unmask.report.log import METRICS_FILE, read_log
from unmask.report.progress import say, table
from unmask.teacher import HANDMADE

ARMS = ("pretrained", "probe", "attentive", "semi", "scratch", "taught", "cnn", "handmade")
"""Fine-tuned from `init`; a linear classifier on its features, or one that learns where to look (`attentive`);
fine-tuned on images without labels too; and what a person would do without `init`: train the same network from scratch,
also on what the last arm says of the images without labels (`taught`), train a small residual network (`convnet`), or
fit a linear classifier to features that nobody trained (`evaluate.handmade`)."""
SEMI = "cifar10-semi"
"""The recipe of how the arm `semi` differs from `pretrained`."""
CNN_STEPS = 1500
"""Updates of the residual network, for any number of labels."""
_RESULT = "result.json"


@dataclass(frozen=True)
class Result:
    arm: str
    """One of ARMS."""
    labels_per_class: int
    seed: int
    accuracy: float
    """On data.val (0..1), after the last update: val takes no part in any choice."""


def sweep_labels(
    recipe: str | os.PathLike[str],
    settings: Settings,
    *,
    labels: Sequence[int],
    seeds: Sequence[int] = (0, 1, 2),
    steps: int | None = None,
    arms: Sequence[str] = ARMS,
) -> list[Result]:
    """Accuracy of each of `arms`, for each number of labels per class and seed.

    `recipe` and `settings` as for `finetune`, with `init`, `data.train`, `data.val` and `output`. The seed draws the
    labelled images, the same for all arms, and everything else that is random in a run. A batch is never larger than
    the labelled set; its learning rate follows, as always. `steps`: updates of each run of the recipe, in place of
    `train.epochs`, which is in epochs of the images that are trained on; warmup keeps its share.

    Writes a run folder for each below `config.output`, and there `few-labels.csv` and `few-labels.png`. Called again,
    it goes on: finished runs are not repeated. Raises ConfigError when a setting is missing, DataError when a class has
    fewer images than labels are asked for, and what training raises.
    """
    config = load_config(recipe, settings)
    train, val = _sources(config, arms)
    if is_remote(config.output or ""):
        raise ConfigError(f"output={config.output}: a sweep needs a folder here; copy it when it has ended")
    folder = Path(config.output or "")
    subsets = {(n, seed): subset(train, n, seed) for n in sorted(set(labels)) for seed in sorted(set(seeds))}
    scratch = config.model_copy(update={"init": None})
    alone = _labelled_alone(scratch)
    trained = {
        "pretrained": _labelled_alone(config),
        "semi": _semi(config),
        "scratch": alone,
        "taught": _taught(scratch),
        "cnn": _cnn(alone),
    }
    given = config.data.unlabelled
    others = None if given is None else len(open_source(given, key="data.unlabelled", labels=False))
    results: list[Result] = []
    for arm in (arm for arm in ARMS if arm in arms):
        if arm in trained:
            for (n, seed), images in subsets.items():
                shown = len(images)
                if arm == "taught":
                    shown += len(train) - shown if others is None else others
                fewer = _with_labels(trained[arm], n, seed, shown, CNN_STEPS if arm == "cnn" else steps)
                output = folder / f"{arm}-{n}-labels-seed-{seed}"
                results.append(
                    Result(arm, n, seed, _finished(fewer.model_copy(update={"output": str(output)}), output))
                )
        else:
            results += _probes(arm, config, subsets, val, folder / "features")
    _write(results, folder, len(set(seeds)))
    return results


def _semi(config: Config) -> Config:
    """As `config`, but with the objective, the augmentation and the average of SEMI, unless it is of such a recipe."""
    if config.objective.unlabelled_images:
        return config
    recipe = load_config(SEMI)
    average = {"ema_decay": recipe.train.ema_decay, "ema_warmup": recipe.train.ema_warmup}
    augment = recipe.augment
    if config.data.dtype != "uint8" or config.model.channels not in (1, 3):
        augment = augment.model_copy(update={"policy": None})  # defined on 8-bit grey and colour
    train = config.train.model_copy(update=average)
    return config.model_copy(update={"objective": recipe.objective, "augment": augment, "train": train})


def _labelled_alone(config: Config) -> Config:
    """For the arms that do not look at images without labels, but for a recipe that does by itself."""
    if config.objective.unlabelled_images:
        return config
    changes: dict[str, Any] = {"data": config.data.model_copy(update={"unlabelled": None})}
    if config.objective.teachers:
        changes["objective"] = config.objective.model_copy(update={"teacher": ()})
    return config.model_copy(update=changes)


def _taught(config: Config) -> Config:
    """As `config`, from scratch, with handmade features as the teacher, unless it names one."""
    objective = config.objective if config.objective.teachers else ClassifySection(teacher=(HANDMADE,))
    return config.model_copy(update={"objective": objective})


def _cnn(config: Config) -> Config:
    """The residual network's own recipe, on the images of `config`, whose model tells their size and channels."""
    recipe = load_config("convnet")
    data = config.data.model_copy(update={"crop_scale": recipe.data.crop_scale})
    return recipe.model_copy(
        update={"model": config.model, "data": data, "engine": config.engine, "device": config.device}
    )


def _sources(config: Config, arms: Sequence[str]) -> tuple[Source, Source]:
    if not config.objective.labelled:
        raise ConfigError("sweep-labels needs a recipe of `unmask finetune`")
    needed = {"init": config.init} if {"pretrained", "probe", "attentive", "semi"} & {*arms} else {}
    needed |= {"data.train": config.data.train, "data.val": config.data.val}
    if missing := [f"{key}=…" for key, value in {**needed, "output": config.output}.items() if value is None]:
        raise ConfigError(f"sweep-labels needs {', '.join(missing)}")
    if config.data.val_share is not None:
        raise ConfigError("sweep-labels needs data.val=FOLDER: of a share each seed would be judged by other images")
    train = labelled(config.data.train or "", "data.train", config.data.dtype)
    val = labelled(config.data.val or "", "data.val", config.data.dtype)
    return train, with_classes_of(val, train.class_names or (), "data.val", "data.train")


def _with_labels(config: Config, labels_per_class: int, seed: int, images: int, steps: int | None) -> Config:
    """The config of one run on `images` labelled images; times given in epochs keep their share of the run."""
    accumulate = config.train.accumulate
    batch_size = max(accumulate, min(config.train.batch_size, images) // accumulate * accumulate)
    epochs = config.train.epochs if steps is None else steps * batch_size / images
    share = epochs / (config.train.epochs or 1)
    changes: dict[str, Mapping[str, Any]] = {
        "data": {"labels_per_class": labels_per_class},
        "optimizer": {"warmup_epochs": config.optimizer.warmup_epochs * share},
        "train": {
            "epochs": epochs,
            "batch_size": batch_size,
            "eval_every": epochs,  # only the last one counts
            "checkpoint_every": config.train.checkpoint_every * share,
        },
    }
    sections = {name: getattr(config, name).model_copy(update=values) for name, values in changes.items()}
    return config.model_copy(update={**sections, "seed": seed})


def _finished(config: Config, folder: Path) -> float:
    """Accuracy of the run in `folder`, which is brought to its end if it is not there yet."""
    path, wanted = folder / _RESULT, to_dict(config)
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["config"] == wanted:
            say(f"{folder} is finished: accuracy {found['accuracy']:.4f}")
            return found["accuracy"]
    run(config, folder)  # refuses a folder that holds another run
    evaluated = [row for row in read_log(folder / METRICS_FILE) if row["split"] == "val"]
    accuracy = float(evaluated[-1]["top1"])
    _write_result(path, {"accuracy": accuracy, "config": wanted})
    return accuracy


def _write_result(path: Path, result: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(result, indent=2) + "\n")


def _probes(
    arm: str, config: Config, subsets: Mapping[tuple[int, int], SubsetSource], val: Source, cache: Path
) -> Iterator[Result]:
    """Classifiers for all subsets, on features that are computed once for the images that any of them has."""
    parent = next(iter(subsets.values())).parent
    union = np.unique(np.concatenate([images.indices for images in subsets.values()]))
    images = SubsetSource(parent, union)
    network, classes = config.model, len(parent.class_names or ())
    if arm == "handmade":
        found = handmade_features(images, config, "describe data.train")
        val_features = handmade_features(val, config, "describe data.val")
    else:
        with load(config.init or "", engine=config.engine, device=config.device) as model:
            network, pool = model.config.model, "patches" if arm == "attentive" else None
            found = embed_labelled(model, images, cache, "embed data.train", pool=pool)
            val_features = embed_labelled(model, val, cache, "embed data.val", pool=pool)
    for (n, seed), drawn in subsets.items():
        features = found.rows(np.searchsorted(union, drawn.indices))
        if arm == "attentive":
            sizes = {"width": network.width, "queries": network.heads}
            result = judge_attentive(features, val_features, classes, **sizes, seed=seed)
        else:
            result = fit_probe(features, val_features, classes, seed=seed)
        yield Result(arm, n, seed, result.accuracy)


def _write(results: Sequence[Result], folder: Path, seeds: int) -> None:
    accuracy: dict[str, dict[int, list[float]]] = {}
    for result in results:
        accuracy.setdefault(result.arm, {}).setdefault(result.labels_per_class, []).append(result.accuracy)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with written_aside(folder / "few-labels.csv") as aside, csv_file(aside, []) as file:
            csv_rows(file, [["arm", "labels_per_class", "seed", "accuracy"]])
            csv_rows(file, ([r.arm, r.labels_per_class, r.seed, f"{r.accuracy:.6f}"] for r in results))
        title = f"mean of {seeds} seeds, ± one standard deviation" if seeds > 1 else "one seed"
        few_labels_chart(accuracy, folder / "few-labels.png", title=title)
    except OSError as error:
        raise UnmaskError(f"cannot write {folder}: {error.strerror or error}") from error
    rows: list[list[str]] = []
    for n in sorted({result.labels_per_class for result in results}):
        figures = [mean_and_deviation(accuracy[arm][n]) for arm in accuracy]
        rows.append([str(n), *(f"{mean:.1%} ± {100 * deviation:.1f}" for mean, deviation in figures)])
    table(rows, ["labels per class", *accuracy])
    say(f"{folder / 'few-labels.csv'}, {folder / 'few-labels.png'}: accuracy, mean and standard deviation over seeds")
