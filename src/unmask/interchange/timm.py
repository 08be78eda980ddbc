"""Folders as timm keeps them: config.json with `architecture` and `pretrained_cfg`, and model.safetensors.

What timm computes follows from the name of the architecture as much as from the tensors, so only names are read whose
networks are known to be ours.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from unmask.checkpoint.tensors import read_tensors, write_tensors
from unmask.config.schema import ModelConfig
from unmask.engines.base import Tensors
from unmask.errors import CheckpointError
from unmask.files import cause, folder_written_aside, parse_json, read_bytes
from unmask.interchange.facebook import read_state_dict
from unmask.interchange.naming import listed
from unmask.interchange.stored_model import (
    WAY_OF_STEMS,
    StoredModel,
    as_float32,
    check_told,
    checked_data,
    checked_model,
    extra_json,
    fields_from_shapes,
    from_extra,
    mlp_ratio,
)
from unmask.interchange.torch_file import TorchFile
from unmask.interchange.vit import check, from_state_dict

log = logging.getLogger("unmask")

EXTRA = "unmask"
"""In config.json, in folders written here: what timm has no word for. timm and transformers pass it over."""

_OURS = re.compile(
    r"vit_[a-z0-9]+_patch[0-9]+(_plus|_clip|_gap|_siglip_gap|_reg[0-9]|_dinov2|_tipsv2|_miil|_36x1)*(_[0-9]+)?"
    r"|deit3?_[a-z]+_patch[0-9]+_[0-9]+|flexivit_[a-z]+|eva_large_patch14_[0-9]+|test_vit2?"
)
"""Architectures that compute as ours do, where their tensors fit. Others have rotary positions or other activations,
norms or branches, which the tensors do not always show."""
_TANH = re.compile(r"vit_(base_patch32|so400m_patch16|giantopt_patch16|large_patch16(?=.*_512))_siglip_gap_[0-9]+")
"""Of these, the ones with the tanh approximation of GELU."""
_HEADS = {
    64: 2, 192: 3, 256: 4, 320: 5, 384: 6, 512: 8, 640: 10, 768: 12, 832: 13, 896: 14, 1024: 16, 1152: 16, 1280: 16,
    1408: 16, 1536: 24, 1664: 16,
}  # fmt: skip
"""By width, of all these architectures but one."""
_OTHER_HEADS = {"vit_base_patch16_gap_224": 16}
_CLIP_EPS = 1e-5

_ARGUMENTS = {
    "img_size", "patch_size", "in_chans", "num_classes", "global_pool", "embed_dim", "depth", "num_heads", "mlp_ratio",
    "qkv_bias", "init_values", "class_token", "no_embed_class", "reg_tokens", "pre_norm", "fc_norm", "dynamic_img_size",
    "embed_norm_layer", "drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate",
    "drop_path_rate", "weight_init",
}  # fmt: skip
"""Of timm's VisionTransformer, in `model_args`: those that tensors show, and those that change nothing once trained."""
_FIELDS = {
    "image_size": "img_size", "patch_size": "patch_size", "channels": "in_chans", "width": "embed_dim",
    "depth": "depth", "qkv_bias": "qkv_bias", "cls_token": "class_token", "register_tokens": "reg_tokens",
    "pre_norm": "pre_norm",
}  # fmt: skip
"""Of _ARGUMENTS those that tensors show too."""
_POOLS = {"token": "cls", "avg": "mean"}
_PREPARED = {"mean", "std", "crop_pct", "crop_mode", "interpolation"}


