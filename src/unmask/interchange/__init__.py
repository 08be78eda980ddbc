"""Models of other tools, in and out. No framework is needed to read any of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from unmask.checkpoint.folder import CHECKSUMS, read_buffers, read_meta, read_weights
from unmask.checkpoint.store import Choice, read_chosen
from unmask.checkpoint.tensors import read_tensors
from unmask.config.load import check_config, to_dict
from unmask.engines.base import Tensors
from unmask.errors import CheckpointError, ConfigError
from unmask.interchange.facebook import read_facebook, write_facebook
from unmask.interchange.mindspore import from_mindspore, is_from_mindspore, read_mindspore, write_mindspore
from unmask.interchange.stored_model import StoredModel, as_float32, fields_from_shapes, stated
from unmask.interchange.torch_file import is_torch_file
from unmask.interchange.transformers import read_transformers, write_transformers
from unmask.objectives.base import create_objective

__all__ = ["Format", "StoredModel", "read_model", "write_model"]

Format = Literal["facebook", "transformers", "mindspore", "mindspore-zoo"]
"""facebook: the official MAE .pth; transformers: a folder for from_pretrained; mindspore: a .ckpt or .safetensors for
mindspore.load_checkpoint, in our names; mindspore-zoo: the same in those of the model zoo's MAE."""


def read_model(path: str | os.PathLike[str], checkpoint: Choice = "last") -> StoredModel:
    """The model at `path`, whatever it is; weights only, the moving average where there is one.

    A run folder (of which `checkpoint` is taken), a checkpoint folder, a .safetensors file in our names or MindSpore's,
    a MindSpore .ckpt, a transformers folder, an official .pth. Raises CheckpointError for anything else, damaged or
    hostile; ConfigError for a checkpoint that is not there.
    """
    path = Path(path)
    is_run = (path / "checkpoints").is_dir()
    if checkpoint != "last" and path.exists() and not is_run:
        raise ConfigError(f"{path} is no run folder, in which checkpoint={checkpoint} could be looked for")
    if (path / CHECKSUMS).exists():
        return _read_ours(path)
    if is_run:
        return read_chosen(path / "checkpoints", checkpoint, _read_ours)
    if (path / "config.json").exists():
        return read_transformers(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is neither a run, a checkpoint nor a transformers folder")
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    if path.suffix == ".safetensors":
        weights = as_float32(read_tensors(path))
        if is_from_mindspore(weights):
            return from_mindspore(path, weights)
        return StoredModel(weights, fields_from_shapes(weights), None, "safetensors")
    if path.suffix == ".ckpt" and not is_torch_file(path):  # the suffix is also that of PyTorch Lightning
        return read_mindspore(path)
    return read_facebook(path)


def write_model(
    format: Format,
    path: str | Path,
    weights: Tensors,
    model: Mapping[str, Any],
    class_names: Sequence[str] | None,
) -> None:
    """Write a model for another tool; `model` has fields of ModelConfig.

    Raises CheckpointError if the format has no place for it or the file cannot be written.
    """
    if format == "facebook":
        write_facebook(Path(path), weights, model, class_names)
    elif format in ("mindspore", "mindspore-zoo"):
        write_mindspore(Path(path), weights, model, class_names, zoo=format == "mindspore-zoo")
    else:
        write_transformers(Path(path), weights, model, class_names)


def _read_ours(folder: Path) -> StoredModel:
    meta = read_meta(folder)
    config = meta.get("config")
    model, class_names = stated(folder, meta, config.get("model") if isinstance(config, dict) else None)
    weights, buffers = read_weights(folder), read_buffers(folder)
    try:
        checked = check_config(config or {})
        weights, section = create_objective(checked).finished(weights, buffers)
    except (ConfigError, KeyError) as error:
        raise CheckpointError(f"{folder} is of a run that this version cannot read: {error}") from error
    objective = section.model_dump(mode="json")
    # Other formats have these among the fields of the model.
    model = model | {name: objective[name] for name in ("mask_ratio", "norm_pix_loss") if name in objective}
    return StoredModel(weights, model, class_names, "unmask", {**to_dict(checked), "objective": objective})
