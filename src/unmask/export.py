"""Trained models as files that other runtimes execute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unmask.checkpoint.store import Choice
from unmask.errors import ConfigError
from unmask.evaluate.inference import load


def export(model: str | Path, out: Path, *, checkpoint: Choice = "last") -> None:
    """Write `model` as a graph to `out` (.mindir) and what one needs to know to use it to the same name with .json.

    `checkpoint` of a run: see `load`.

    The graph takes pixels (any number, height, width, channels), resized and cropped as for evaluation: uint8, or their
    values as float32 where `data.dtype` is another. It gives the logits of a classifier, or the embedding of a
    pretrained model. Normalisation is inside.
    Raises ConfigError for another suffix; EngineError without MindSpore; the errors of `load`.
    """
    if out.suffix != ".mindir":
        raise ConfigError(f"{out}: the format follows from the name; give one that ends in .mindir")
    loaded = load(model, checkpoint, engine="mindspore", device="cpu")
    from unmask.engines.mindspore_engine.engine import MindSporeEngine
    from unmask.engines.mindspore_engine.export import write_mindir

    config, output = loaded.config, "logits" if loaded.config.task == "finetune" else "embed"
    if isinstance(loaded.engine, MindSporeEngine):
        write_mindir(loaded.engine, output, out)
    description: dict[str, Any] = {
        "input": {
            "dtype": "uint8" if config.data.dtype == "uint8" else "float32",
            "shape": [None, *config.model.image_size, config.model.channels],
        },
        "output": {"dtype": "float32", "what": output},
        "preprocessing": {
            "short_side": [round(side / config.data.eval_crop) for side in config.model.image_size],
            "center_crop": config.model.image_size,
            "interpolation": config.data.interpolation,
        },
        "class_names": loaded.class_names if output == "logits" else None,
    }
    out.with_suffix(".json").write_text(json.dumps(description, indent=2, ensure_ascii=False) + "\n", "utf-8")
