"""Files of torch.save as the official repositories write them: a state dict, or one in a dictionary of other things."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from unmask.engines.base import Tensors
from unmask.errors import CheckpointError
from unmask.files import cause, written_aside
from unmask.interchange.official import told
from unmask.interchange.stored_model import (
    StoredModel,
    as_float32,
    check_told,
    extra_json,
    fields_from_shapes,
    from_extra,
)
from unmask.interchange.torch_file import TorchFile
from unmask.interchange.unpickle import Global, Opaque, TensorRecord
from unmask.interchange.vit import check, from_state_dict

log = logging.getLogger("unmask")

EXTRA = "unmask"
"""Beside "model", in files written here: what the tensors do not tell, as JSON. The official code ignores it."""

CONTAINERS = ("model_ema", "state_dict_ema", "teacher", "model", "state_dict", "student")
"""Where a state dict may be. The first that is there is taken: a moving average before what it is of, as timm does and
as DINO's own evaluation does."""


def read_facebook(path: Path) -> StoredModel:
    """Weights of MAE, DINO, DINOv2, DeiT, DeiT III or MoCo-v3, of timm's ViTs, or written here, with what the file
    tells; optimizer and scaler are left alone. Raises CheckpointError."""
    with TorchFile(path) as file:
        taken, tensors = _state_dict(file)
        content = file.content
    if isinstance(extra := content.get(EXTRA), str):
        check(str(path), tensors)
        if taken:
            log.warning("%s: %s", path, taken)
        ours = from_extra(path, extra)
        check_told(str(path), ours["model"], tensors, ours["class_names"])
        return StoredModel(tensors, format="facebook", **{**ours, "model": fields_from_shapes(tensors) | ours["model"]})
    weights = from_state_dict(str(path), tensors, taken)
    fields = fields_from_shapes(weights)
    beside = told(path, tensors, content, fields)
    return StoredModel(
        weights, fields | beside["model"], None, "facebook", data=beside["data"], objective=beside["objective"]
    )


def read_state_dict(file: TorchFile) -> Tensors:
    """The tensors of a state dict, wherever in the file it is, under their names there; float32."""
    return _state_dict(file)[1]


def _state_dict(file: TorchFile) -> tuple[str, Tensors]:
    """Which was taken, where something else in the file has tensors too; and its tensors, float32."""
    content, taken = file.content, ""
    found = [name for name in CONTAINERS if isinstance(content, dict) and isinstance(content.get(name), dict)]
    if found:
        others = found[1:] + [str(name) for name, value in content.items() if name not in found and _has_tensors(value)]
        content = content[found[0]]
        taken = f"{found[0]} is taken, not {' or '.join(others)}" if others else ""
    if isinstance(content, dict) and isinstance(whole := content.get("model"), Opaque):
        content = whole
    if isinstance(content, Opaque):
        raise CheckpointError(
            f"{file.path} holds a Python object, {content.name}, which would have to be executed; "
            "save the state_dict() of the model in its place"
        )
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{file.path} holds no model: neither a state dict nor one under {', '.join(CONTAINERS)}")
    strangers = [f"{name} {_what(value)}" for name, value in content.items() if not isinstance(value, TensorRecord)]
    if strangers or not all(isinstance(name, str) for name in content):
        raise CheckpointError(f"{file.path} holds no state dict: {', '.join(strangers[:5]) or 'a name is no text'}")
    return taken, as_float32({name: file.array(record) for name, record in content.items()})


def _has_tensors(value: Any) -> bool:
    inside = value.values() if isinstance(value, dict) else [value]
    return any(isinstance(each, TensorRecord) for each in inside)


def _what(value: Any) -> str:
    if isinstance(value, Opaque | Global):
        quantised = "; it looks like a quantised model" if "qtensor" in value.name else ""
        return f"is a {value.name}, not a tensor{quantised}"
    return "is not a tensor"


def write_facebook(path: Path, model: StoredModel) -> None:
    """Write a file that the official code and torch.load(weights_only=True) read. Raises CheckpointError."""
    try:
        import torch
    except ImportError as error:
        raise CheckpointError("writing a .pth needs PyTorch: pip install 'unmask[torch]'") from error
    tensors = {name: torch.tensor(tensor) for name, tensor in model.weights.items()}
    try:
        with written_aside(path) as aside, aside.open("wb") as file:
            torch.save({"model": tensors, EXTRA: extra_json(model)}, file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError, raised after the OSError
        failed = error.__context__ if isinstance(error.__context__, OSError) else error
        raise CheckpointError(f"cannot write {path}: {cause(failed)}") from error
