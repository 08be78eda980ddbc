"""Folders of transformers' plain Vision Transformers: config.json, preprocessor_config.json and the tensors.

ViT, ViTMAE and DINOv2 with or without registers, as encoder, classifier or autoencoder. Written with the names that
transformers 4 has and 5 translates; read with those of either.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from unmask.checkpoint.tensors import read_tensors, write_tensors
from unmask.config.schema import ModelConfig
from unmask.engines.base import Tensors
from unmask.errors import CheckpointError
from unmask.files import cause, folder_written_aside, parse_json, read_bytes
from unmask.interchange.adapt import interpolate_position_embedding
from unmask.interchange.facebook import read_state_dict
from unmask.interchange.naming import listed
from unmask.interchange.stored_model import (
    OF_OBJECTIVE,
    WAY_OF_STEMS,
    StoredModel,
    as_float32,
    check_told,
    checked_model,
    extra_json,
    from_extra,
    mlp_ratio,
)
from unmask.interchange.torch_file import TorchFile
from unmask.interchange.transformers_images import FILE, preparation_json, read_preparation
from unmask.interchange.transformers_names import FAMILIES, Family
from unmask.interchange.vit import check_shapes
from unmask.objectives.classify import Classification, ClassifySection
from unmask.objectives.encoder import EncoderAlone, EncoderSection
from unmask.objectives.mae import MaeSection, MaskedAutoencoding

log = logging.getLogger("unmask")

EXTRA = "unmask"
"""In config.json, in folders written here: what FILE cannot say of how images are prepared, and the seed of the run.
transformers passes it over."""

_FIELDS = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "channels": "num_channels",
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "qkv_bias": "qkv_bias",
    "norm_eps": "layer_norm_eps",
}
_DECODER_FIELDS = {
    "decoder_width": "decoder_hidden_size",
    "decoder_depth": "decoder_num_hidden_layers",
    "decoder_heads": "decoder_num_attention_heads",
}
_DEFAULTS: dict[str, Any] = {
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "qkv_bias": True,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "intermediate_size": 3072,
    "decoder_hidden_size": 512,
    "decoder_num_hidden_layers": 8,
    "decoder_num_attention_heads": 16,
    "decoder_intermediate_size": 2048,
    "mask_ratio": 0.75,
    "norm_pix_loss": False,
    "mlp_ratio": 4,
    "use_swiglu_ffn": False,
    "layerscale_value": 1.0,
    "num_register_tokens": 4,
}
"""What config.json leaves out, as transformers does with what has its default."""
_DEFAULTS_DINOV2 = {"layer_norm_eps": 1e-6}
_DEFAULT_PATCH = {"dinov2": 14}


def read_transformers(folder: Path) -> StoredModel:
    """The model, brought to the size of the images that its preprocessor_config.json makes.

    Raises CheckpointError naming everything in it that our model does not have.
    """
    path = folder / "config.json"
    config = parse_json(path, read_bytes(path))
    family, told = _family(path, config)
    weights, left_out = family.ours(str(folder), as_float32(_read_weights(folder)))
    if left_out:
        log.warning("%s: %s, which no read-out needs, is left out", folder, listed(left_out))
    kind = told or _kind(weights)
    model = _fields(path, config, family, weights, kind)
    objective = {name: config.get(name, _DEFAULTS[name]) for name in OF_OBJECTIVE} if kind == "autoencoder" else {}
    if kind == "autoencoder" and not model.qkv_bias:  # of decoders ours always has them
        for i in range(model.decoder_depth):
            bias = np.zeros(3 * model.decoder_width, np.float32)
            weights.setdefault(f"decoder_blocks.{i}.attn.qkv.bias", bias)
    names = _class_names(path, config) if kind == "classifier" else None
    _check_told(path, model, weights, names, kind, family)
    check_shapes(str(folder), weights, _shapes(model, kind))
    if kind == "classifier" and family.dinov2:
        head = weights["head.weight"] = _halves_swapped(weights["head.weight"])
        if not head[:, : model.width].any():  # as written here for a head of the cls token alone
            weights["head.weight"] = head[:, model.width :]
            model = model.model_copy(update={"pool": "cls"})
    ours = from_extra(path, json.dumps(config.get(EXTRA, {})))
    data, size = read_preparation(folder, str(config["model_type"]), model.channels)
    data = ours["data"] | data
    if size is not None and size != model.image_size:
        model = _resized(folder, weights, model, size, antialias=bool(model.register_tokens))
    fields = model.model_dump(exclude={"drop_path"} | _of_others(kind))
    return StoredModel(weights, fields, names, "transformers", None, data, objective, ours["seed"])


def write_transformers(folder: Path, stored: StoredModel) -> None:
    """Write a folder that from_pretrained loads with nothing missing or left over, but for a pooler.

    Raises CheckpointError if transformers has no such model.
    """
    for needed in ("heads", "decoder_heads") if stored.kind == "autoencoder" else ("heads",):
        if needed not in stored.model:
            raise CheckpointError(f"the number of attention heads is not known: the source does not tell {needed}")
    model = checked_model("the model", stored.model)
    check_shapes("the model", stored.weights, _shapes(model, stored.kind, fc_norm="fc_norm.weight" in stored.weights))
    model_type = _type_for(stored, model)
    config, weights = _config_json(stored, model, model_type), stored.weights
    if model_type == "vit_mae":
        weights = _with_biases(weights, model)
    elif model_type != "vit":
        weights = _as_dinov2(weights, model)
    tensors = FAMILIES[model_type].theirs(weights, gated=model.mlp == "swiglu", prefixed=stored.kind != "encoder")
    if model_type.startswith("dinov2"):
        prefix = "" if stored.kind == "encoder" else FAMILIES[model_type].prefix
        tensors[f"{prefix}embeddings.mask_token"] = np.zeros((1, model.width), np.float32)  # from_pretrained misses it
    processor, unsaid = preparation_json(model, stored.data)
    if unsaid:
        log.warning("%s: %s", folder / FILE, unsaid if processor else f"not written: {unsaid}")
    try:
        with folder_written_aside(folder) as aside:
            # from_pretrained asks for the metadata.
            write_tensors(aside / "model.safetensors", tensors, metadata={"format": "pt"})
            for name, content in (("config.json", config), (FILE, processor)):
                if content is not None:
                    text = json.dumps(content, indent=2) + "\n"
                    (aside / name).write_text(text, encoding="utf-8", newline="\n")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {folder}: {cause(error)}") from error


# --- reading ----------------------------------------------------------------------------------------------------------


def _family(path: Path, config: dict[str, Any]) -> tuple[Family, str | None]:
    """The family, and what kind of model it is of that, if config.json tells."""
    model_type, architectures = str(config.get("model_type")), config.get("architectures")
    family = FAMILIES.get(model_type)
    if family is not None and not architectures:
        return family, None
    for kind, name in family.architectures.items() if family else ():
        if architectures == [name]:
            return FAMILIES[model_type], kind
    known = [name for family in FAMILIES.values() for name in family.architectures.values()]
    raise CheckpointError(f"{path} is of {model_type} {architectures}; can be read: {', '.join(known)}")


def _kind(weights: Tensors) -> str:
    if "head.weight" in weights:
        return "classifier"
    return "autoencoder" if any(name.startswith("decoder_") for name in weights) else "encoder"


def _fields(path: Path, config: dict[str, Any], family: Family, weights: Tensors, kind: str) -> ModelConfig:
    model_type = str(config["model_type"])
    defaults = _DEFAULTS | (_DEFAULTS_DINOV2 if family.dinov2 else {})
    defaults["patch_size"] = _DEFAULT_PATCH.get(model_type, 16)
    config = defaults | {name: value for name, value in config.items() if value is not None}
    names = _FIELDS | (_DECODER_FIELDS if kind == "autoencoder" else {})
    fields: dict[str, Any] = {ours: config[theirs] for ours, theirs in names.items()}
    if isinstance(fields["patch_size"], list) and len(set(map(str, fields["patch_size"]))) == 1:
        fields["patch_size"] = fields["patch_size"][0]
    gated = family.dinov2 and config["use_swiglu_ffn"] is True
    if config["hidden_act"] != "gelu" and not gated:
        raise CheckpointError(f"{path} has hidden_act={config['hidden_act']}, which our model does not have")
    try:
        blocks = [(_hidden(config, gated) if family.dinov2 else config["intermediate_size"], fields["width"])]
        if kind == "autoencoder":
            blocks += [(config["decoder_intermediate_size"], fields["decoder_width"])]
        fields["mlp_ratio"] = ratio = mlp_ratio(*blocks)
        if [hidden for hidden, width in blocks if int(width * ratio) != hidden]:
            found, expected = blocks[-1][0], int(blocks[-1][1] * ratio)
            raise CheckpointError(
                f"{path} has decoder_intermediate_size={found}, where our model, whose decoder has the encoder's "
                f"ratio, has {expected}"
            )
    except (TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"{path} has a number that is none: {cause(error)}") from error
    if family.dinov2:
        fields |= {"layer_scale": config["layerscale_value"], "mlp": "swiglu" if gated else "gelu"}
    if model_type == "dinov2_with_registers":
        fields["register_tokens"] = config["num_register_tokens"]
    if kind == "classifier":
        head = weights["head.weight"] if "head.weight" in weights else np.empty(0)
        fields |= {"num_classes": len(head) if head.ndim == 2 else 2, "pool": "mean+cls" if family.dinov2 else "cls"}
    return checked_model(str(path), fields)


def _check_told(
    path: Path, model: ModelConfig, weights: Tensors, names: Sequence[str] | None, kind: str, family: Family
) -> None:
    """Raise CheckpointError, by its own keys, for what config.json tells of another model than the tensors'."""
    called = _FIELDS | (_DECODER_FIELDS if kind == "autoencoder" else {})
    if family.dinov2:
        called |= {"mlp": "use_swiglu_ffn", "mlp_ratio": "mlp_ratio", "register_tokens": "num_register_tokens"}
    else:
        called |= {"mlp_ratio": "intermediate_size / hidden_size"}
    told = {name: getattr(model, name) for name in called}
    check_told(str(path), told, weights, names, called)


