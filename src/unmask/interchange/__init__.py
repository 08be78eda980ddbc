"""Models of other tools, in and out. No framework is needed to read any of them."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

from unmask import plugins
from unmask.checkpoint.folder import CHECKSUMS, read_buffers, read_meta, read_weights
from unmask.checkpoint.mirror import brought_model
from unmask.checkpoint.store import Choice, read_chosen
from unmask.checkpoint.tensors import read_tensors
from unmask.config.load import check_config, to_dict
from unmask.config.schema import ModelConfig
from unmask.data.sources.files import is_remote
from unmask.errors import CheckpointError, ConfigError
from unmask.files import expanded, parse_json, read_bytes
from unmask.interchange import hub
from unmask.interchange.facebook import read_facebook, write_facebook
from unmask.interchange.mindspore import (
    from_mindspore,
    is_from_mindspore,
    read_mindspore,
    run_beside,
    write_mindspore,
)
from unmask.interchange.stored_model import OF_DATA, OF_OBJECTIVE, StoredModel, as_float32, fields_from_shapes, stated
from unmask.interchange.timm import is_timm, read_timm, write_timm
from unmask.interchange.torch_file import is_torch_file
from unmask.interchange.transformers import read_transformers, write_transformers
from unmask.interchange.vit import from_state_dict
from unmask.models.handmade import without_handmade
from unmask.models.parameters import encoder_shapes
from unmask.objectives.base import create_objective

log = logging.getLogger("unmask")

__all__ = ["Format", "StoredModel", "read_model", "write_model"]

Format = Literal["facebook", "timm", "transformers", "mindspore", "mindspore-zoo"]
"""facebook: the official MAE .pth; timm: a folder for `local-dir:`; transformers: one for from_pretrained; mindspore: a
.ckpt or .safetensors for mindspore.load_checkpoint, in our names; mindspore-zoo: the same in those of the model zoo's
MAE."""


def read_model(path: str | os.PathLike[str], checkpoint: Choice = "last") -> StoredModel:
    """The model at `path`, whatever it is; weights only, the moving average where there is one.

    A run folder (of which `checkpoint` is taken), a checkpoint folder, a .safetensors file in our names, timm's or
    MindSpore's, a MindSpore .ckpt, a timm or transformers folder, a .pth of MAE, DINO, DINOv2, DeiT or MoCo-v3, or any
    of these on the hub: hf://OWNER/NAME; in an object store (s3://…) a run or one file. Raises CheckpointError for
    anything else, damaged or hostile; ConfigError for a checkpoint that is not there; DataError for a store that fails.
    """
    if hub.is_hub_name(name := str(path)):
        return _read_from_hub(name, checkpoint)
    if is_remote(name):
        return _read_from_store(name, checkpoint)
    path = expanded(path)
    is_run = (path / "checkpoints").is_dir()
    if checkpoint != "last" and path.exists() and not is_run:
        raise ConfigError(f"{path} is no run folder, in which checkpoint={checkpoint} could be looked for")
    if (path / CHECKSUMS).exists():
        return _read_ours(path)
    if is_run:
        return read_chosen(path / "checkpoints", checkpoint, _read_ours)
    if (path / "config.json").exists():
        config = parse_json(path / "config.json", read_bytes(path / "config.json"))
        return read_timm(path) if is_timm(config) else read_transformers(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is neither a run, a checkpoint nor a folder of timm or transformers")
    if not path.is_file():
        run = run_beside(path)
        there = run is not None and (run / "checkpoints").is_dir()
        instead = f": such a file goes with the run's checkpoint of that step. Name the run, {run}" if there else ""
        raise CheckpointError(f"{path} does not exist{instead}")
    if path.suffix == ".safetensors":
        weights = as_float32(read_tensors(path))
        if is_from_mindspore(weights):
            return from_mindspore(path, weights)
        if not (path.parent / CHECKSUMS).exists():
            weights = from_state_dict(str(path), weights)
        return StoredModel(weights, fields_from_shapes(weights), None, "safetensors")
    if path.suffix == ".ckpt" and not is_torch_file(path):  # the suffix is also that of PyTorch Lightning
        return read_mindspore(path)
    return read_facebook(path)


def write_model(format: Format, path: str | os.PathLike[str], model: StoredModel) -> None:
    """Write a model for another tool; `model` is `completed`.

    Of what was trained in a way that no other tool knows, the encoder is written, of a network with its teacher the
    network, and that is said. Raises CheckpointError if the format has no place for the model or the file cannot be
    written.
    """
    name = model.config["objective"]["name"] if model.config else None
    if name and "features" not in plugins.find(plugins.OBJECTIVES, name).outputs:
        raise CheckpointError(
            f"{path}: {format} has no place for a network of objective.name={name}; `unmask export` writes a graph"
        )
    if model.kind == "encoder" and model.config is not None:  # of a stranger's tensors each must have a place
        keep = encoder_shapes(ModelConfig.model_validate(model.model)).keys()
        weights = {n: t for n, t in model.weights.items() if n in keep or n.startswith(("norm.", "fc_norm."))}
        if left := len(model.weights) - len(weights):
            log.warning("%s: the encoder alone is written; %d tensors of its training have no place there", path, left)
        model = dataclasses.replace(model, weights=weights, objective={})
    if len(alone := without_handmade(model.weights)) < len(model.weights):
        model = dataclasses.replace(model, weights=alone)
        log.warning(
            "%s: the network alone is written, without its teacher; `unmask export` writes both. What the network says "
            "alone: unmask evaluate --set objective.teacher_share=0",
            path,
        )
    if model.data.get("range") is not None and format in ("timm", "transformers"):
        log.warning(
            "%s: %s knows no data.range=%s; spread the values of images over 8 bits first",
            path,
            format,
            list(model.data["range"]),
        )
    _WRITERS[format](Path(path), model)


_WRITERS: dict[Format, Callable[[Path, StoredModel], None]] = {
    "facebook": write_facebook,
    "timm": write_timm,
    "transformers": write_transformers,
    "mindspore": write_mindspore,
    "mindspore-zoo": partial(write_mindspore, zoo=True),
}


def _read_from_hub(name: str, checkpoint: Choice) -> StoredModel:
    if checkpoint != "last":
        raise ConfigError(f"{name} is no run folder, in which checkpoint={checkpoint} could be looked for")
    place = hub.download(name)
    try:
        return read_model(place)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error


def _read_from_store(url: str, checkpoint: Choice) -> StoredModel:
    place = brought_model(url)
    try:
        return read_model(place, checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f"{url}: {error}") from error


def _read_ours(folder: Path) -> StoredModel:
    meta = read_meta(folder)
    config = meta.get("config")
    _, class_names = stated(folder, meta, config.get("model") if isinstance(config, dict) else None)
    weights, buffers = read_weights(folder), read_buffers(folder)
    try:
        checked = check_config(config or {})
        weights, section = create_objective(checked).finished(weights, buffers)
    except (ConfigError, KeyError) as error:
        raise CheckpointError(f"{folder} is of a run that this version cannot read: {error}") from error
    values = {**to_dict(checked), "objective": section.model_dump(mode="json")}
    data = {name: values["data"][name] for name in OF_DATA}
    objective = {name: values["objective"][name] for name in OF_OBJECTIVE if name in values["objective"]}
    return StoredModel(weights, values["model"], class_names, "unmask", values, data, objective)
