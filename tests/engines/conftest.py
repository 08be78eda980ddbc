"""What the engines are tested with: every engine that is installed, a tiny model, and batches of seeded noise."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from fake_engine import FakeEngine
from unmask.config.load import check_config
from unmask.config.schema import Config
from unmask.data.batch import Batch
from unmask.data.masking import keep_path, random_mask
from unmask.data.rng import Op, generator
from unmask.engines import create_engine
from unmask.engines.base import Engine, EngineState
from unmask.init import initial_weights

TINY = {
    "image_size": [16, 24],
    "patch_size": 8,
    "width": 32,
    "depth": 2,
    "heads": 4,
    "decoder_width": 16,
    "decoder_depth": 2,
    "decoder_heads": 2,
    "mask_ratio": 0.5,
}


def make_config(task: str = "pretrain", **sections: Any) -> Config:
    model = TINY | ({"num_classes": 7} if task == "finetune" else {}) | sections.pop("model", {})
    return check_config({"task": task, "device": "cpu", "model": model, **sections})


def make_batch(config: Config, size: int = 6, index: int = 0) -> Batch:
    model = config.model
    rng = np.random.default_rng(index)
    masks = [random_mask(generator(0, 0, index + i, Op.MASK), model.num_patches, model.num_keep) for i in range(size)]
    paths = [keep_path(generator(0, 0, index + i, Op.DROP_PATH), model.depth, model.drop_path) for i in range(size)]
    labelled = config.task == "finetune"
    return Batch(
        images=rng.integers(0, 256, (size, *model.image_size, model.channels), dtype=np.uint8),
        index=np.arange(index, index + size),
        ids_keep=None if labelled else np.stack([keep for keep, _ in masks]),
        ids_mask=None if labelled else np.stack([mask for _, mask in masks]),
        labels=rng.integers(0, model.num_classes or 1, size) if labelled else None,
        keep_path=np.stack(paths) if labelled and model.drop_path else None,
    )


@pytest.fixture(params=["fake", "torch", "mindspore"])
def build(request: pytest.FixtureRequest) -> Callable[[Config], Engine]:
    """Makes an engine of each kind with the initial weights of seed 0."""
    name: str = request.param
    if name != "fake" and find_spec(name) is None:
        pytest.skip(f"{name} is not installed")

    def make(config: Config) -> Engine:
        engine = FakeEngine(config) if name == "fake" else create_engine(config.model_copy(update={"engine": name}))
        engine.load(EngineState({**initial_weights(config.model, config.task, 0)}))
        request.addfinalizer(engine.close)
        return engine

    return make
