"""What the parameters of the networks are called, their shapes, and the one place where their first values are made.

Each tensor is drawn from (seed, its name) in NumPy, so both engines, every rank and every rerun start from the same
weights. Engines create their parameters filled with NaN and load these.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.config.schema import ModelConfig
from unmask.data.rng import Op, generator

Shapes = dict[str, tuple[int, ...]]
Weights = dict[str, NDArray[np.float32]]
Tensors = dict[str, NDArray[Any]]

STANDARDIZED_EPS = 1e-5
"""Of weights that are standardised where they are used."""
POSITIONS = frozenset({"pos_embed", "decoder_pos_embed"})
"""Position embeddings, which start as sines and cosines; while pretraining they stay that."""


def encoder_shapes(model: ModelConfig) -> Shapes:
    """Every weight of the Vision Transformer up to its last norm, in the order of the forward pass."""
    D = model.width
    shapes: Shapes = {"cls_token": (1, 1, D)} if model.cls_token else {}
    shapes |= {"reg_token": (1, model.register_tokens, D)} if model.register_tokens else {}
    shapes["pos_embed"] = (1, model.num_patches + int(model.cls_token), D)
    channels, layers = model.channels, len(model.stem_widths)
    for i, width in enumerate(model.stem_widths):
        name = f"patch_embed.stem.{i}"
        shapes |= {f"{name}.conv1.weight": (width, channels, 3, 3)} | norm_shapes(f"{name}.norm1", width)
        if i:
            shapes |= {f"{name}.conv2.weight": (width, width, 3, 3)} | norm_shapes(f"{name}.norm2", width)
        channels = width
    if not layers:
        side = model.patch_size
        shapes |= {"patch_embed.proj.weight": (D, channels, side, side), "patch_embed.proj.bias": (D,)}
    shapes |= norm_shapes("patch_embed.norm", D) if model.patch_norm else {}
    shapes |= norm_shapes("norm_pre", D) if model.pre_norm else {}
    for i in range(model.depth):
        shapes |= encoder_block_shapes(f"blocks.{i}", model)
    return shapes


def encoder_block_shapes(name: str, model: ModelConfig) -> Shapes:
    """A block of the encoder, with what public weights need."""
    D, hidden = model.width, int(model.width * model.mlp_ratio)
    shapes = block_shapes(name, D, hidden)
    if not model.qkv_bias:
        del shapes[f"{name}.attn.qkv.bias"]
    if model.mlp == "swiglu":  # silu(first half) * second half
        shapes |= linear_shapes(f"{name}.mlp.fc1", D, 2 * hidden)
    if model.layer_scale is not None:
        shapes |= {f"{name}.{branch}.gamma": (D,) for branch in ("ls1", "ls2")}
    return shapes


def linear_shapes(name: str, fan_in: int, fan_out: int) -> Shapes:
    return {f"{name}.weight": (fan_out, fan_in), f"{name}.bias": (fan_out,)}


def norm_shapes(name: str, dim: int) -> Shapes:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def block_shapes(name: str, dim: int, hidden: int) -> Shapes:
    return (
        norm_shapes(f"{name}.norm1", dim)
        | linear_shapes(f"{name}.attn.qkv", dim, 3 * dim)
        | linear_shapes(f"{name}.attn.proj", dim, dim)
        | norm_shapes(f"{name}.norm2", dim)
        | linear_shapes(f"{name}.mlp.fc1", dim, hidden)
        | linear_shapes(f"{name}.mlp.fc2", hidden, dim)
    )


def draw(name: str, shape: tuple[int, ...], model: ModelConfig, seed: int) -> NDArray[np.float32]:
    """The first value of one weight, fp32, as the official MAE code initialises it.

    Linear layers and the patch projection: Xavier uniform, the fused qkv counted as one matrix; biases 0; norms 1;
    cls, mask and register tokens and a classification head: normal, std 0.02; position embeddings: 2-D sine-cosine.
    """
    rng = generator(seed, 0, zlib.crc32(name.encode()), Op.INIT)
    if name in POSITIONS:
        positions = sincos_position_embedding(shape[-1], model.grid)
        return positions[None, -shape[1] :]  # without the row of cls where there is none
    if name.endswith(".gamma"):
        return np.full(shape, model.layer_scale, np.float32)
    if name in ("cls_token", "mask_token", "reg_token", "head.weight"):
        return np.float32(0.02) * rng.standard_normal(shape, np.float32)
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
