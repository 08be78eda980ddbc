"""`objective.head=auto`: the network is fine-tuned only where that is better than its linear probe."""

from __future__ import annotations

import dataclasses
import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import unmask
import unmask.trial
from ranks import ENGINES
from runs import TINY_MODEL
from unmask.config.load import load_config
from unmask.data.sources import to_source
from unmask.errors import ConfigError
from unmask.evaluate.fast_probe import fit_probe
from unmask.evaluate.features import Features
from unmask.interchange import read_model, write_model
from unmask.train import train
from unmask.trial import HALVES, _set_aside, with_head

SMALL = {key: yaml.safe_load(value) for key, _, value in (setting.partition("=") for setting in TINY_MODEL)}
ENGINE = "torch" if find_spec("torch") else "mindspore"
BOTH = [ENGINES[0], pytest.param("mindspore", marks=[*ENGINES[1].marks, pytest.mark.campaign])]


class Greys:
    """Pictures of noise, those of one class a little brighter."""

    classes = ("dark", "bright")

    def __init__(self, count: int, seed: int = 0, brighter: float = 10) -> None:
        rng = np.random.default_rng(seed)
        self.targets = [number % 2 for number in range(count)]
        noise = rng.integers(0, 100, (count, 28, 28, 1))
        self.pictures = (noise + brighter * np.array(self.targets)[:, None, None, None]).astype(np.uint8)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        return self.pictures[number], self.targets[number]


def start_of(folder: Path, engine: str = ENGINE) -> Path:
    settings = {**SMALL, "train.epochs": 1, "train.batch_size": 8, "optimizer.warmup_epochs": 0, "engine": engine}
    unmask.pretrain("mae-vit-tiny", {**settings, "output": folder / "mae"}, train=Greys(8))
    return folder / "mae"


@pytest.fixture(scope="module")
def mae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return start_of(tmp_path_factory.mktemp("start"))


class Halves(Greys):
    """The left or the right half is brighter."""

    def __init__(self, count: int) -> None:
        super().__init__(count, brighter=0)
        self.pictures //= 5
        for number, right in enumerate(self.targets):
            self.pictures[number, :, 14 * right : 14 * right + 14] += 100