def _hidden(config: dict[str, Any], gated: bool) -> int:
    """Hidden units of a DINOv2 block; with SwiGLU two thirds, up to a multiple of 8."""
    hidden = int(config["hidden_size"] * config["mlp_ratio"])
    return (int(hidden * 2 / 3) + 7) // 8 * 8 if gated else hidden


def _shapes(model: ModelConfig, kind: str, *, fc_norm: bool = False) -> dict[str, tuple[int, ...]]:
    if kind == "classifier":
        return Classification(model, ClassifySection()).shapes()
    if kind == "autoencoder":
        return MaskedAutoencoding(model, MaeSection()).shapes()
    return EncoderAlone(model, EncoderSection(fc_norm=fc_norm)).shapes()


def _of_others(kind: str) -> set[str]:
    """Fields of ModelConfig that a model of this kind says nothing about."""
    decoder = set[str]() if kind == "autoencoder" else set(_DECODER_FIELDS)
    return decoder | (set[str]() if kind == "classifier" else {"num_classes", "pool"})


def _halves_swapped(head: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """DINOv2's head takes cls, then the mean of the patches; ours the mean first."""
    first, second = np.split(head, 2, axis=1)
    return np.concatenate([second, first], axis=1)


def _resized(
    folder: Path, weights: Tensors, model: ModelConfig, size: tuple[int, int], *, antialias: bool
) -> ModelConfig:
    """The model for images of `size`; its position embeddings are interpolated as transformers does at each image."""
    resized = checked_model(str(folder / FILE), model.model_dump() | {"image_size": size})
    for name in weights.keys() & {"pos_embed", "decoder_pos_embed"}:
        weights[name] = interpolate_position_embedding(weights[name], model.grid, resized.grid, antialias=antialias)
    log.warning(
        "%s: images are brought to %dx%d; the position embedding, for %dx%d, is interpolated",
        folder, *size, *model.image_size,
    )  # fmt: skip
    return resized


def _read_weights(folder: Path) -> Tensors:
    """All tensors of the first form that is there, in the order of from_pretrained."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return _read_file(folder / name)
        if (folder / f"{name}.index.json").is_file():
            return _read_shards(folder / f"{name}.index.json")
    raise CheckpointError(f"{folder} has neither model.safetensors nor pytorch_model.bin, nor an index of them")


def _read_file(path: Path) -> Tensors:
    if path.suffix == ".safetensors":
        return read_tensors(path)
    with TorchFile(path) as file:
        return read_state_dict(file)


def _read_shards(index: Path) -> Tensors:
    places = parse_json(index, read_bytes(index)).get("weight_map")
    if not isinstance(places, dict) or not places or not all(map(_is_beside, places.values())):
        raise CheckpointError(f"{index} has no weight_map from tensors to files beside it")
    found: Tensors = {}
    for name in sorted(set(places.values())):
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{index.parent / name} is missing, which {index.name} names")
        shard = _read_file(index.parent / name)
        if differing := shard.keys() ^ {tensor for tensor, place in places.items() if place == name}:
            raise CheckpointError(f"{index.parent / name} and {index.name} differ in {listed(differing)}")
        found |= shard
    return found


def _is_beside(name: Any) -> bool:
    return isinstance(name, str) and name.endswith((".safetensors", ".bin")) and not set(name) & set("/\\:")


def _class_names(path: Path, config: dict[str, Any]) -> tuple[str, ...] | None:
    labels = config.get("id2label")
    if labels is None:
        return None
    try:
        names = tuple(str(labels[str(i)]) for i in range(len(labels)))
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: id2label does not name the classes 0, 1, 2 …") from error
    # What transformers makes up when nobody named the classes.
    return None if names == tuple(f"LABEL_{i}" for i in range(len(names))) else names


# --- writing ----------------------------------------------------------------------------------------------------------


def _type_for(stored: StoredModel, model: ModelConfig) -> str:
    """The `model_type` that computes what the model does. Raises CheckpointError if there is none."""
    of_dinov2 = {
        "model.layer_scale": model.layer_scale is not None,
        f"model.register_tokens={model.register_tokens}": model.register_tokens > 0,
        "model.mlp=swiglu": model.mlp == "swiglu",
        "model.pool=mean+cls": stored.kind == "classifier" and model.pool == "mean+cls",
    }
    foreign = {
        "model.pool=mean, whose norm comes after the pooling": "fc_norm.weight" in stored.weights,
        "model.cls_token=false": not model.cls_token,
        "model.patch_norm": model.patch_norm,
        "model.pre_norm": model.pre_norm,
        "model.patch_stem": model.patch_stem is not None,
    }
    if stored.kind == "autoencoder":
        foreign |= of_dinov2
        foreign[f"model.image_size={list(model.image_size)}, not square"] = model.grid[0] != model.grid[1]
    elif any(of_dinov2.values()):
        foreign[f"model.image_size={list(model.image_size)}, not square"] = model.grid[0] != model.grid[1]
    if has := [what for what, here in foreign.items() if here]:
        raise CheckpointError(f"transformers has no {stored.kind} with {' and '.join(has)}; {_way_out(stored, model)}")
    if stored.kind == "autoencoder":
        return "vit_mae"
    if not any(of_dinov2.values()):
        return "vit"
    return "dinov2_with_registers" if model.register_tokens else "dinov2"


def _with_biases(weights: Tensors, model: ModelConfig) -> Tensors:
    """With those of query, key and value, which an autoencoder of transformers has in both stacks or in neither."""
    if model.qkv_bias:
        return weights
    zeros = np.zeros(3 * model.width, np.float32)
    return weights | {f"blocks.{i}.attn.qkv.bias": zeros for i in range(model.depth)}


def _as_dinov2(weights: Tensors, model: ModelConfig) -> Tensors:
    """With a layer scale of 1 if there is none, and a head of cls and mean, zeros for a mean that ours ignores."""
    if model.layer_scale is None:
        ones = np.ones(model.width, np.float32)
        weights = weights | {f"blocks.{i}.{each}.gamma": ones for i in range(model.depth) for each in ("ls1", "ls2")}
    if "head.weight" in weights:
        head = weights["head.weight"]
        head = np.concatenate([head, np.zeros_like(head)], 1) if model.pool == "cls" else _halves_swapped(head)
        weights = weights | {"head.weight": head}
    return weights


def _config_json(stored: StoredModel, model: ModelConfig, model_type: str) -> dict[str, Any]:
    config: dict[str, Any] = {
        "architectures": [FAMILIES[model_type].architectures[stored.kind]],
        "model_type": model_type,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    names = _FIELDS | (_DECODER_FIELDS if model_type == "vit_mae" else {})
    config |= {theirs: getattr(model, ours) for ours, theirs in names.items()}
    height, width = model.image_size
    config["image_size"] = height if height == width else [height, width]
    hidden = int(model.width * model.mlp_ratio)
    if model_type in ("vit", "vit_mae"):
        config["intermediate_size"] = hidden
    else:
        config |= {"use_swiglu_ffn": model.mlp == "swiglu", "layerscale_value": model.layer_scale or 1.0}
        config["mlp_ratio"] = _whole_ratio(stored, model, hidden)
        config |= {"num_register_tokens": model.register_tokens} if model.register_tokens else {}
    if model_type == "vit_mae":
        config["qkv_bias"] = True
        config["decoder_intermediate_size"] = int(model.decoder_width * model.mlp_ratio)
        config |= {name: stored.objective[name] for name in OF_OBJECTIVE if name in stored.objective}
    if stored.kind == "classifier":
        config |= _labels_json(model.num_classes or 0, stored.class_names)
    return config | {EXTRA: {name: json.loads(extra_json(stored))[name] for name in ("data", "seed")}}


def _way_out(stored: StoredModel, model: ModelConfig) -> str:
    timm = stored.kind == "encoder" or (stored.kind == "classifier" and model.pool != "mean+cls")
    if model.patch_stem is not None:
        return WAY_OF_STEMS
    return f"try --to {'timm, whose folders transformers loads too' if timm else 'facebook or mindspore'}"


def _whole_ratio(stored: StoredModel, model: ModelConfig, hidden: int) -> int:
    """What transformers computes the hidden units of DINOv2 from."""
    gated = model.mlp == "swiglu"
    for ratio in range(1, 2 * math.ceil(model.mlp_ratio) + 2):
        if _hidden({"hidden_size": model.width, "mlp_ratio": ratio}, gated) == hidden:
            return ratio
    raise CheckpointError(
        f"transformers' DINOv2 has whole mlp_ratios, which none gives {hidden} hidden units (model.mlp_ratio="
        f"{model.mlp_ratio:g}); {_way_out(stored, model)}"
    )


def _labels_json(classes: int, class_names: Sequence[str] | None) -> dict[str, Any]:
    names = class_names or [f"LABEL_{i}" for i in range(classes)]
    if len(names) != classes:
        raise CheckpointError(f"{len(names)} class names for a head of {classes} classes")
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }
