"""What the tests of MindSpore's files share: a small model's weights, tensors of every type, and MindSpore itself."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from unmask.config.schema import ModelConfig
from unmask.models.parameters import Shapes
from unmask.objectives.classify import Classification, ClassifySection
from unmask.objectives.mae import MaeSection, MaskedAutoencoding

Task = Literal["pretrain", "finetune"]

SMALL: dict[str, Any] = {
    "image_size": (16, 16), "patch_size": 4, "channels": 3, "width": 16, "depth": 2, "heads": 2, "mlp_ratio": 2.0,
    "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2, "num_classes": 3,
}  # fmt: skip
EVERY_TYPE = {
    f"a.{dtype}": np.arange(6).reshape(2, 3).astype(dtype)
    for dtype in ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?")
} | {"scalar": np.array(2.5, np.float32), "one": np.ones(1, np.float32)}


def shapes_of(task: Task, **fields: Any) -> Shapes:
    model = ModelConfig.model_validate(SMALL | fields)
    objective = (
        MaskedAutoencoding(model, MaeSection()) if task == "pretrain" else Classification(model, ClassifySection())
    )
    return objective.shapes()


def weights_of(task: Task, **fields: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes_of(task, **fields).items()}
    if task == "pretrain":
        weights["decoder_pos_embed"][:, 0] = 0  # as it always is, sine-cosine
    return weights


def assert_equal(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in actual.items():
        np.testing.assert_array_equal(tensor, expected[name], err_msg=name, strict=True)


needs_mindspore = pytest.mark.skipif(
    importlib.util.find_spec("mindspore") is None, reason="MindSpore is not installed: its own files are not compared"
)

PRELUDE = """
import json, sys
import numpy as np
import mindspore as ms
from mindspore.train import serialization
try:  # the first call into a part that was built against NumPy 1 fails
    ms.Tensor([1.0, 2.0]).reshape((2, 1))
except SystemError:
    pass
folder = sys.argv[1]
"""


def mindspore(script: str, folder: Path) -> None:
    """Run a script with MindSpore in its own process: its import warns, and must not see what this one imported."""
    environment = os.environ | {"GLOG_v": "3", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", PRELUDE + script, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
