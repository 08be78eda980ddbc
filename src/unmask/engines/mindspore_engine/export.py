"""Read-outs of a network as a MindIR file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import mindspore as ms
from mindspore import Tensor, nn
from numpy.typing import NDArray

from unmask.engines.base import GraphRunner
from unmask.engines.mindspore_engine.engine import MindSporeEngine
from unmask.errors import ConfigError


def write_mindir(
    engine: MindSporeEngine, outputs: Mapping[str, Sequence[str]], example: Mapping[str, NDArray[Any]], path: Path
) -> GraphRunner:
    """Write one output as MindIR; see `EngineKind.exports`. Raises ConfigError for several, or with other inputs."""
    if len(outputs) > 1 or len(example) > 1:
        raise ConfigError(f"{path.name}: MindIR takes one of logits, features, patch_features; .onnx takes all")
    (output,), images = outputs, example["images"]
    if Tensor(images).dtype != engine.pixel_type:
        raise ConfigError(f"{path.name}: MindIR takes images as they are stored; leave --dtype out")
    pixels = Tensor(shape=[None, *images.shape[1:]], dtype=engine.pixel_type)
    ms.export(engine.graph(output), pixels, file_name=str(path), file_format="MINDIR")
    graph = nn.GraphCell(ms.load(str(path)))
    return lambda arrays: {output: cast("Tensor", graph(Tensor(arrays["images"]))).asnumpy()}
