"""A run's checkpoints once more, beside its folder, as MindSpore's ModelCheckpoint names them.

    output/ViT-B-P16/                the run, with its checkpoints
    output/ViT-B-P16-300_312.ckpt    the weights after epoch 300, of 312 steps

They come and go with the run's own. Files of such a name that this run did not write are left alone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unmask.checkpoint.folder import folder_name, read_meta
from unmask.checkpoint.store import list_steps
from unmask.errors import CheckpointError
from unmask.files import cause, parse_json, read_bytes, write_text
from unmask.interchange import read_model, write_model
from unmask.interchange.mindspore import run_beside

log = logging.getLogger("unmask")

RECORD = "beside.json"
"""In the run folder: the files written here, by name, and the step of each."""


def write_beside(folder: Path) -> None:
    """Bring the files beside the run in `folder` to what its checkpoints are. Raises CheckpointError."""
    wanted = dict(_named_steps(folder))
    ours = _recorded(folder)
    for name in ours.keys() - wanted.keys():
        _remove(folder.parent / name)
    kept = {name: step for name, step in ours.items() if name in wanted}
    for name, step in wanted.items():
        path = folder.parent / name
        if path.exists() and kept.get(name) == step:
            continue
        if path.exists() and name not in kept:
            log.warning("%s is there and not of this run: it is left as it is", path)
            continue
        try:
            model = read_model(folder / "checkpoints" / folder_name(step))
        except CheckpointError:
            continue  # damaged, which is said where it is loaded
        kept[name] = step
        _record(folder, kept)  # first: killed before the file is there, the next call writes it
        write_model("mindspore", path, model)
    if kept != ours:
        _record(folder, kept)


def _named_steps(folder: Path) -> Iterator[tuple[str, int]]:
    """The checkpoints of a run: PREFIX-EPOCH_STEP.ckpt, both counted from 1 and the step within its epoch; the step."""
    for step in list_steps(folder / "checkpoints"):
        try:
            meta = read_meta(folder / "checkpoints" / folder_name(step))
        except CheckpointError:
            continue
        images, batch = meta["data"]["images"], meta["config"]["train"]["batch_size"]
        epoch, before = divmod(step - 1, max(1, round(images / batch)))
        yield f"{folder.name}-{epoch + 1}_{before + 1}.ckpt", step


def _recorded(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    try:
        found = parse_json(path, read_bytes(path)) if path.exists() else {}
    except CheckpointError:
        return {}  # damaged: what is there is left alone
    return {name: step for name, step in found.items() if run_beside(folder.parent / name) == folder}


def _record(folder: Path, written: dict[str, Any]) -> None:
    path = folder / RECORD
    try:
        write_text(path, json.dumps(written, indent=1) + "\n")
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {cause(error)}") from error


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot remove {path}: {cause(error)}") from error
