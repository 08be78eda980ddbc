"""Trained models as files that other runtimes execute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unmask import plugins
from unmask.checkpoint.store import Choice
from unmask.config.load import Settings
from unmask.engines import engine_kind
from unmask.errors import ConfigError
from unmask.evaluate.inference import load


def export(model: str | Path, out: Path, *, checkpoint: Choice = "last", settings: Settings | None = None) -> None:
    """Write `model` as a graph to `out` (.mindir) and what one needs to know to use it to the same name with .json.

    `checkpoint` of a run, `settings`: see `load`.

    The graph takes pixels (any number, height, width, channels), resized and cropped as for evaluation: uint8, or their
    values as float32 where `data.dtype` is another. It gives the logits of a classifier, or the features of a
    pretrained model. Normalisation is inside.
    Raises ConfigError for another suffix; EngineError without the engine that writes it; the errors of `load`.
    """
    kinds = {name: engine_kind(name) for name in plugins.names(plugins.ENGINES)}
    writers = {suffix: (name, write) for name, kind in kinds.items() for suffix, write in kind.exports.items()}
    if out.suffix not in writers:
        raise ConfigError(f"{out}: the format follows from the name; give one that ends in {' or '.join(writers)}")
    engine, write = writers[out.suffix]
    loaded = load(model, checkpoint, engine=engine, device="cpu", settings=settings)
    config, output = loaded.config, "logits" if "logits" in loaded.objective.outputs else "features"
    plugins.resolve(write)(loaded.engine, output, out)
    description: dict[str, Any] = {
        "input": {
            "dtype": "uint8" if config.data.dtype == "uint8" else "float32",
            "shape": [None, *config.model.image_size, config.model.channels],
        },
        "output": {"dtype": "float32", "what": output},
        "preprocessing": {
            "short_side" if config.data.eval_fit == "crop" else "height_and_width": [
                round(side / config.data.eval_crop) for side in config.model.image_size
            ],
            "center_crop": config.model.image_size,
            "interpolation": config.data.interpolation,
        },
        "class_names": loaded.class_names if output == "logits" else None,
    }
    out.with_suffix(".json").write_text(json.dumps(description, indent=2, ensure_ascii=False) + "\n", "utf-8")
