"""What pretraining is worth when labels are few: accuracy against their number, over several seeds."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unmask.api import run
from unmask.checkpoint.resume import differences, identity
from unmask.config.load import Settings, load_config, to_dict
from unmask.config.schema import Config
from unmask.data.sources import Source, open_source
from unmask.data.sources.files import is_remote
from unmask.data.sources.same_classes import with_classes_of
from unmask.data.sources.subset import SubsetSource, subset, without
from unmask.data.spreadsheets import csv_file, csv_rows
from unmask.errors import CheckpointError, ConfigError, DataError, UnmaskError
from unmask.evaluate.attentive import judge_attentive
from unmask.evaluate.fast_probe import fit_probe
from unmask.evaluate.features import embed_labelled, labelled
from unmask.evaluate.handmade import Handmade
from unmask.evaluate.inference import load
from unmask.files import check_free, parse_json, read_bytes, write_text, written_aside
from unmask.interchange import read_model
from unmask.report.charts import few_labels_chart, mean_and_deviation
from unmask.report.log import METRICS_FILE, read_log
from unmask.report.progress import say, table

ARMS = ("pretrained", "probe", "attentive", "semi", "scratch", "taught", "cnn", "handmade")
"""Fine-tuned from `init`; a linear classifier on its features, or one that learns where to look (`attentive`);
fine-tuned on images without labels too; and what a person would do without `init`: train the same network from scratch,
also on what the last arm says of the images without labels (`taught`), train a small residual network (`convnet`), or
fit a linear classifier to features that no network learned (`evaluate.handmade`)."""
SEMI = "cifar10-semi"
"""The recipe of how the arm `semi` differs from `pretrained`."""
CNN_STEPS = 1500
"""Fewest updates of the residual network, which gets its recipe's epochs where these are more: fewer than 3,000 on the
5,000 labelled images of CIFAR-10 made it look 8 points worse than it is (docs/log.md)."""
_FROM_INIT = {"pretrained", "probe", "attentive", "semi"}
_TABLE, _CURVE, _RESULT = "few-labels.csv", "few-labels.png", "result.json"
_CHECKSUM = "checksum"
_COLUMNS = ("arm", "labels_per_class", "seed", "accuracy")
"""_RESULT is in the folder of each arm, number of labels and seed; the others are made of all of them."""


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

    Writes a folder for each below `config.output`, and there `few-labels.csv` and `few-labels.png`. Called again, it
    goes on: what is finished is not repeated, and what earlier calls found for other arms, labels and seeds stays in
    the table and the curve. Raises ConfigError when a setting is missing or is not that of the results in the folder,
    DataError when a class has fewer images than labels are asked for or when the images are others, and what training
    raises.
    """
    config = load_config(recipe, settings)
    train, val = _sources(config, arms)
    if is_remote(config.output or ""):
        raise ConfigError(f"output={config.output}: a sweep needs a folder here; copy it when it has ended")
    folder = Path(config.output or "")
    given = config.data.unlabelled
    others = None if given is None else open_source(given, key="data.unlabelled", labels=False)
    images = {"data.train": train, "data.val": val, "data.unlabelled": others}
    sweep = _identity(config, steps, images, arms)
    _check_same(sweep, config, folder)
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
    results: list[Result] = []
    for arm in (arm for arm in ARMS if arm in arms):
        if arm in trained:
            for (n, seed), drawn in subsets.items():
                shown = len(drawn)
                if arm == "taught":
                    shown += len(train) - shown if others is None else len(others)
                fewer = _with_labels(trained[arm], n, seed, shown, _cnn_steps(shown) if arm == "cnn" else steps)
                output = folder / _folder(arm, n, seed)
                results.append(_finished(arm, fewer.model_copy(update={"output": str(output)}), output, sweep))
        else:
            results += _probes(arm, config, subsets, val, folder, sweep)
    _write([Result(**{key: one[key] for key in _COLUMNS}) for one in _results(folder)], folder)
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
        changes["objective"] = config.objective.model_copy(update={"teacher": (), "teacher_share": 0.0})
    return config.model_copy(update=changes)


def _taught(config: Config) -> Config:
    """As `config`, from scratch, with handmade features as the teacher, unless it names one."""
    if config.objective.teachers:
        return config
    recipe = load_config("few-labels")
    data = config.data.model_copy(update={"eval_crop": recipe.data.eval_crop})
    return config.model_copy(update={"objective": recipe.objective, "data": data})