@pytest.fixture(scope="module")
def blind(mae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that does not know where its patches are: the mean of them cannot tell left from right."""
    found = read_model(mae)
    weights = {n: np.zeros_like(w) if n == "pos_embed" else w for n, w in found.weights.items()}
    folder = tmp_path_factory.mktemp("blind") / "mae"
    write_model("transformers", folder, dataclasses.replace(found, weights=weights))
    return folder


def settings(init: Path | str | None, output: Path, **changed: Any) -> dict[str, Any]:
    short = {"train.batch_size": 20, "train.epochs": 25, "optimizer.base_lr": 0.05, "optimizer.warmup_epochs": 1}
    plain = {"augment.mixup": 0, "augment.cutmix": 0, "augment.policy": None, "augment.erase_prob": 0}
    crop = {"data.crop_scale": [1.0, 1.0], "data.flip": 0, "model.drop_path": 0.0, "augment.label_smoothing": 0.0}
    return {**SMALL, **short, **plain, **crop, "init": init, "output": output, "engine": ENGINE, **changed}


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("engine", BOTH)
def test_without_gain_the_network_stays_as_it_is_with_the_probe_as_its_head(
    engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    init, output, images, val = start_of(tmp_path, engine), tmp_path / "run", Greys(20), Greys(30, seed=1)
    mine = settings(init, output, engine=engine) | {"optimizer.base_lr": 0, "optimizer.min_lr": 0}
    run = unmask.finetune("finetune-vit-tiny", mine, train=images, val=val)
    out = capsys.readouterr().out
    assert "of 20 labelled images set aside, the linear probe has" in out
    assert "the network stays as it is, with the probe as its head" in out
    found = json.loads((output / "trial.json").read_text())
    assert found["probe_right"] == found["fine_tuned_right"], "fine-tuning at a learning rate of zero is the probe"
    assert not (output / "trial").exists()
    assert [(row["step"], row["split"]) for row in log_of(output)] == [(0, "val")]
    sources = [to_source(each, key="x", labels=True, dtype="uint8") for each in (images, val)]
    with run.load() as model:
        features = [Features(model.embed(each), np.asarray(each.labels)) for each in sources]
        accuracy = model.evaluate(val)["top1"]
    assert accuracy == run.metrics["val_top1"] == pytest.approx(fit_probe(*features, 2).accuracy)
    before = {path.name: path.read_bytes() for path in (output / "checkpoints" / "step-00000000").iterdir()}
    again = unmask.finetune("finetune-vit-tiny", mine, train=images, val=val)
    out = capsys.readouterr().out
    assert "trial" not in out
    assert "0 steps, resumed after step 0" in out
    assert again.metrics == run.metrics
    assert len(log_of(output)) == 1
    assert {path.name: path.read_bytes() for path in (output / "checkpoints" / "step-00000000").iterdir()} == before


def test_fine_tuning_that_is_better_is_done_and_a_trial_that_was_stopped_goes_on(
    blind: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = Halves(40)
    whole = unmask.finetune("finetune-vit-tiny", settings(blind, tmp_path / "whole"), train=images)
    assert "it is worth it" in capsys.readouterr().out
    found = json.loads((tmp_path / "whole" / "trial.json").read_text())
    assert found["fine_tuned_right"] > found["probe_right"] + 5
    assert len(log_of(whole.folder)) == 50, "of the trial nothing is in the log"

    def stopped(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(unmask.trial, "load", stopped)
        with pytest.raises(KeyboardInterrupt):
            unmask.finetune("finetune-vit-tiny", settings(blind, tmp_path / "parts"), train=images)
    parts = unmask.finetune("finetune-vit-tiny", settings(blind, tmp_path / "parts"), train=images)
    assert "in " + str(tmp_path / "parts" / "trial" / "1-probe") in capsys.readouterr().out
    for name in ("metrics.jsonl", "checkpoints/step-00000050/weights.safetensors"):
        assert (parts.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_one_image_a_class_leaves_the_network_as_it_is(
    mae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unmask.finetune("finetune-vit-tiny", settings(mae, tmp_path / "run"), train=Greys(2))
    assert "one image a class, or one group, none to set aside: the network stays as it is" in capsys.readouterr().out
    assert unmask.load(tmp_path / "run").evaluate(Greys(2))["top1"] == 1


@pytest.mark.parametrize(("count", "classes", "patients"), [(60, 2, 15), (700, 4, 90), (90, 3, 7)])
@pytest.mark.parametrize("seed", range(3))
def test_images_that_belong_together_are_on_one_side(count: int, classes: int, patients: int, seed: int) -> None:
    rng, images = np.random.default_rng(seed), Greys(count)
    groups, labels = rng.integers(0, patients, count), rng.integers(0, classes, count)
    images.classes, images.targets = tuple(map(str, range(classes))), labels.tolist()
    held = _set_aside(to_source(images, key="x", labels=True, dtype="uint8"), groups, seed)
    assert len(held) == (2 if count < HALVES else 1)
    for rows in held:
        rest = np.setdiff1d(np.arange(count), rows)
        assert not {*groups[rows]} & {*groups[rest]}
        assert {*labels[rest]} == {*labels}
        assert len(rows) == pytest.approx(count / (2 if count < HALVES else 5), rel=0.35)
    assert sum(map(len, held)) == len(np.unique(np.concatenate(held)))


@pytest.mark.parametrize("count", [40, 600])
def test_a_class_of_one_group_is_not_judged(count: int) -> None:
    groups = np.arange(count)
    groups[1::2] = count  # of the second class all
    source = to_source(Greys(count), key="x", labels=True, dtype="uint8")
    for rows in _set_aside(source, groups, 0):
        assert len(rows) > count // 12
        assert not any(source.labels[rows])


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("p{patient:02}_{n}.png", "^[^/]*/p[0-9]+"),
        ("{n}-of-{patient}.png", "of-([0-9]+)"),
        ("p{patient}/{n}.png", "/p[0-9]+/"),
    ],
)
def test_a_trial_keeps_the_groups_of_val_group(
    name: str, group: str, mae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three pictures of each patient, which are nearly the same, none is judged that another was learnt from."""
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for patient in range(24):
        picture = rng.integers(0, 200, (28, 28))
        for n in range(3):
            path = tmp_path / "scans" / "ab"[patient % 2] / name.format(patient=patient, n=n)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((picture + n).astype(np.uint8)).save(path)
    learnt: list[set[str]] = []

    def trained(config: Any, folder: Path, **given: Any) -> Any:
        learnt.append({given["images"].name(row) for row in range(len(given["images"]))})
        return train(config, folder, **given)

    monkeypatch.setattr(unmask.trial, "train", trained)
    mine = settings(mae, tmp_path / "run", **{"data.val": "25%", "data.val_group": group, "train.epochs": 1})
    unmask.finetune("finetune-vit-tiny", mine, train=str(tmp_path / "scans"))
    halves = learnt[::2]  # by the probe and by fine-tuning
    of = [{re.findall(group, path)[0] for path in names} for names in halves]
    assert len(of) == 2
    assert not of[0] & of[1], "what one half learns from is what the other is judged by"
    assert [len(names) for names in halves] == [3 * len(groups) for groups in of]
    assert json.loads((tmp_path / "run" / "trial.json").read_text())["set_aside"] == 3 * len(of[0] | of[1])


@pytest.mark.parametrize(
    "changed",
    [{"init": None}, {"model.num_classes": 3}, {"objective.loss": "bce"}, {"objective.head": "drawn"}, {}],
    ids=str,
)
def test_there_is_no_trial_where_it_would_not_do(changed: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    if not changed:
        monkeypatch.setattr(unmask.trial, "MOST", 19)
    config = load_config("finetune-vit-tiny", settings("not read", tmp_path) | changed)
    images = to_source(Greys(20), key="x", labels=True, dtype="uint8")
    decided = with_head(config, tmp_path, images=images)
    assert (decided.objective.head, decided.train.epochs) == ("drawn", 25)


def test_of_several_processes_none_tries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    config = load_config("finetune-vit-tiny", settings("not read", tmp_path))
    images = to_source(Greys(20), key="x", labels=True, dtype="uint8")
    with pytest.raises(ConfigError, match=r"in one process: start one, or set objective\.head=probe or drawn"):
        with_head(config, tmp_path, images=images)


def test_no_epochs_are_for_the_probe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.epochs=0 trains nothing: that is for objective\.head=probe"):
        load_config("finetune-vit-tiny", settings("not read", tmp_path, **{"train.epochs": 0}))
