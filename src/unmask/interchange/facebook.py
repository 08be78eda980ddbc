"""The container of the official MAE code: torch.save({"model": state_dict, ...}). Our names are the official ones."""

from __future__ import annotations

from pathlib import Path

from unmask.engines.base import Tensors
from unmask.errors import CheckpointError
from unmask.files import cause, written_aside
from unmask.interchange.stored_model import (
    StoredModel,
    as_float32,
    extra_json,
    fields_from_shapes,
    from_extra,
    published_heads,
)
from unmask.interchange.torch_file import TorchFile
from unmask.interchange.unpickle import TensorRecord

EXTRA = "unmask"
"""Beside "model", in files written here: the fields and class names as JSON. The official code ignores it."""


def read_facebook(path: Path) -> StoredModel:
    """A pretrained or fine-tuned .pth; optimizer, scaler and arguments are left alone. Raises CheckpointError."""
    with TorchFile(path) as file:
        weights = read_state_dict(file)
        extra = file.content.get(EXTRA)
    fields = fields_from_shapes(weights)
    fields |= published_heads(fields)
    if not isinstance(extra, str):
        return StoredModel(weights, fields, None, "facebook")
    ours = from_extra(path, extra)
    return StoredModel(weights, format="facebook", **{**ours, "model": fields | ours["model"]})


def read_state_dict(file: TorchFile) -> Tensors:
    """The tensors of a state dict, be it under "model" or the whole file; float32."""
    content = file.content
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{file.path} holds no model: neither a state dict nor one under 'model'")
    strangers = [str(name) for name, value in content.items() if not isinstance(value, TensorRecord)]
    if strangers or not all(isinstance(name, str) for name in content):
        raise CheckpointError(f"{file.path} holds no state dict: {', '.join(strangers[:5])} is not a tensor")
    return as_float32({name: file.array(record) for name, record in content.items()})


def write_facebook(path: Path, model: StoredModel) -> None:
    """Write a file that the official code and torch.load(weights_only=True) read. Raises CheckpointError."""
    try:
        import torch
    except ImportError as error:
        raise CheckpointError("writing a .pth needs PyTorch: pip install 'unmask[torch]'") from error
    tensors = {name: torch.tensor(tensor) for name, tensor in model.weights.items()}
    try:
        with written_aside(path) as aside:
            torch.save({"model": tensors, EXTRA: extra_json(model)}, aside)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise CheckpointError(f"cannot write {path}: {cause(error)}") from error