def _cnn(config: Config) -> Config:
    """The residual network's own recipe, on the images of `config`, whose model tells their size and channels."""
    recipe = load_config("convnet")
    data = config.data.model_copy(update={"crop_scale": recipe.data.crop_scale})
    return recipe.model_copy(
        update={"model": config.model, "data": data, "engine": config.engine, "device": config.device}
    )


def _cnn_steps(images: int) -> int:
    train = load_config("convnet").train
    return max(CNN_STEPS, round(train.epochs * images / train.batch_size))


def _sources(config: Config, arms: Sequence[str]) -> tuple[Source, Source]:
    if not config.objective.labelled:
        raise ConfigError("sweep-labels needs a recipe of `unmask finetune`")
    needed = {"init": config.init} if _FROM_INIT & {*arms} else {}
    needed |= {"data.train": config.data.train, "data.val": config.data.val}
    if missing := [f"{key}=…" for key, value in {**needed, "output": config.output}.items() if value is None]:
        raise ConfigError(f"sweep-labels needs {', '.join(missing)}")
    if config.data.val_share is not None:
        raise ConfigError("sweep-labels needs data.val=FOLDER: of a share each seed would be judged by other images")
    train = labelled(config.data.train or "", "data.train", config.data.dtype)
    if config.data.exclude is not None:
        train = without(train, config.data.exclude)
    val = labelled(config.data.val or "", "data.val", config.data.dtype)
    return train, with_classes_of(val, train.class_names or (), "data.val", "data.train")


def _folder(arm: str, labels_per_class: int, seed: int) -> str:
    return f"{arm}-{labels_per_class}-labels-seed-{seed}"


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


def _identity(
    config: Config, steps: int | None, images: Mapping[str, Source | None], arms: Sequence[str]
) -> dict[str, Any]:
    """What all results of a sweep have in common."""
    return {
        "settings": to_dict(_drawn(config, None, 0)),
        "steps": steps,
        "init": _weights_of(config.init or "") if _FROM_INIT & {*arms} else None,
        "images": {key: None if source is None else identity(source) for key, source in images.items()},
    }


def _weights_of(init: str) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(read_model(init).weights.items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor).data)
    return digest.hexdigest()


def _drawn(config: Config, labels_per_class: int | None, seed: int) -> Config:
    data = config.data.model_copy(update={"labels_per_class": labels_per_class})
    return config.model_copy(update={"data": data, "seed": seed})


def _check_same(sweep: Mapping[str, Any], config: Config, folder: Path) -> None:
    """Results of other settings or images are neither overwritten nor drawn into one curve with those to come."""
    if not (results := _results(folder)):
        check_free(folder / _TABLE)
    for before in (result["sweep"] for result in results):
        changed = differences(_drawn(config, None, 0), before["settings"])
        if before["steps"] != sweep["steps"]:
            changed.append(f"--steps: {before['steps']} -> {sweep['steps']}")
        if None not in (before["init"], sweep["init"]) and before["init"] != sweep["init"]:
            changed.append("init: other weights")
        if changed:
            raise ConfigError(
                f"{folder} holds results of another sweep ({'; '.join(changed)}); choose another output=FOLDER"
            )
        for key, now in sweep["images"].items():
            if before["images"][key] != now:
                raise DataError(
                    f"{key} is not what the results in {folder} were found on: other images, names, labels or "
                    "contents; restore it, or choose another output=FOLDER"
                )


def _results(folder: Path) -> list[dict[str, Any]]:
    """All that are in the folder of a sweep, in the order of the table."""
    found = [_read(path) for path in folder.glob(f"*/{_RESULT}")]
    return sorted(found, key=lambda one: (ARMS.index(one["arm"]), one["labels_per_class"], one["seed"]))


def _read(path: Path) -> dict[str, Any]:
    with suppress(CheckpointError):
        found = parse_json(path, read_bytes(path))
        if found.pop(_CHECKSUM, None) == _checksum(found):
            return found
    raise CheckpointError(f"{path} is damaged, or of an earlier version; remove it, and the same command makes it anew")


