"""Committed loss series: 20 steps of a tiny run on the bundled digits, through the real data path.

A change that moves these numbers changes what users' runs compute; it must say so and why. To write them anew:
`python tests/engines/test_golden.py`. Images are resized by Pillow here, which is the same on every machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_cases import start
from unmask.config.load import check_config
from unmask.config.schema import Config
from unmask.data.decode import resize
from unmask.data.loader.pipeline import train_batches
from unmask.data.sources import open_source, subset
from unmask.engines import create_engine
from unmask.engines.base import Engine
from unmask.objectives.base import create_objective
from unmask.schedules import learning_rate

STEPS = 20
SERIES = Path(__file__).parent / "golden"
MODEL = {
    "image_size": 28,
    "patch_size": 7,
    "channels": 1,
    "width": 48,
    "depth": 3,
    "heads": 4,
    "decoder_width": 32,
    "decoder_depth": 2,
    "decoder_heads": 4,
    "num_classes": 10,
    "drop_path": 0.2,
}


TASKS: dict[str, dict[str, Any]] = {
    "pretrain": {"task": "pretrain"},
    "finetune": {"task": "finetune"},
    "semi": {"objective": {"name": "semi", "unlabelled_ratio": 3, "confidence": 0.2}},
}


def config_of(task: str) -> Config:
    return check_config(
        {
            **TASKS[task],
            "device": "cpu",
            "seed": 7,
            "model": MODEL,
            "data": {"train": "bundled:mnist5k/train", "mean": [0.1307], "std": [0.3081], "labels_per_class": 10},
            "optimizer": {"layer_decay": 1.0 if task == "pretrain" else 0.75, "clip_grad": 1.0},
            "augment": {"label_smoothing": 0.1, "erase_prob": 0.5 if task == "semi" else 0.0},
            "train": {"batch_size": 16, "accumulate": 2, "ema_decay": 0.9},
        }
    )


def series(config: Config, engine: Engine) -> list[float]:
    whole = open_source(str(config.data.train), key="data.train", labels=True)
    source, needs = subset(whole, 10, config.seed), create_objective(config).needs(training=True)
    engine.load(start(config, config.seed))
    batches = train_batches(
        source,
        needs=needs,
        model=config.model,
        data=config.data,
        augment=config.augment,
        seed=config.seed,
        batch_size=config.train.batch_size,
        accumulate=config.train.accumulate,
        start_step=0,
        stop_step=STEPS,
        unlabelled=whole if needs.unlabelled else None,
    )
    losses = list[float]()
    for step, micro_batches in enumerate(batches):
        lr = learning_rate(step, total_steps=STEPS, warmup_steps=4, peak=3e-3, minimum=0.0)
        losses.append(engine.read(engine.train_step(micro_batches, {"lr": lr}))["loss"])
    return losses


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", ["torch", "mindspore"])
def test_loss_series(name: str, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(name, reason=f"{name} is not installed")
    config = config_of(task).model_copy(update={"engine": name})
    monkeypatch.setattr(resize, "by_cykooz", None)
    expected = json.loads((SERIES / f"{task}.json").read_text())
    assert expected[-1] < expected[0]
    # Other processors and thread counts round differently; over 20 steps that stays below this.
    np.testing.assert_allclose(series(config, create_engine(config)), expected, rtol=2e-5)


if __name__ == "__main__":
    resize.by_cykooz = None
    for task in TASKS:
        config = config_of(task)
        losses = [round(loss, 7) for loss in series(config, create_engine(config))]
        (SERIES / f"{task}.json").write_text(json.dumps(losses, indent=0) + "\n")
