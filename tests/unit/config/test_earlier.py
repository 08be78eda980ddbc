"""Recipes, commands and runs of earlier versions say the same as they did."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from unmask.checkpoint.folder import Checkpoint
from unmask.checkpoint.resume import check_same_config
from unmask.config.load import check_config, load_config, to_dict
from unmask.config.schema import ObjectiveSection
from unmask.engines.base import EngineState
from unmask.errors import ConfigError
from unmask.objectives.classify import ClassifySection
from unmask.objectives.linear_probe import LinearProbeSection
from unmask.objectives.mae import MaeSection

EVERY_KEY: dict[str, Any] = {
    "task": "pretrain",
    "engine": "torch",
    "device": "cpu",
    "seed": 3,
    "output": None,
    "init": None,
    "model": {
        "image_size": [32, 32],
        "patch_size": 8,
        "channels": 3,
        "width": 64,
        "depth": 2,
        "heads": 4,
        "mlp_ratio": 4.0,
        "mask_ratio": 0.6,
        "norm_pix_loss": False,
        "decoder_width": 32,
        "decoder_depth": 1,
        "decoder_heads": 4,
        "num_classes": None,
        "pool": "mean",
        "drop_path": 0.0,
    },
    "data": {"train": "photos", "val": None, "labels_per_class": None, "class_weights": None, "flip": 0.25},
    "augment": {"policy": None, "mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0},
    "optimizer": {"base_lr": 0.001, "frozen_blocks": 0},
    "train": {"epochs": 5.0, "batch_size": 64, "loss": "cross_entropy", "probe": False, "ema_decay": None},
}
"""What the checkpoint of an earlier version has of its configuration: all keys of that time, used or not."""


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def refusal(recipe: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(recipe, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def changed(**sections: Any) -> dict[str, Any]:
    """`EVERY_KEY` with other values."""
    values = deepcopy(EVERY_KEY)
    for name, value in sections.items():
        values[name] = {**values[name], **value} if isinstance(value, dict) else value
    return values


@pytest.mark.parametrize(
    ("text", "objective"),
    [
        ("task: pretrain", MaeSection()),
        ("task: finetune", ClassifySection()),
        ("seed: 1", MaeSection()),
        (
            "task: pretrain\nmodel:\n  mask_ratio: 0.6\n  norm_pix_loss: false",
            MaeSection(mask_ratio=0.6, norm_pix_loss=False),
        ),
        ("model: {mask_ratio: 0.6}", MaeSection(mask_ratio=0.6)),
        ("task: finetune\ntrain: {loss: bce}", ClassifySection(loss="bce")),
        ("task: finetune\ndata: {class_weights: balanced}", ClassifySection(class_weights="balanced")),
        ("task: finetune\ndata: {class_weights: [1, 2]}", ClassifySection(class_weights=(1, 2))),
        ("task: finetune\ntrain: {probe: true}", LinearProbeSection()),
        ("task: finetune\ntrain: {probe: false}", ClassifySection()),
        ("task: finetune\nmodel: {mask_ratio: 0.6}\ntrain: {loss: bce}", ClassifySection(loss="bce")),  # had no effect
        ("task: pretrain\ntrain: {loss: bce}\ndata: {class_weights: balanced}", MaeSection()),
        ("objective: classify", ClassifySection()),
        ("objective: {name: classify, loss: bce}", ClassifySection(loss="bce")),
        ("task: finetune\nobjective: linear_probe", LinearProbeSection()),
        ("task: finetune\nobjective: {class_weights: balanced}", ClassifySection(class_weights="balanced")),
    ],
)
def test_a_recipe(tmp_path: Path, text: str, objective: ObjectiveSection) -> None:
    assert load_config(written(tmp_path, text)).objective == objective


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: pretrain\nmodel:\n  mask_ratio: 2", ":3: objective.mask_ratio: input should be less than 1, not 2"),
        ("task: finetune\ntrain:\n  loss: hinge", ":3: objective.loss: "),
        ("task: finetune\ndata:\n  class_weights: even", ":3: objective.class_weights: "),
        ("seed: 1\ntask: sleep", ":2: task='sleep' is neither pretrain nor finetune"),
        ("task: [pretrain]", ":1: task=['pretrain'] is neither pretrain nor finetune"),
        ("objective: classify\ntask: pretrain", ":2: objective.name=classify is not for task=pretrain"),
        ("task: pretrain\ntrain:\n  probe: true", ":3: train.probe is not for objective.name=mae"),
        (
            "model:\n  mask_ratio: 0.6\nobjective:\n  mask_ratio: 0.5",
            ":2: model.mask_ratio is now objective.mask_ratio, which is set to another value",
        ),
        ("objective: 3", ":1: objective: an objective is a name, or keys with `name` among them"),
    ],
)
def test_a_mistake_is_answered_with_the_line_of_the_earlier_key(tmp_path: Path, text: str, message: str) -> None:
    recipe = written(tmp_path, text)
    assert f"{recipe}{message}" in refusal(recipe)


def test_the_same_said_twice_is_no_mistake(tmp_path: Path) -> None:
    text = "task: pretrain\nobjective: {name: mae, mask_ratio: 0.6}\nmodel: {mask_ratio: 0.6}"
    assert load_config(written(tmp_path, text)).objective == MaeSection(mask_ratio=0.6)


@pytest.mark.parametrize("recipe", ["task: pretrain\nmodel: {mask_ratio: 0.6}", "objective: {mask_ratio: 0.6}"])
@pytest.mark.parametrize("key", ["model.mask_ratio", "objective.mask_ratio"])
def test_the_command_line_wins_by_either_name(tmp_path: Path, recipe: str, key: str) -> None:
    path = written(tmp_path, recipe)
    assert load_config(path, [f"{key}=0.5"]).objective == MaeSection(mask_ratio=0.5)
    assert load_config(path, {key: 0.5}).objective == MaeSection(mask_ratio=0.5)
    assert "command line: objective.mask_ratio: " in refusal(path, f"{key}=2")


def test_every_earlier_key_on_the_command_line(tmp_path: Path) -> None:
    empty = written(tmp_path, "seed: 1")
    tuned = load_config(empty, ["task=finetune", "data.class_weights=balanced", "train.loss=cross_entropy"])
    assert tuned.objective == ClassifySection(class_weights="balanced")
    assert load_config(empty, ["task=finetune", "train.loss=bce"]).objective == ClassifySection(loss="bce")
    assert load_config(empty, ["objective=classify", "train.probe=true"]).objective == LinearProbeSection()
    assert load_config(empty, ["model.norm_pix_loss=false"]).objective == MaeSection(norm_pix_loss=False)
    assert "command line: task='sleep' is neither" in refusal(empty, "task=sleep")
    labelled = written(tmp_path, "objective: classify")
    assert "command line: objective.name=classify is not for task=pretrain" in refusal(labelled, "task=pretrain")


def test_an_objective_is_named_on_the_command_line(tmp_path: Path) -> None:
    recipe = written(tmp_path, "objective: classify")
    assert load_config(recipe, ["objective=mae"]).objective == MaeSection()
    assert load_config(recipe, ["objective.name=linear_probe"]).objective == LinearProbeSection()
    assert load_config(recipe, ["objective.loss=bce"]).objective == ClassifySection(loss="bce")
    assert "objective.loss: unknown key" in refusal(recipe, "objective=mae", "objective.loss=bce")


@pytest.mark.parametrize(
    ("values", "objective"),
    [
        (EVERY_KEY, MaeSection(mask_ratio=0.6, norm_pix_loss=False)),
        (changed(task="finetune"), ClassifySection()),
        (changed(task="finetune", train={"loss": "bce"}), ClassifySection(loss="bce")),
        (changed(task="finetune", data={"class_weights": [1.0, 2.0]}), ClassifySection(class_weights=(1.0, 2.0))),
        (changed(task="finetune", train={"probe": True}), LinearProbeSection()),
    ],
)
def test_the_configuration_of_an_earlier_run(values: dict[str, Any], objective: ObjectiveSection) -> None:
    before = deepcopy(values)
    config = check_config(values)
    assert values == before, "the values are left as they are"
    assert config.objective == objective
    assert check_config(to_dict(config)) == config
    assert (config.seed, config.model.width, config.data.flip, config.train.epochs) == (3, 64, 0.25, 5)


def test_an_earlier_run_goes_on_as_the_same_run() -> None:
    checkpoint = Checkpoint(1, EngineState({}), {"config": EVERY_KEY})
    same = check_config(EVERY_KEY)
    check_same_config(same, checkpoint, Path("run"))
    other = same.model_copy(update={"objective": MaeSection(mask_ratio=0.75, norm_pix_loss=False)})
    with pytest.raises(ConfigError, match=r"another run \(objective.mask_ratio: 0.6 -> 0.75\)"):
        check_same_config(other, checkpoint, Path("run"))
