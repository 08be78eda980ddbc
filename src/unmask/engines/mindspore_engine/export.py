"""A read-out of a network as a MindIR file."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
from mindspore import Tensor

from unmask.engines.mindspore_engine.engine import MindSporeEngine


def write_mindir(engine: MindSporeEngine, output: str, path: Path) -> None:
    """Write the graph of `output` (logits, features), with the weights, for any number of images."""
    model = engine.objective.model
    images = Tensor(shape=[None, *model.image_size, model.channels], dtype=engine.pixel_type)
    ms.export(engine.graph(output), images, file_name=str(path), file_format="MINDIR")
