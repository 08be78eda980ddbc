"""The one place where initial weights are made.

Each tensor is drawn from (seed, its name) in NumPy, so both engines, every rank and every rerun start from the same
weights. Engines create their parameters filled with NaN and load these.
"""

from __future__ import annotations

import zlib
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unmask.config.schema import ModelConfig
from unmask.data.rng import Op, generator
from unmask.schedules import FIXED

Task = Literal["pretrain", "finetune", "probe"]


PROBE_EPS = 1e-6
"""Of the BatchNorm before the head of a linear probe."""


def parameter_shapes(model: ModelConfig, task: Task) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight, in the order of the forward pass."""
    D, L = model.width, model.num_patches
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, D),
        "pos_embed": (1, L + 1, D),
        "patch_embed.proj.weight": (D, model.channels, model.patch_size, model.patch_size),
        "patch_embed.proj.bias": (D,),
    }
    for i in range(model.depth):
        shapes |= _block(f"blocks.{i}", D, int(D * model.mlp_ratio))
    if task != "pretrain":
        if model.num_classes is None:
            raise ValueError("model.num_classes is not set")
        shapes |= _norm("fc_norm" if model.pool == "mean" else "norm", D)
        if task == "probe":
            shapes |= {"head_norm.running_mean": (D,), "head_norm.running_var": (D,)}
        return shapes | _linear("head", D, model.num_classes)
    E = model.decoder_width
    shapes |= _norm("norm", D) | _linear("decoder_embed", D, E)
    shapes |= {"mask_token": (1, 1, E), "decoder_pos_embed": (1, L + 1, E)}
    for i in range(model.decoder_depth):
        shapes |= _block(f"decoder_blocks.{i}", E, int(E * model.mlp_ratio))
    return shapes | _norm("decoder_norm", E) | _linear("decoder_pred", E, model.patch_dim)


def _linear(name: str, fan_in: int, fan_out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (fan_out, fan_in), f"{name}.bias": (fan_out,)}


def _norm(name: str, dim: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def _block(name: str, dim: int, hidden: int) -> dict[str, tuple[int, ...]]:
    return (
        _norm(f"{name}.norm1", dim)
        | _linear(f"{name}.attn.qkv", dim, 3 * dim)
        | _linear(f"{name}.attn.proj", dim, dim)
        | _norm(f"{name}.norm2", dim)
        | _linear(f"{name}.mlp.fc1", dim, hidden)
        | _linear(f"{name}.mlp.fc2", hidden, dim)
    )


def initial_weights(model: ModelConfig, task: Task, seed: int) -> dict[str, NDArray[np.float32]]:
    """fp32 weights as the official MAE code initialises them.

    Linear layers and the patch projection: Xavier uniform, the fused qkv counted as one matrix; biases 0; norms 1;
    cls and mask token: normal, std 0.02; position embeddings: 2-D sine-cosine; classification head: normal, std 2e-5,
    that of a linear probe 0.01.
    """
    weights = {name: _draw(name, shape, model, seed) for name, shape in parameter_shapes(model, task).items()}
    return weights | {"head.weight": 500 * weights["head.weight"]} if task == "probe" else weights


def fold_head_norm(weights: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """A trained linear probe as a plain classifier: its BatchNorm becomes part of the head. Others stay as they are."""
    if "head_norm.running_mean" not in weights:
        return weights
    mean, var = weights["head_norm.running_mean"], weights["head_norm.running_var"]
    weight = (weights["head.weight"] / np.sqrt(var + PROBE_EPS)).astype(np.float32)
    bias = (weights["head.bias"] - weight @ mean).astype(np.float32)
    plain = {name: tensor for name, tensor in weights.items() if not name.startswith("head_norm.")}
    return plain | {"head.weight": weight, "head.bias": bias}


def _draw(name: str, shape: tuple[int, ...], model: ModelConfig, seed: int) -> NDArray[np.float32]:
    rng = generator(seed, 0, zlib.crc32(name.encode()), Op.INIT)
    if name in FIXED:
        return sincos_position_embedding(shape[-1], model.grid)[None]
    if name in ("cls_token", "mask_token"):
        return 0.02 * rng.standard_normal(shape, np.float32)
    if name == "head.weight":
        return 2e-5 * rng.standard_normal(shape, np.float32)
    if name.endswith((".bias", ".running_mean")):
        return np.zeros(shape, np.float32)
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    fan_out, fan_in = shape[0], int(np.prod(shape[1:]))
    bound = np.float32(np.sqrt(6 / (fan_in + fan_out)))
    return (2 * rng.random(shape, np.float32) - 1) * bound


def sincos_position_embedding(dim: int, grid: tuple[int, int]) -> NDArray[np.float32]:
    """(1 + grid[0] * grid[1], dim): zeros for the cls token, then the patches row by row, as [x half | y half].

    Each half is [sin | cos] of the coordinate times 1 / 10000^(i / (dim / 4)). MAE appendix A.1.
    """
    y, x = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    omega = 1.0 / 10000 ** (np.arange(dim // 4, dtype=np.float64) / (dim // 4))

    def waves(position: NDArray[Any]) -> NDArray[np.float64]:
        angle = position.reshape(-1, 1) * omega
        return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)

    patches = np.concatenate([waves(x), waves(y)], axis=1)
    return np.concatenate([np.zeros((1, dim)), patches]).astype(np.float32)
