"""What a model read from any format is."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError

from unmask.config.schema import DataConfig, ModelConfig
from unmask.engines.base import Tensors
from unmask.errors import CheckpointError
from unmask.files import parse_json

PUBLISHED_HEADS = {768: 12, 1024: 16, 1280: 16}
"""Attention heads by width of the published MAE models: they cannot be seen in the weights."""

PUBLISHED_DECODER_HEADS = {512: 16}

OF_DATA = ("mean", "std", "eval_crop", "eval_fit", "interpolation", "dtype", "range")
"""Fields of DataConfig that say how images are prepared for a model."""

OF_OBJECTIVE = ("mask_ratio", "norm_pix_loss")
"""Fields of an objective that other tools keep with an autoencoder."""

WAY_OF_STEMS = "try --to facebook or mindspore, or `unmask export MODEL OUT.onnx` (or OUT.pt2)"
"""Of a model behind convolutions, for which timm and transformers have no class."""


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
    """Fields of DataConfig that say how images are prepared (OF_DATA)."""
    objective: dict[str, Any] = field(default_factory=dict)
    """Of an autoencoder (OF_OBJECTIVE)."""
    seed: int | None = None
    """Of an autoencoder: that of its run, by which masks are drawn when it is evaluated."""

    @property
    def kind(self) -> Literal["classifier", "autoencoder", "encoder"]:
        """An encoder with a head, with the decoder of masked autoencoding, or with neither that other tools know."""
        if "head.weight" in self.weights:
            return "classifier"
        name = "mae" if self.config is None else self.config["objective"]["name"]
        return "autoencoder" if name == "mae" and "decoder_pred.weight" in self.weights else "encoder"


def stated(where: Path, source: dict[str, Any], model: Any) -> tuple[dict[str, Any], tuple[str, ...] | None]:
    """The fields of ModelConfig and the `class_names` found in JSON. Raises CheckpointError if their form is wrong."""
    names = source.get("class_names")
    if not isinstance(model, dict) or not (names is None or _are_texts(names)):
        raise CheckpointError(f"{where} does not hold model settings and class names as unmask writes them")
    return model, None if names is None else tuple(names)


def extra_json(model: StoredModel) -> str:
    """All but weights and format as JSON, which our writers put beside the tensors where other tools pass it over."""
    return json.dumps(
        {
            "model": model.model,
            "class_names": model.class_names and list(model.class_names),
            "data": {name: model.data[name] for name in OF_DATA if name in model.data},
            "objective": {name: model.objective[name] for name in OF_OBJECTIVE if name in model.objective},
            "seed": model.seed,
        }
    )


def from_extra(path: Path, text: str | bytes) -> dict[str, Any]:
    """What `extra_json` wrote into `path`: `model`, `class_names`, `data`, `objective` and `seed` of a StoredModel.

    The file may be a stranger's: of data and objective only what says how images are prepared and masked is taken.
    Raises CheckpointError.
    """
    extra = parse_json(path, text)
    model, class_names = stated(path, extra, extra.get("model", {}))
    # Earlier versions wrote these among the fields of the model.
    objective = {name: model[name] for name in OF_OBJECTIVE if name in model} | _section(path, extra, "objective")
    data, seed = _section(path, extra, "data"), extra.get("seed")
    if not (seed is None or (type(seed) is int and 0 <= seed < 2**31)):
        raise CheckpointError(f"{path} has a seed that is none")
    if strange := [name for name in data if name not in OF_DATA] + [
        name for name in objective if name not in OF_OBJECTIVE
    ]:
        raise CheckpointError(f"{path} has {', '.join(map(repr, strange))} among its settings, which no model needs")
    return {
        "model": {name: value for name, value in model.items() if name not in OF_OBJECTIVE},
        "class_names": class_names,
        "data": checked_data(path, data),
        "objective": objective,
        "seed": seed,
    }


def checked_data(path: Path, data: dict[str, Any]) -> dict[str, Any]:
    """Fields of DataConfig in the form it has them. Raises CheckpointError for values that it refuses."""
    try:
        checked = DataConfig.model_validate(data)
    except ValidationError as error:
        flaws = "; ".join(f"{'.'.join(map(str, flaw['loc']))} {flaw['msg']}".strip() for flaw in error.errors())
        raise CheckpointError(f"{path} prepares images in a way that is none: {flaws}") from error
    return {name: getattr(checked, name) for name in data}


def checked_model(what: str, model: Mapping[str, Any]) -> ModelConfig:
    """Fields of ModelConfig in the form it has them. Raises CheckpointError for values that it refuses."""
    try:
        return ModelConfig.model_validate(model)
    except ValidationError as error:
        flaws = "; ".join(f"{'.'.join(map(str, flaw['loc']))} {flaw['msg']}".strip() for flaw in error.errors())
        raise CheckpointError(f"{what} is not one of our models: {flaws}") from error


def check_told(
    source: str,
    told: Mapping[str, Any],
    weights: Tensors,
    class_names: Sequence[str] | None = None,
    called: Mapping[str, str] | None = None,
) -> None:
    """Raise CheckpointError if fields of ModelConfig and class names that a file tells are not of its `weights`.

    The message names both. called: what the source calls fields that it has other names for.
    """
    seen = {"layer_scale": None, "register_tokens": 0, **fields_from_shapes(weights)}
    patch_size = told.get("patch_size") or seen.get("patch_size", 1)
    plain = {"heads": 1, "decoder_heads": 1, "image_size": [patch_size, patch_size]}
    model = checked_model(source, {**plain, **{n: v for n, v in seen.items() if n != "pool"}, **told})
    shown = {name: value for name, value in seen.items() if name in told and name != "image_size"}
    contradictions = [
        f"{(called or {}).get(name, f'model.{name}')}={told[name]} where its {_showing(name, weights)} {value}"
        for name, value in shown.items()
        if not same_field(name, getattr(model, name), value, model.width)
    ]
    positions = weights.get("pos_embed", np.empty(0)).shape
    if "image_size" in told and not contradictions and len(positions) == 3:
        patches = positions[1] - ("cls_token" in weights)
        if model.num_patches != patches:
            name = (called or {}).get("image_size", "model.image_size")
            contradictions += [
                f"{name}={told['image_size']} where its pos_embed {list(positions)} is for {patches} patches"
            ]
    classes = seen.get("num_classes")  # a head may have more than the images had names
    if class_names is not None and classes is not None and len(class_names) > classes:
        contradictions += [f"{len(class_names)} class names where its tensors have {classes} classes"]
    if contradictions:
        raise CheckpointError(f"{source} contradicts itself: it says {', '.join(contradictions)}")


_SHOWN_BY = {
    "width": "patch_embed.proj.weight", "channels": "patch_embed.proj.weight", "patch_size": "patch_embed.proj.weight",
    "register_tokens": "reg_token", "mlp_ratio": "blocks.0.mlp.fc2.weight", "mlp": "blocks.0.mlp.fc1.weight",
    "decoder_width": "decoder_embed.weight", "num_classes": "head.weight", "pool": "head.weight",
}  # fmt: skip
"""Tensors by the fields that their shapes tell."""


def _showing(field: str, weights: Tensors) -> str:
    name = _SHOWN_BY.get(field, "")
    return f"{name} {list(weights[name].shape)} has" if name in weights else "tensors have"


def same_field(name: str, one: Any, other: Any, width: int) -> bool:
    """Whether two values of a field of ModelConfig are of networks with the same tensors."""
    if name == "mlp_ratio":  # read off the shapes it may differ from the one that was set, and give as many units
        return int(width * one) == int(width * other)
    if name == "layer_scale":  # where fresh factors start, which these are not
        return (one is None) == (other is None)
    return one == other


def as_float32(weights: Tensors) -> Tensors:
    """Every floating-point tensor as float32, the type of master weights."""
    return {
        name: tensor.astype(np.float32, copy=False) if np.issubdtype(tensor.dtype, np.floating) else tensor
        for name, tensor in weights.items()
    }


def fields_from_shapes(weights: Tensors) -> dict[str, Any]:
    """The fields of ModelConfig that names and shapes tell; patches are taken for a square where their number allows.

    They do not tell heads; see `published_heads`.
    """
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    fields: dict[str, Any] = {}
    if "blocks.0.attn.qkv.weight" in shapes:
        fields |= {
            "cls_token": "cls_token" in shapes,
            "qkv_bias": "blocks.0.attn.qkv.bias" in shapes,
            "patch_stem": None,
            "patch_norm": "patch_embed.norm.weight" in shapes,
            "pre_norm": "norm_pre.weight" in shapes,
        }
    match shapes.get("patch_embed.proj.weight"), shapes.get("patch_embed.stem.0.conv1.weight"):
        case (width, channels, patch_size, _), None:
            fields |= {"width": width, "channels": channels, "patch_size": patch_size}
        case None, (stem, channels, _, _):
            layers = _depth(shapes, "patch_embed.stem.")
            width = shapes[f"patch_embed.stem.{layers - 1}.conv1.weight"][0]
            fields |= {"patch_stem": stem, "width": width, "channels": channels, "patch_size": 1 << layers}
        case _:
            pass
    if "patch_size" in fields:
        pos_embed = shapes.get("pos_embed", ())
        patches = pos_embed[1] - ("cls_token" in shapes) if len(pos_embed) == 3 else 0
        side = math.isqrt(max(patches, 0))
        if side and side**2 == patches:
            fields["image_size"] = (side * fields["patch_size"],) * 2
    match shapes.get("reg_token"):
        case (_, tokens, _):
            fields["register_tokens"] = tokens
        case _:
            pass
    if "blocks.0.ls1.gamma" in shapes:
        fields["layer_scale"] = 1e-5  # where a fresh one starts; these have long left it
    if depth := _depth(shapes, "blocks."):
        fields["depth"] = depth
    match shapes.get("blocks.0.mlp.fc1.weight"), shapes.get("blocks.0.mlp.fc2.weight"):
        case (rows, width), (_, hidden) if width:
            of_decoder = shapes.get("decoder_blocks.0.mlp.fc1.weight", ())
            blocks = [(hidden, width), *([of_decoder] if len(of_decoder) == 2 and all(of_decoder) else [])]
            fields |= {"mlp_ratio": mlp_ratio(*blocks), "mlp": "swiglu" if rows == 2 * hidden else "gelu"}
        case _:
            pass
    if depth := _depth(shapes, "decoder_blocks."):
        fields["decoder_depth"] = depth
    match shapes.get("decoder_embed.weight"):
        case (width, _):
            fields["decoder_width"] = width
        case _:
            pass
    match shapes.get("head.weight"):
        case (classes, features):
            both = features == 2 * fields.get("width", features)
            fields["num_classes"] = classes
            fields["pool"] = "mean" if "fc_norm.weight" in shapes else "mean+cls" if both else "cls"
        case _:
            pass
    return fields


def published_heads(fields: Mapping[str, Any]) -> dict[str, int]:
    """Attention heads of the published MAE models with these widths, for files that can only be of those."""
    heads = {"heads": PUBLISHED_HEADS.get(fields.get("width", 0))}
    heads |= {"decoder_heads": PUBLISHED_DECODER_HEADS.get(fields.get("decoder_width", 0))}
    return {name: number for name, number in heads.items() if number is not None}


def _section(where: Path, extra: dict[str, Any], name: str) -> dict[str, Any]:
    section = extra.get(name, {})
    if not isinstance(section, dict):
        raise CheckpointError(f"{where} does not hold {name} settings as unmask writes them")
    return section


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def mlp_ratio(*blocks: tuple[int, int]) -> float:
    """The ratio for which int(width * ratio) is `hidden` of each (hidden, width), whatever the division rounds to.

    If there is none, that of the first.
    """
    least = [hidden / width for hidden, width in blocks]
    least = [
        ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)
        for ratio, (hidden, width) in zip(least, blocks, strict=True)
    ]
    fitting = all(int(width * max(least)) == hidden for hidden, width in blocks)
    return max(least) if fitting else least[0]


def _depth(names: Iterable[str], stack: str) -> int:
    return len({name.removeprefix(stack).partition(".")[0] for name in names if name.startswith(stack)})
