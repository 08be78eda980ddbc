"""A read-out of a model as a MindIR file."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
from mindspore import Tensor

from unmask.engines.mindspore_engine.engine import MindSporeEngine


def write_mindir(engine: MindSporeEngine, output: str, path: Path) -> None:
    """Write the graph of `output` (logits, embed), with the weights, for any number of images."""
    shape = [None, *engine.config.model.image_size, engine.config.model.channels]
    dtype = ms.uint8 if engine.config.data.dtype == "uint8" else ms.float32
    ms.export(engine.graph(output), Tensor(shape=shape, dtype=dtype), file_name=str(path), file_format="MINDIR")
