"""Recipes, commands and runs of earlier versions say the same as they did."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from unmask.config.load import check_config, load_config, to_dict
from unmask.config.schema import Config, ObjectiveSection
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
        ("task: pretrain\nmodel:\n  mask_ratio: 0.6\n  norm_pix_loss: false", MaeSection(0.6, False)),
        ("model: {mask_ratio: 0.6}", MaeSection(0.6)),
        ("task: finetune\ntrain: {loss: bce}", ClassifySection("bce")),
        ("task: finetune\ndata: {class_weights: balanced}", ClassifySection(class_weights="balanced")),
        ("task: finetune\ndata: {class_weights: [1, 2]}", ClassifySection(class_weights=(1, 2))),
        ("task: finetune\ntrain: {probe: true}", LinearProbeSection()),
        ("task: finetune\ntrain: {probe: false}", ClassifySection()),
        ("task: finetune\nmodel: {mask_ratio: 0.6}\ntrain: {loss: bce}", ClassifySection("bce")),  # had no effect
        ("task: pretrain\ntrain: {loss: bce}\ndata: {class_weights: balanced}", MaeSection()),
        ("objective: classify", ClassifySection()),
        ("objective: {name: classify, loss: bce}", ClassifySection("bce")),
        ("task: finetune\nobjective: linear_probe", LinearProbeSection()),
        ("task: finetune\nobjective: {class_weights: balanced}", ClassifySection(class_weights="balanced")),
    ],
)
def test_a_recipe(tmp_path: Path, text: str, objective: ObjectiveSection) -> None:
    assert load_config(written(tmp_path, text)).objective == objective
