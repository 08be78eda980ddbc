"""Folders of transformers' ViTMAEForPreTraining and ViTForImageClassification: config.json and model.safetensors.

Written with the names that transformers 4 has and 5 translates; read with those of either.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError

from unmask.checkpoint.tensors import read_tensors, write_tensors
from unmask.config.schema import ModelConfig
from unmask.engines.base import EngineState, Tensors, check_names_and_shapes
from unmask.errors import CheckpointError
from unmask.files import cause, parse_json, read_bytes, written_aside
from unmask.interchange.facebook import read_state_dict
from unmask.interchange.naming import Naming
from unmask.interchange.stored_model import StoredModel, as_float32, mlp_ratio
from unmask.interchange.torch_file import TorchFile
from unmask.objectives.classify import Classification, ClassifySection
from unmask.objectives.mae import MaeSection, MaskedAutoencoding

_NAMING = Naming(
    outside={
        "cls_token": "vit.embeddings.cls_token",
        "pos_embed": "vit.embeddings.position_embeddings",
        "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
        "norm": "vit.layernorm",
        "head": "classifier",
        "decoder_embed": "decoder.decoder_embed",
        "mask_token": "decoder.mask_token",
        "decoder_pos_embed": "decoder.decoder_pos_embed",
        "decoder_norm": "decoder.decoder_norm",
        "decoder_pred": "decoder.decoder_pred",
    },
    stacks={"blocks": "vit.encoder.layer", "decoder_blocks": "decoder.decoder_layers"},
    in_block={
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    },
    qkv=("attention.attention.query", "attention.attention.key", "attention.attention.value"),
)
_NEWER = [  # what transformers 5 calls it: what 4 does
    (r"^vit\.layers\.", "vit.encoder.layer."),
    (r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers."),  # 5.23 writes this by mistake
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
]
_FIELDS = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "channels": "num_channels",
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
}
_DECODER_FIELDS = {
    "decoder_width": "decoder_hidden_size",
    "decoder_depth": "decoder_num_hidden_layers",
    "decoder_heads": "decoder_num_attention_heads",
}
_MAE_FIELDS = {**_DECODER_FIELDS, "mask_ratio": "mask_ratio", "norm_pix_loss": "norm_pix_loss"}
_ARCHITECTURES = {"vit_mae": "ViTMAEForPreTraining", "vit": "ViTForImageClassification"}
_FIXED = {"hidden_act": "gelu", "qkv_bias": True}
"""What a model must have to be ours, in any of the ways config.json says it; these are also the defaults."""
_MAX_EPS = 1e-5
"""Ours is 1e-6, transformers' default 1e-12: the difference cannot be seen. More changes what the model computes."""


def read_transformers(folder: Path) -> StoredModel:
    """Raises CheckpointError naming everything in it that our model does not have."""
    path = folder / "config.json"
    config = parse_json(path, read_bytes(path))
    mae = _check_architecture(path, config)
    model = _read_fields(path, config, mae)
    theirs = {_to_version_4(name): tensor for name, tensor in _read_weights(folder).items()}
    weights = as_float32(_NAMING.ours(str(folder), theirs))
    if mae:
        objective = {name: model.pop(name) for name in ("mask_ratio", "norm_pix_loss")}
        return StoredModel(weights, model, None, "transformers", objective=objective)
    if "head.weight" in weights:
        model["num_classes"] = len(weights["head.weight"])
    return StoredModel(weights, {**model, "pool": "cls"}, _class_names(path, config), "transformers")


def write_transformers(folder: Path, stored: StoredModel) -> None:
    """Write a folder that from_pretrained loads with nothing missing or left over. Raises CheckpointError."""
    weights, model, class_names = stored.weights, stored.model | stored.objective, stored.class_names
    mae = "head.weight" not in weights
    if "fc_norm.weight" in weights:
        raise CheckpointError(
            "ViTForImageClassification pools by its cls token: a model.pool=mean classifier has no place there"
        )
    for needed in ("heads", "decoder_heads") if mae else ("heads",):
        if needed not in model:
            raise CheckpointError(f"the number of attention heads is not known: the source does not tell {needed}")
    classes = None if mae else len(weights["head.weight"])
    checked = _checked("the model", {**model, "num_classes": classes, "pool": "cls"})
    mae_section = MaeSection(**{name: model[name] for name in ("mask_ratio", "norm_pix_loss") if mae and name in model})
    objective = MaskedAutoencoding(checked, mae_section) if mae else Classification(checked, ClassifySection())
    check_names_and_shapes(objective.shapes(), EngineState(weights), ())
    if mae and checked.grid[0] != checked.grid[1]:
        raise CheckpointError(f"transformers' ViTMAE is square; this one has image_size={list(checked.image_size)}")
    config = _config_json(checked, mae_section if mae else None, class_names)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with written_aside(folder / "model.safetensors") as aside:
            write_tensors(aside, _NAMING.theirs(weights), metadata={"format": "pt"})  # from_pretrained asks for it
        with written_aside(folder / "config.json") as aside:
            aside.write_text(json.dumps(config, indent=2) + "\n")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {folder}: {cause(error)}") from error