def _checksum(result: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()


def _known(path: Path, settings: Mapping[str, Any]) -> Result | None:
    """What is there already, if it is of these settings."""
    if not path.exists():
        return None
    found = _read(path)
    if found["settings"] != settings:
        return None
    say(f"{path.parent} is finished: accuracy {found['accuracy']:.4f}")
    return Result(**{key: found[key] for key in _COLUMNS})


def _write_result(path: Path, result: Result, settings: Mapping[str, Any], sweep: Mapping[str, Any]) -> Result:
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {**asdict(result), "settings": settings, "sweep": sweep}
    write_text(path, json.dumps({**found, _CHECKSUM: _checksum(found)}, indent=2) + "\n")
    return result


def _finished(arm: str, config: Config, folder: Path, sweep: Mapping[str, Any]) -> Result:
    """That of the run in `folder`, which is brought to its end if it is not there yet."""
    path, settings = folder / _RESULT, to_dict(config)
    if (known := _known(path, settings)) is not None:
        return known
    run(config, folder)  # refuses a folder that holds another run
    evaluated = [row for row in read_log(folder / METRICS_FILE) if row["split"] == "val"]
    result = Result(arm, config.data.labels_per_class or 0, config.seed, float(evaluated[-1]["top1"]))
    return _write_result(path, result, settings, sweep)


def _probes(
    arm: str,
    config: Config,
    subsets: Mapping[tuple[int, int], SubsetSource],
    val: Source,
    folder: Path,
    sweep: Mapping[str, Any],
) -> Iterator[Result]:
    """Classifiers for all subsets, on features that are computed once for the images that any of them has."""
    places = {each: folder / _folder(arm, *each) / _RESULT for each in subsets}
    settings = {each: to_dict(_drawn(config, *each)) for each in subsets}
    known = {each: _known(places[each], settings[each]) for each in subsets}
    yield from (result for result in known.values() if result is not None)
    subsets = {each: images for each, images in subsets.items() if known[each] is None}
    if not subsets:
        return
    parent = next(iter(subsets.values())).parent
    union = np.unique(np.concatenate([images.indices for images in subsets.values()]))
    images = SubsetSource(parent, union)
    network, classes = config.model, len(parent.class_names or ())
    handmade = Handmade(parent, config) if arm == "handmade" else None
    if handmade is not None:
        found, val_features = (
            handmade.features(images, "describe data.train"),
            handmade.features(val, "describe data.val"),
        )
    else:
        with load(config.init or "", engine=config.engine, device=config.device) as model:
            network, pool = model.config.model, "patches" if arm == "attentive" else None
            found = embed_labelled(model, images, folder / "features", "embed data.train", pool=pool)
            val_features = embed_labelled(model, val, folder / "features", "embed data.val", pool=pool)
    for (n, seed), drawn in subsets.items():
        features = found.rows(np.searchsorted(union, drawn.indices))
        if handmade is not None:
            accuracy = handmade.fit(features, classes).accuracy(val_features, np.flatnonzero(val_features.labels >= 0))
        elif arm == "attentive":
            sizes = {"width": network.width, "queries": network.heads}
            accuracy = judge_attentive(features, val_features, classes, **sizes, seed=seed).accuracy
        else:
            accuracy = fit_probe(features, val_features, classes, seed=seed).accuracy
        yield _write_result(places[n, seed], Result(arm, n, seed, accuracy), settings[n, seed], sweep)


def _write(results: Sequence[Result], folder: Path) -> None:
    accuracy: dict[str, dict[int, list[float]]] = {}
    for result in results:
        accuracy.setdefault(result.arm, {}).setdefault(result.labels_per_class, []).append(result.accuracy)
    counts = sorted({len(values) for by_labels in accuracy.values() for values in by_labels.values()})
    several = " to ".join(str(count) for count in sorted({counts[0], counts[-1]}))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with written_aside(folder / _TABLE) as aside, csv_file(aside, []) as file:
            csv_rows(file, [_COLUMNS])
            csv_rows(file, ([r.arm, r.labels_per_class, r.seed, f"{r.accuracy:.6f}"] for r in results))
        title = "one seed" if counts[-1] == 1 else f"mean of {several} seeds, ± one standard deviation"
        few_labels_chart(accuracy, folder / _CURVE, title=title)
    except OSError as error:
        raise UnmaskError(f"cannot write {folder}: {error.strerror or error}") from error
    rows: list[list[str]] = []
    for n in sorted({result.labels_per_class for result in results}):
        figures = [mean_and_deviation(each[n]) if n in each else None for each in accuracy.values()]
        rows.append([str(n), *("" if one is None else f"{one[0]:.1%} ± {100 * one[1]:.1f}" for one in figures)])
    table(rows, ["labels per class", *accuracy])
    say(f"{folder / _TABLE}, {folder / _CURVE}: accuracy, mean and standard deviation over seeds")
