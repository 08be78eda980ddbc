"""One checkpoint on disk: a folder of safetensors and JSON, sealed by checksums.

step-00001200/
  weights.safetensors     fp32, canonical names
  optimizer.safetensors   exp_avg.NAME, exp_avg_sq.NAME; absent when empty
  ema.safetensors         absent when off
  buffers.safetensors     what the network holds beside weights; absent when empty, as is teacher.safetensors
  state.json              step, engine scalars, meta, metric
  checksums.json          SHA-256 of each of the others, written last
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.checkpoint.tensors import read_tensors, write_tensors
from unmask.engines.base import EngineState, Tensors
from unmask.errors import CheckpointError
from unmask.files import cause, fsync, parse_json, read_bytes, sha256

TENSOR_FILES = {group: f"{group}.safetensors" for group in ("weights", "optimizer", "ema", "buffers", "teacher")}
STATE = "state.json"
CHECKSUMS = "checksums.json"
_FILES = frozenset([*TENSOR_FILES.values(), STATE])


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on: the data position is the step, so there is no loader or generator state."""

    step: int
    """Updates done (counting skipped ones)."""
    state: EngineState
    meta: dict[str, Any]
    """What JSON can hold: the config, versions, the data fingerprint. Floats come back exactly, tuples as lists."""


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


def folder_step(folder: Path) -> int | None:
    """The step a folder is named after, None for any other name."""
    match = re.fullmatch(r"step-(\d{8,18})", folder.name, re.ASCII)
    return int(match[1]) if match else None


def encode_state(checkpoint: Checkpoint, metric: float | None) -> bytes:
    """The content of state.json. Raises TypeError when meta holds what JSON cannot."""
    scalars = {name: float(value) for name, value in checkpoint.state.scalars.items()}
    known = None if metric is None or math.isnan(metric) else float(metric)
    content = {"step": checkpoint.step, "metric": known, "scalars": scalars, "meta": checkpoint.meta}
    return _encode(content)


def write_folder(folder: Path, state: EngineState, state_json: bytes) -> None:
    """Create `folder` and make it durable; checksums come last, so a folder that has them is complete.

    Raises OSError or SafetensorError.
    """
    folder.mkdir()
    for group, name in TENSOR_FILES.items():
        if tensors := getattr(state, group):
            write_tensors(folder / name, tensors)
    (folder / STATE).write_bytes(state_json)
    names = sorted(path.name for path in folder.iterdir())
    (folder / CHECKSUMS).write_bytes(_encode({name: sha256(folder / name) for name in names}))
    for name in [*names, CHECKSUMS]:
        fsync(folder / name)
    fsync(folder)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Verify and load one checkpoint folder. Raises CheckpointError when it is not exactly what was written."""
    present = verify(folder)
    content = _read_state(folder)
    tensors: dict[str, Tensors] = {
        group: read_tensors(folder / name) for group, name in TENSOR_FILES.items() if name in present
    }
    return Checkpoint(content["step"], EngineState(**tensors, scalars=content["scalars"]), content["meta"])


def read_weights(folder: Path, prefer_ema: bool = True) -> Tensors:
    """Only the weights of a checkpoint folder: the moving average if it has one and `prefer_ema`.

    Raises CheckpointError when damaged; files that are not needed are not looked at.
    """
    names = _listed(folder).keys()
    file = TENSOR_FILES["ema" if prefer_ema and TENSOR_FILES["ema"] in names else "weights"]
    verify(folder, only=[file])
    return read_tensors(folder / file)


def read_buffers(folder: Path) -> Tensors:
    """Only the buffers of a checkpoint folder; often there are none. Raises CheckpointError when damaged."""
    file = TENSOR_FILES["buffers"]
    if file not in _listed(folder):
        return {}
    verify(folder, only=[file])
    return read_tensors(folder / file)


def read_meta(folder: Path) -> dict[str, Any]:
    """Only the meta of a checkpoint folder, verified. Raises CheckpointError."""
    verify(folder, only=[STATE])
    return _read_state(folder)["meta"]


def read_metric(folder: Path) -> float | None:
    """The metric a checkpoint was saved with, verified. Raises CheckpointError."""
    verify(folder, only=[STATE])
    return _read_state(folder)["metric"]


def verify(folder: Path, only: Collection[str] = _FILES) -> frozenset[str]:
    """Compare the files with their checksums; returns the names of all files. Raises CheckpointError at the first flaw.

    `only`: look at no others than these.
    """
    listed = _listed(folder)
    for name in sorted(listed.keys() & only):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing")
        try:
            actual = sha256(folder / name)
        except OSError as error:
            raise CheckpointError(f"{folder / name} cannot be read: {cause(error)}") from error
        if actual != listed[name]:
            raise CheckpointError(f"{folder / name} is damaged: its SHA-256 is not the one in {CHECKSUMS}")
    return frozenset(listed)


def _listed(folder: Path) -> dict[str, str]:
    """Checksum by file name; only names that a checkpoint has, so none leads out of the folder."""
    path = folder / CHECKSUMS
    raw = read_bytes(path)
    listed = parse_json(path, raw)
    # Compared as bytes, so that a flip which leaves the JSON readable (the case of a digit) is noticed too.
    if _encode(listed) != raw or not {TENSOR_FILES["weights"], STATE} <= listed.keys() <= _FILES:
        raise CheckpointError(f"{path} is damaged")
    present = {name for name in _FILES if (folder / name).exists()}
    if present - listed.keys():
        raise CheckpointError(f"{path} is damaged: it does not list {', '.join(sorted(present - listed.keys()))}")
    return listed


def _read_state(folder: Path) -> dict[str, Any]:
    path = folder / STATE
    content = parse_json(path, read_bytes(path))
    types = {"step": int, "metric": (float, type(None)), "scalars": dict, "meta": dict}
    if content.keys() != types.keys() or not all(isinstance(content[name], types[name]) for name in types):
        raise CheckpointError(f"{path} does not hold {', '.join(types)}")
    if not all(isinstance(value, float) for value in content["scalars"].values()):
        raise CheckpointError(f"{path} has a scalar that is not a number")
    if folder_step(folder) not in (None, content["step"]):
        raise CheckpointError(f"{path} is of step {content['step']}, not of the step in the name of its folder")
    return content


def _encode(content: dict[str, Any]) -> bytes:
    """In order of the keys, so that what is the same has the same bytes, however it was put together."""
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()
