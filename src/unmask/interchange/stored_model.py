"""What a model read from any format is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from unmask.engines.base import Tensors
from unmask.errors import CheckpointError

PUBLISHED_HEADS = {768: 12, 1024: 16, 1280: 16}
"""Attention heads by width of the published MAE models: they cannot be seen in the weights."""

PUBLISHED_DECODER_HEADS = {512: 16}


@dataclass(frozen=True)
class StoredModel:
    """A model from a run, a checkpoint or another tool, in canonical names: weights, and what goes with them.

    What the source does not tell is absent, never guessed.
    """

    weights: Tensors
    """Floating-point tensors are float32. The encoder is there; decoder and head where the source has them."""
    model: dict[str, Any]
    """Fields of ModelConfig."""
    class_names: tuple[str, ...] | None
    format: str
    """unmask, safetensors, facebook, timm, transformers, mindspore or mindspore-zoo."""
    config: dict[str, Any] | None = None
    """The whole config, if a run of ours wrote the model."""
    data: dict[str, Any] = field(default_factory=dict)
    """Fields of DataConfig that say how images are prepared: mean, std, eval_crop, eval_fit, interpolation, dtype."""
    objective: dict[str, Any] = field(default_factory=dict)
    """Of an autoencoder: mask_ratio, norm_pix_loss."""


def stated(where: Path, source: dict[str, Any], model: Any) -> tuple[dict[str, Any], tuple[str, ...] | None]:
    """The fields of ModelConfig and the `class_names` found in JSON. Raises CheckpointError if their form is wrong."""
    names = source.get("class_names")
    if not isinstance(model, dict) or not (names is None or _are_texts(names)):
        raise CheckpointError(f"{where} does not hold model settings and class names as unmask writes them")
    return model, None if names is None else tuple(names)


def as_float32(weights: Tensors) -> Tensors:
    """Every floating-point tensor as float32, the type of master weights."""
    return {
        name: tensor.astype(np.float32, copy=False) if np.issubdtype(tensor.dtype, np.floating) else tensor
        for name, tensor in weights.items()
    }


def fields_from_shapes(weights: Tensors) -> dict[str, Any]:
    """The fields of ModelConfig that shapes tell; patches are taken for a square where their number allows it."""
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    fields: dict[str, Any] = {}
    match shapes.get("patch_embed.proj.weight"):
        case (width, channels, patch_size, _):
            fields |= {"width": width, "channels": channels, "patch_size": patch_size}
            fields |= {"heads": PUBLISHED_HEADS[width]} if width in PUBLISHED_HEADS else {}
            pos_embed = shapes.get("pos_embed", ())
            patches = pos_embed[1] - 1 if len(pos_embed) == 3 else 0
            side = math.isqrt(max(patches, 0))
            if side and side**2 == patches:
                fields["image_size"] = (side * patch_size, side * patch_size)
        case _:
            pass
    if depth := _depth(shapes, "blocks."):
        fields["depth"] = depth
    match shapes.get("blocks.0.mlp.fc1.weight"):
        case (hidden, width) if width:
            fields["mlp_ratio"] = mlp_ratio(hidden, width)
        case _:
            pass
    if depth := _depth(shapes, "decoder_blocks."):
        fields["decoder_depth"] = depth
    match shapes.get("decoder_embed.weight"):
        case (width, _):
            fields["decoder_width"] = width
            fields |= {"decoder_heads": PUBLISHED_DECODER_HEADS[width]} if width in PUBLISHED_DECODER_HEADS else {}
        case _:
            pass
    match shapes.get("head.weight"):
        case (classes, _):
            fields |= {"num_classes": classes, "pool": "mean" if "fc_norm.weight" in shapes else "cls"}
        case _:
            pass
    return fields


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def mlp_ratio(hidden: int, width: int) -> float:
    """The ratio for which int(width * ratio) is `hidden`, whatever the division rounds to."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _depth(names: Iterable[str], stack: str) -> int:
    return len({name.removeprefix(stack).partition(".")[0] for name in names if name.startswith(stack)})
