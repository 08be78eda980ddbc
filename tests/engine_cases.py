"""A tiny model and batches of seeded noise: what engines are tested with."""

from __future__ import annotations

from typing import Any

import numpy as np

from unmask.config.load import check_config
from unmask.config.schema import Config
from unmask.data.augment.mixing import class_targets
from unmask.data.batch import Batch
from unmask.data.masking import keep_path, random_mask
from unmask.data.rng import Op, generator

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
    labels = rng.integers(0, model.num_classes or 1, size)
    targets = class_targets(labels, model.num_classes or 1, config.augment.label_smoothing)
    return Batch(
        images=rng.integers(0, 256, (size, *model.image_size, model.channels), dtype=np.uint8),
        index=np.arange(index, index + size),
        ids_keep=None if labelled else np.stack([keep for keep, _ in masks]),
        ids_mask=None if labelled else np.stack([mask for _, mask in masks]),
        labels=labels if labelled else None,
        targets=targets if labelled else None,
        keep_path=np.stack(paths) if labelled and model.drop_path else None,
    )
