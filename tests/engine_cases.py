"""A tiny model and batches of seeded noise: what engines are tested with."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from unmask import plugins
from unmask.config.load import check_config
from unmask.config.schema import Config, ModelConfig, objective_section
from unmask.data.augment.mixing import class_targets
from unmask.data.batch import Arrays, Batch, Needs
from unmask.data.rng import Op, generator
from unmask.engines.base import Engine, EngineState
from unmask.evaluate.measure import measure
from unmask.objectives.base import Objective, create_objective

DEVICE = os.environ.get("UNMASK_TEST_DEVICE", "cpu")
"""`benchmarks/gpu.sh` runs the contract suite on a card."""
TINY = {
    "image_size": [16, 24],
    "patch_size": 8,
    "width": 32,
    "depth": 1,
    "heads": 4,
    "decoder_width": 16,
    "decoder_depth": 1,
    "decoder_heads": 2,
    "mask_ratio": 0.5,
}
"""MindSpore's compiler takes its seconds by the block."""


def make_config(task: str = "pretrain", **sections: Any) -> Config:
    model = TINY | ({"num_classes": 7} if task == "finetune" else {}) | sections.pop("model", {})
    return check_config({"task": task, "device": DEVICE, "model": model, **sections})


def objective_of(name: str, **model: Any) -> Objective:
    """An objective with its defaults, of a model with these fields."""
    kind = plugins.find(plugins.OBJECTIVES, name)
    return kind(ModelConfig.model_validate(model), kind.Section())


def make_config_of(objective: str, **sections: Any) -> Config:
    """The tiny model under any objective, at its own settings but for what the model's size asks."""
    model = TINY | ({"num_classes": 7} if objective_section(objective).labelled else {}) | sections.pop("model", {})
    return check_config({"objective": {"name": objective}, "device": DEVICE, "model": model, **sections})


def start(config: Config, seed: int = 0) -> EngineState:
    """What a run of this configuration begins with."""
    objective = create_objective(config)
    return EngineState(dict(objective.initial_weights(seed)), buffers=dict(objective.initial_buffers(seed)))


def make_batch(config: Config, size: int = 6, index: int = 0, *, training: bool = True) -> Batch:
    model, needs = config.model, create_objective(config).needs(training=training)
    rng = np.random.default_rng(index)
    views = () if needs.pictures == 1 else (needs.pictures,)
    rows = [_stacked([_row(needs, index + i, view) for view in range(needs.augmented)]) for i in range(size)]
    inputs = _stacked(rows)
    if needs.augmented == 1:
        inputs = {name: array[:, 0] for name, array in inputs.items()}
    inputs |= {} if needs.step is None else needs.step(0, index)
    labels = rng.integers(0, model.num_classes or 1, size)
    if needs.targets is not None:
        inputs["targets"] = class_targets(labels, model.num_classes or 1, config.augment.label_smoothing)
    return Batch(
        images=rng.integers(0, 256, (size, *views, *model.image_size, model.channels), dtype=np.uint8),
        index=np.arange(index, index + size),
        inputs=inputs,
        labels=None if needs.targets is None else labels,
    )


def _row(needs: Needs, index: int, view: int) -> Arrays:
    def draw(op: Op) -> np.random.Generator:
        return generator(0, 0, index, op, view)

    return {name: array for make in needs.rows for name, array in make(draw).items()}


def _stacked(arrays: list[Arrays]) -> Arrays:
    return {name: np.stack([each[name] for each in arrays]) for name in arrays[0]}


def measured(engine: Engine, config: Config, batch: Batch) -> dict[str, float]:
    """Mean figures of a batch, as the loop gets them."""
    return measure(engine, create_objective(config), [batch])
