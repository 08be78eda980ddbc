"""Models in MindSpore's .ckpt and .safetensors, in and out, without MindSpore.

The names are ours, with gamma and beta for the weight and bias of every norm, as MindSpore's LayerNorm has them; or
those of the model zoo's MAE (see mindspore_zoo). What optimizers, loss scaling and callbacks put beside the weights is
left out, and a log line says so.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from unmask.checkpoint.tensors import write_tensors
from unmask.engines.base import Tensors
from unmask.errors import CheckpointError
from unmask.files import cause, written_aside
from unmask.interchange.mindspore_file import read_ckpt, write_ckpt
from unmask.interchange.mindspore_zoo import EPS, from_zoo, is_from_zoo, to_zoo
from unmask.interchange.naming import listed
from unmask.interchange.stored_model import (
    StoredModel,
    as_float32,
    check_told,
    checked_model,
    extra_json,
    fields_from_shapes,
    from_extra,
    published_heads,
)
from unmask.interchange.vit import check

log = logging.getLogger("unmask")

EXTRA = "unmask"
"""Beside the weights, in files written here: the fields and class names as JSON, in a tensor of bytes."""

_STATE = re.compile(
    r"(adam_m|adam_v|moment1|moment2|_ema_weights)\..*"
    r"|learning_rate|global_step|beta1_power|beta2_power"
    r"|scale_sense|loss_scale|current_iterator_step|last_overflow_iterator_step"
    r"|epoch_num|step_num|cur_rank|batch_num"
)
_OURS = re.compile(
    r"cls_token|reg_token|mask_token|(decoder_)?pos_embed|blocks\.[0-9]+\.ls[12]\.gamma"
    r"|patch_embed\.stem\.[0-9]+\.conv[12]\.weight"
    r"|(patch_embed\.(proj|norm|stem\.[0-9]+\.norm[12])|norm_pre|(fc_|decoder_)?norm|head|decoder_embed|decoder_pred"
    r"|(decoder_)?blocks\.[0-9]+\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2))\.(weight|bias)"
)
_OF_NORM = re.compile(r"(.*norm(?:[12]|_pre)?)\.(gamma|beta|weight|bias)")
_TO_OURS = {"gamma": "weight", "beta": "bias"}
_TO_MINDSPORE = {"weight": "gamma", "bias": "beta"}


def run_beside(path: Path) -> Path | None:
    """The run folder that a file PREFIX-EPOCH_STEP.ckpt stands beside, by its name."""
    match = re.fullmatch(r"(.+)-[0-9]+_[0-9]+\.ckpt", path.name)
    return path.with_name(match[1]) if match else None


def read_mindspore(path: Path) -> StoredModel:
    """A .ckpt. Raises CheckpointError if it is damaged or holds anything that our model does not have."""
    beside: set[str] = set()

    def wanted(name: str) -> bool:
        if not _of_model(name):
            beside.add(name)
        return name not in beside

    return from_mindspore(path, read_ckpt(path, wanted), beside)


def is_from_mindspore(tensors: Tensors) -> bool:
    """Whether the names, of a .safetensors file, are MindSpore's."""
    return any(name.endswith(("norm.gamma", "norm1.gamma", "norm2.gamma")) for name in tensors)


def from_mindspore(path: Path, tensors: Tensors, beside: Collection[str] = ()) -> StoredModel:
    """The model in tensors read from `path`. Raises CheckpointError naming everything that our model does not have.

    beside: of the training's state, which is left out here too, what has not been read at all.
    """
    if state := {*beside, *(name for name in tensors if not _of_model(name))}:
        log.warning("%s: the state of its training is left out (%d tensors)", path, len(state))
    extra = tensors.get(EXTRA)
    ours: dict[str, Any] = {"class_names": None} if extra is None else from_extra(path, extra.tobytes())
    tensors = {name: tensor for name, tensor in tensors.items() if _of_model(name) and name != EXTRA}
    weights = _with_norms(as_float32(tensors), _TO_OURS)
    if not weights:
        raise CheckpointError(f"{path} holds no model")
    if len(weights) < len(tensors):
        twice = listed(tensors.keys() - weights.keys())
        raise CheckpointError(f"{path} has norms under both MindSpore's names and ours: {twice}")
    zoo = is_from_zoo(weights)
    if zoo:
        if extra is None:
            ours["model"] = {"norm_eps": EPS}
            log.warning(
                "%s does not hold the class token and mask token it was trained with, nor the epsilon of its norms: "
                "model.norm_eps=%g, as in the model zoo's code", path, EPS,
            )  # fmt: skip
        weights = from_zoo(str(path), weights, _norm_eps(str(path), ours["model"]))
    check(str(path), weights)
    if extra is not None:
        check_told(str(path), ours["model"], weights, ours["class_names"])
    fields = fields_from_shapes(weights)
    ours["model"] = fields | published_heads(fields) | ours.get("model", {})
    return StoredModel(weights, format="mindspore-zoo" if zoo else "mindspore", **ours)


def write_mindspore(path: Path, model: StoredModel, *, zoo: bool = False) -> None:
    """Write a .ckpt or .safetensors, by the name of `path`, for mindspore.load_checkpoint. Raises CheckpointError."""
    if path.suffix not in (".ckpt", ".safetensors"):
        raise CheckpointError(f"{path} must end in .ckpt or .safetensors: MindSpore reads no other")
    weights = model.weights
    if unknown := [name for name in weights if not _OURS.fullmatch(name)]:
        raise CheckpointError(f"the format has no place for {listed(unknown)}")
    if zoo:
        weights = to_zoo(weights, _norm_eps("the model", model.model))
    named = _with_norms(weights, _TO_MINDSPORE)
    named[EXTRA] = np.frombuffer(extra_json(model).encode(), np.uint8)
    if path.suffix == ".ckpt":
        write_ckpt(path, named)
        return
    try:
        with written_aside(path) as aside:
            write_tensors(aside, named, metadata={"format": "ms"})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {path}: {cause(error)}") from error


def _of_model(name: str) -> bool:
    return not _STATE.fullmatch(name)


def _norm_eps(what: str, model: Mapping[str, Any]) -> float:
    return checked_model(what, {name: value for name, value in model.items() if name == "norm_eps"}).norm_eps


def _with_norms(tensors: Tensors, kinds: Mapping[str, str]) -> Tensors:
    """The weight and bias of norms under the other name."""
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        match = _OF_NORM.fullmatch(name)
        renamed[f"{match[1]}.{kinds.get(match[2], match[2])}" if match else name] = tensor
    return renamed