def _check_architecture(path: Path, config: dict[str, Any]) -> bool:
    """True for the autoencoder, False for the classifier."""
    kind = str(config.get("model_type"))
    architectures = config.get("architectures") or [_ARCHITECTURES.get(kind)]
    if architectures != [_ARCHITECTURES.get(kind)] or kind not in _ARCHITECTURES:
        raise CheckpointError(
            f"{path} is of {kind} {architectures}; can be read: {' and '.join(_ARCHITECTURES.values())}"
        )
    return kind == "vit_mae"


def _read_fields(path: Path, config: dict[str, Any], mae: bool) -> dict[str, Any]:
    names = _FIELDS | (_MAE_FIELDS if mae else {})
    # What config.json leaves out has transformers' default, which is ViT-B/16 as ours is, but for norm_pix_loss.
    defaults = {**ModelConfig().model_dump(), "mask_ratio": 0.75, "norm_pix_loss": False}
    model: dict[str, Any] = {ours: config.get(theirs, defaults[ours]) for ours, theirs in names.items()}
    if isinstance(model["patch_size"], list) and len(set(model["patch_size"])) == 1:
        model["patch_size"] = model["patch_size"][0]
    try:
        eps = float(config.get("layer_norm_eps", 1e-12))
        model["mlp_ratio"] = mlp_ratio(config.get("intermediate_size", 3072), model["width"])
        decoder_ratio = (
            mlp_ratio(config.get("decoder_intermediate_size", 2048), model["decoder_width"]) if mae else None
        )
    except (TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"{path} has a number that is none: {cause(error)}") from error
    wrong = [f"{name}={config[name]}" for name, value in _FIXED.items() if config.get(name, value) != value]
    wrong += [f"layer_norm_eps={eps}"] if eps > _MAX_EPS else []
    wrong += ["an MLP ratio of the decoder's own"] if decoder_ratio not in (None, model["mlp_ratio"]) else []
    if wrong:
        raise CheckpointError(f"{path} has {', '.join(wrong)}, which our model does not have")
    return {**model, "image_size": _checked(str(path), model).image_size}


def _checked(what: str, model: Mapping[str, Any]) -> ModelConfig:
    try:
        return ModelConfig.model_validate(
            {key: value for key, value in model.items() if key in ModelConfig.model_fields}
        )
    except ValidationError as error:
        flaws = "; ".join(f"{'.'.join(map(str, flaw['loc']))} {flaw['msg']}".strip() for flaw in error.errors())
        raise CheckpointError(f"{what} is not one of ours: {flaws}") from error


def _read_weights(folder: Path) -> Tensors:
    if (folder / "model.safetensors").is_file():
        return read_tensors(folder / "model.safetensors")
    if (folder / "pytorch_model.bin").is_file():
        with TorchFile(folder / "pytorch_model.bin") as file:
            return read_state_dict(file)
    raise CheckpointError(f"{folder} has neither model.safetensors nor pytorch_model.bin")


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


def _config_json(model: ModelConfig, mae: MaeSection | None, class_names: Sequence[str] | None) -> dict[str, Any]:
    kind = "vit_mae" if mae else "vit"
    fields = _FIELDS | (_DECODER_FIELDS if mae else {})
    config: dict[str, Any] = {"architectures": [_ARCHITECTURES[kind]], "model_type": kind, **_FIXED}
    config |= {theirs: getattr(model, ours) for ours, theirs in fields.items()}
    height, width = model.image_size
    config |= {
        "image_size": height if height == width else [height, width],
        "intermediate_size": int(model.width * model.mlp_ratio),
        "layer_norm_eps": 1e-6,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    if mae:
        config |= {"mask_ratio": mae.mask_ratio, "norm_pix_loss": mae.norm_pix_loss}
        return {**config, "decoder_intermediate_size": int(model.decoder_width * model.mlp_ratio)}
    names = class_names or [f"LABEL_{i}" for i in range(model.num_classes or 0)]
    if len(names) != model.num_classes:
        raise CheckpointError(f"{len(names)} class names for a head of {model.num_classes} classes")
    return {
        **config,
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


def _to_version_4(name: str) -> str:
    for pattern, replacement in _NEWER:
        name = re.sub(pattern, replacement, name)
    return name
