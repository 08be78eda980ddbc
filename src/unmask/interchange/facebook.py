"""The container of the official MAE code: torch.save({"model": state_dict, ...}). Our names are the official ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unmask.engines.base import Tensors
from unmask.errors import CheckpointError
from unmask.files import cause, parse_json, written_aside
from unmask.interchange.stored_model import StoredModel, as_float32, fields_from_shapes, stated
from unmask.interchange.torch_file import TorchFile
from unmask.interchange.unpickle import TensorRecord

EXTRA = "unmask"
"""Beside "model", in files written here: the fields and class names as JSON. The official code ignores it."""


def read_facebook(path: Path) -> StoredModel:
    """A pretrained or fine-tuned .pth; optimizer, scaler and arguments are left alone. Raises CheckpointError."""
    with TorchFile(path) as file:
        weights = read_state_dict(file)
        extra = file.content.get(EXTRA)
    ours = parse_json(path, extra.encode()) if isinstance(extra, str) else {}
    model, class_names = stated(path, ours, ours.get("model", {}))
    return StoredModel(weights, fields_from_shapes(weights) | model, class_names, "facebook")


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


def write_facebook(path: Path, weights: Tensors, model: Mapping[str, Any], class_names: Sequence[str] | None) -> None:
    """Write a file that the official code and torch.load(weights_only=True) read. Raises CheckpointError."""
    try:
        import torch
    except ImportError as error:
        raise CheckpointError("writing a .pth needs PyTorch: pip install 'unmask[torch]'") from error
    extra = json.dumps({"model": dict(model), "class_names": class_names and list(class_names)})
    tensors = {name: torch.tensor(tensor) for name, tensor in weights.items()}
    try:
        with written_aside(path) as aside:
            torch.save({"model": tensors, EXTRA: extra}, aside)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise CheckpointError(f"cannot write {path}: {cause(error)}") from error