def is_timm(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of timm."""
    return isinstance(config.get("architecture"), str)


def read_timm(folder: Path) -> StoredModel:
    """A classifier or an encoder. Raises CheckpointError naming everything in it that our model does not have."""
    path = folder / "config.json"
    config = parse_json(path, read_bytes(path))
    prepared = config.get("pretrained_cfg", config)  # earlier versions had one level
    arguments = config.get("model_args") or {}
    if not isinstance(prepared, dict) or not isinstance(arguments, dict):
        raise CheckpointError(f"{path} is not as timm writes it: pretrained_cfg or model_args is no JSON object")
    architecture = config["architecture"]
    _check_architecture(path, architecture, arguments)
    size = arguments.get("img_size") or (prepared.get("input_size") or [0, 0, 0])[1:]
    tensors = _read_tensors(folder)
    weights = from_state_dict(str(folder), tensors, patches=_patches(tensors, size))

    told = {ours: arguments[theirs] for ours, theirs in _FIELDS.items() if arguments.get(theirs) is not None}
    if (classes := arguments.get("num_classes", config.get("num_classes"))) and "head.weight" in weights:
        told["num_classes"] = classes
    check_told(str(path), told, weights, called=_FIELDS | {"num_classes": "num_classes"})
    fields: dict[str, Any] = fields_from_shapes(weights)
    fields |= {"norm_eps": _CLIP_EPS if "_clip" in architecture else 1e-6}
    heads = arguments.get("num_heads") or _OTHER_HEADS.get(architecture) or _HEADS.get(fields["width"])
    fields |= {} if heads is None else {"heads": heads}
    if _grid_fits(size, fields["patch_size"], weights):
        fields["image_size"] = size
    if "head.weight" in weights:
        pool = arguments.get("global_pool") or config.get("global_pool") or prepared.get("global_pool")
        if _POOLS.get(str(pool), fields["pool"]) != fields["pool"] or str(pool) not in (*_POOLS, "None"):
            after = "after its last norm" if "norm.weight" in weights else "before its last norm"
            raise CheckpointError(f"{path} pools by {pool} {after}, which our model does not have")
        if prepared.get("label_offset"):
            raise CheckpointError(f"{path} has label_offset={prepared['label_offset']}, which our model does not have")
    ours = from_extra(path, json.dumps(config.get(EXTRA, {})))
    fields |= {
        name: ours["model"][name]
        for name in ("layer_scale", "norm_eps")
        if name in fields and ours["model"].get(name) is not None
    }
    checked_model(str(path), fields if "heads" in fields else fields | {"heads": 1})
    data = ours["data"] | checked_data(path, _data(path, prepared))
    if "mean" in data:
        data.setdefault("dtype", "uint8")  # timm knows no other
    return StoredModel(weights, fields, _class_names(path, config, prepared, weights), "timm", data=data)


def write_timm(folder: Path, model: StoredModel) -> None:
    """Write a folder for `timm.create_model("local-dir:…", pretrained=True)` and transformers' TimmWrapper.

    Of an autoencoder the encoder is written, and a log line says so. An encoder gives the mean of its patch tokens, as
    `embed` does. Raises CheckpointError if timm has no place for the model or the folder cannot be written.
    """
    weights = {n: t for n, t in model.weights.items() if not n.startswith("decoder_") and n != "mask_token"}
    check("the model", weights)
    if len(weights) < len(model.weights):
        log.warning("%s: the encoder alone is written; timm has no place for a decoder", folder)
    checked = checked_model("the model", model.model)
    config = _config_json(checked, weights, model)
    if (dtype := model.data.get("dtype", "uint8")) != "uint8" or checked.channels not in (1, 3):
        log.warning(
            "%s: timm itself opens images of 8 bits and 1 or 3 channels, not %s of %d", folder, dtype, checked.channels
        )
    try:
        with folder_written_aside(folder) as aside:
            write_tensors(aside / "model.safetensors", _theirs(checked, weights), metadata={"format": "pt"})
            (aside / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8", newline="\n")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {folder}: {cause(error)}") from error


# --- reading ----------------------------------------------------------------------------------------------------------


def _check_architecture(path: Path, architecture: str, arguments: Mapping[str, Any]) -> None:
    if not _OURS.fullmatch(architecture) or _TANH.fullmatch(architecture):
        raise CheckpointError(
            f"{path} is of timm's {architecture[:100]}, which does not compute as our model does; the plain ViTs "
            "(vit_*, deit_*, deit3_*, *_dinov2, *_clip_* without quickgelu) can be read"
        )
    if unknown := arguments.keys() - _ARGUMENTS:
        raise CheckpointError(f"{path} has model_args that our model does not have: {listed(unknown)}")


def _read_tensors(folder: Path) -> Tensors:
    if (folder / "model.safetensors").is_file():
        return as_float32(read_tensors(folder / "model.safetensors"))
    if (folder / "pytorch_model.bin").is_file():
        with TorchFile(folder / "pytorch_model.bin") as file:
            return read_state_dict(file)
    raise CheckpointError(f"{folder} has neither model.safetensors nor pytorch_model.bin")


def _patches(tensors: Tensors, size: Any) -> int | None:
    """How many the position embedding is for, if it can be for images of `size`."""
    projection = next((t for n, t in tensors.items() if n.endswith("patch_embed.proj.weight")), None)
    positions = next((t for n, t in tensors.items() if n.endswith("pos_embed")), None)
    if projection is None or positions is None or projection.ndim != 4 or positions.ndim != 3:
        return None
    height, width = _size(size)
    patches = (height // projection.shape[-1]) * (width // projection.shape[-1])
    return patches if 0 < patches <= positions.shape[1] else None


def _grid_fits(size: Any, patch_size: int, weights: Tensors) -> bool:
    height, width = _size(size)
    divisible = height % patch_size == width % patch_size == 0
    patches = weights["pos_embed"].shape[1] - ("cls_token" in weights)
    return divisible and (height // patch_size) * (width // patch_size) == patches


def _size(size: Any) -> tuple[int, int]:
    match size:
        case int():
            return size, size
        case [int(height), int(width)]:
            return height, width
        case _:
            return 0, 0


def _data(path: Path, prepared: Mapping[str, Any]) -> dict[str, Any]:
    """How timm prepares an image; what has no counterpart is named and left to be told."""
    said = {name: prepared[name] for name in _PREPARED if prepared.get(name) is not None}
    data: dict[str, Any] = {name: said[name] for name in ("mean", "std") if name in said}
    strange: list[str] = []
    mode, share = said.get("crop_mode", "center"), said.get("crop_pct")
    if mode == "center" and share is not None:
        data |= {"eval_fit": "crop", "eval_crop": share}
    elif mode == "squash" and share == 1:
        data["eval_fit"] = "squash"
    elif mode != "center":
        strange += [f"crop_mode={mode} with crop_pct={share}"]
    if said.get("interpolation") in ("bicubic", "bilinear", "lanczos", "box", "nearest"):
        data["interpolation"] = said["interpolation"]
    elif "interpolation" in said:
        strange += [f"interpolation={said['interpolation']}"]
    if strange:
        log.warning("%s prepares images with %s, for which there is no setting here", path, " and ".join(strange))
    return data


def _class_names(
    path: Path, config: Mapping[str, Any], prepared: Mapping[str, Any], weights: Tensors
) -> tuple[str, ...] | None:
    names = config.get("label_names") or prepared.get("label_names")
    if not names or "head.weight" not in weights:
        return None
    try:
        texts = [names[str(i)] for i in range(len(names))] if isinstance(names, dict) else list(names)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: label_names does not name the classes 0, 1, 2 …") from error
    if len(texts) != len(weights["head.weight"]) or not all(isinstance(text, str) for text in texts):
        raise CheckpointError(f"{path}: label_names does not name the {len(weights['head.weight'])} classes")
    return tuple(texts)


# --- writing ----------------------------------------------------------------------------------------------------------


def _architecture(model: ModelConfig) -> str:
    """One whose network `model_args` can bend into ours; they cannot say what class the norms and MLPs are of."""
    if model.norm_eps > 1e-6 and (model.norm_eps != _CLIP_EPS or model.mlp == "swiglu" or model.patch_norm):
        raise CheckpointError(
            f"timm has no such model with model.norm_eps={model.norm_eps}; try --to facebook or mindspore"
        )
    if model.mlp == "swiglu":
        return "vit_giant_patch14_dinov2"
    return "vit_base_patch16_clip_224" if model.norm_eps == _CLIP_EPS else "vit_base_patch16_224"


def _config_json(model: ModelConfig, weights: Tensors, stored: StoredModel) -> dict[str, Any]:
    if model.patch_stem is not None:
        raise CheckpointError(f"timm has no such model with model.patch_stem; {WAY_OF_STEMS}")
    architecture = _architecture(model)
    classes = model.num_classes if "head.weight" in weights else 0
    if classes and model.pool == "mean+cls":
        raise CheckpointError(
            "timm has no place for a classifier with model.pool=mean+cls; try --to transformers, facebook or mindspore"
        )
    if stored.class_names and len(stored.class_names) != classes:
        raise CheckpointError(f"{len(stored.class_names)} class names for a head of {classes} classes")
    pool = "token" if classes and model.pool == "cls" else "avg"
    hidden = int(model.width * model.mlp_ratio)
    arguments: dict[str, Any] = {
        "img_size": list(model.image_size),
        "patch_size": model.patch_size,
        "in_chans": model.channels,
        "embed_dim": model.width,
        "depth": model.depth,
        "num_heads": model.heads,
        "mlp_ratio": mlp_ratio((2 * hidden, model.width)) if model.mlp == "swiglu" else model.mlp_ratio,
        "qkv_bias": model.qkv_bias,
        "init_values": model.layer_scale or 0.0,  # no layer scale; None would leave the architecture's own
        "class_token": model.cls_token,
        "reg_tokens": model.register_tokens,
        "no_embed_class": False,
        "pre_norm": model.pre_norm,
        "global_pool": pool,
        "fc_norm": "fc_norm.weight" in weights,
    }
    if model.patch_norm:
        arguments["embed_norm_layer"] = "layernorm"
    data = stored.data
    squash = data.get("eval_fit") == "squash"
    prepared: dict[str, Any] = {
        "input_size": [model.channels, *model.image_size],
        "fixed_input_size": True,
        "interpolation": data.get("interpolation"),
        "crop_pct": 1.0 if squash else data.get("eval_crop"),
        "crop_mode": "squash" if squash else "center",
        "mean": data.get("mean") and list(data["mean"]),
        "std": data.get("std") and list(data["std"]),
        "num_classes": classes,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    return {
        "architecture": architecture,
        "num_classes": classes,
        "num_features": model.width,
        "global_pool": pool,
        **({"label_names": list(stored.class_names)} if stored.class_names else {}),
        "model_args": arguments,
        "pretrained_cfg": {name: value for name, value in prepared.items() if value is not None},
        EXTRA: json.loads(extra_json(stored)),
    }


def _theirs(model: ModelConfig, weights: Tensors) -> Tensors:
    """Registers have rows in the position embedding there, and patches before a norm no bias of their own."""
    theirs = dict(weights)
    first, rest = np.split(weights["pos_embed"], [int(model.cls_token)], axis=1)
    if model.pre_norm:
        bias = theirs.pop("patch_embed.proj.bias")
        if model.patch_norm and bias.any():
            raise CheckpointError("timm has no place for patch_embed.proj.bias in a model with patch_norm and pre_norm")
        rest = rest + bias
    registers = np.zeros((1, model.register_tokens, model.width), np.float32)
    theirs["pos_embed"] = np.concatenate([first, registers, rest], axis=1)
    return theirs
