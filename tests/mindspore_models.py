"""What the tests of MindSpore's files share: a small model's weights, those of the model
zoo, tensors of every type, and MindSpore itself."""

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


def zoo_block(name: str, dim: int, cross: bool) -> dict[str, tuple[int, ...]]:
    """A layer of mindspore.nn.transformer: dense1 to dense3 are (out, in), the others (in, out)."""
    attentions = ["attention", "cross_attention"] if cross else ["attention"]
    norms = ["layernorm1", "layernorm2"] + (["cross_attention_layernorm"] if cross else [])
    shapes: dict[str, tuple[int, ...]] = {
        f"{name}.{norm}.{kind}": (dim,) for norm in norms for kind in ("gamma", "beta")
    }
    for attention in attentions:
        for dense in ("dense1", "dense2", "dense3", "projection"):
            shapes |= {f"{name}.{attention}.{dense}.weight": (dim, dim), f"{name}.{attention}.{dense}.bias": (dim,)}
    shapes |= {f"{name}.output.mapping.weight": (dim, 2 * dim), f"{name}.output.mapping.bias": (2 * dim,)}
    return shapes | {f"{name}.output.projection.weight": (2 * dim, dim), f"{name}.output.projection.bias": (dim,)}


def zoo(task: Task, D: int = 16, E: int = 8, L: int = 16, *, patch_norm: bool = True) -> dict[str, np.ndarray]:
    """A file of the zoo, or with patch_norm=False of its copy in the course."""
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.encoder_pos_embedding": (1, L + 1, D),
        "encoder.patch_embed.projection.weight": (D, 3, 4, 4),
        "encoder.patch_embed.projection.bias": (D,),
        "encoder.norm.gamma": (D,),
        "encoder.norm.beta": (D,),
    }
    if patch_norm:
        shapes |= {"encoder.patch_embed.norm.gamma": (D,), "encoder.patch_embed.norm.beta": (D,)}
    for i in range(2):
        shapes |= zoo_block(f"encoder.encoder.blocks.{i}", D, cross=False)
    if task == "finetune":
        shapes |= {
            "encoder.fc_norm.gamma": (D,),
            "encoder.fc_norm.beta": (D,),
            "head.weight": (3, D),
            "head.bias": (3,),
        }
    else:
        shapes |= {"mask_token": (E,), "enc_to_dec.weight": (E, D), "enc_to_dec.bias": (E,)}
        shapes |= {"decoder_pos_embedding.embedding_table": (L + 1, E)} | zoo_block("decoder.blocks.0", E, cross=True)
        shapes |= {"decoder_norm.gamma": (E,), "decoder_norm.beta": (E,)}
        shapes |= {"to_pixels.weight": (48, E), "to_pixels.bias": (48,)}
    rng = np.random.default_rng(1)
    tensors = {name: rng.normal(scale=0.3, size=shape).astype(np.float32) for name, shape in shapes.items()}
    if patch_norm:  # what it is given is so small that its epsilon shows
        tensors = {
            name: t * np.float32(0.003 if "projection" in name and "patch" in name else 1)
            for name, t in tensors.items()
        }
    return tensors


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
