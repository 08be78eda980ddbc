"""A model sent to the Hugging Face hub, with a card that says what it is, where it is from and how it is loaded."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from safetensors import SafetensorError

from unmask.checkpoint.folder import CHECKSUMS, folder_step, read_meta
from unmask.checkpoint.store import Choice, read_chosen
from unmask.config.load import Settings
from unmask.errors import CheckpointError
from unmask.interchange import Format, StoredModel, read_model, write_model
from unmask.interchange.card import Origin, card
from unmask.interchange.completion import completed
from unmask.interchange.hub import HubName, check_upload, is_hub_name, parse, upload
from unmask.report.log import METRICS_FILE, read_log
from unmask.report.progress import say

CARD = "README.md"
_FILES = {"facebook": "model.pth", "mindspore": "model.ckpt", "mindspore-zoo": "model.ckpt"}
"""Names of the formats that are one file; the others are folders."""
_ORDER = ("transformers", "timm")
_FORMATS: tuple[Format, ...] = get_args(Format)
_PREFERRED: list[Format] = sorted((name for name in _FORMATS if name in _ORDER), key=lambda name: _ORDER.index(name))
"""What other tools load from the hub by its name, in the order in which a model is tried."""


def push(
    model: str | Path,
    name: str,
    *,
    to: Format | None = None,
    checkpoint: Choice = "last",
    settings: Settings = (),
    private: bool = False,
    message: str | None = None,
    overwrite_card: bool = False,
) -> tuple[str, Format]:
    """Send a model to hf://OWNER/NAME in one commit; returns the name under which just this is loaded, and its format.

    `to`: by default transformers, or timm for what transformers has no place for. `checkpoint` of a run, `settings`:
    see `load`. `private` holds for a repository that is created. A card that is there stays, unless `overwrite_card`.
    Paths of this machine are not published. Raises ConfigError and CheckpointError.
    """
    place = parse(name)
    there = check_upload(name, private=private)
    found, origin = _read(model, checkpoint)
    found = completed(found, str(model), settings)
    with tempfile.TemporaryDirectory(prefix="unmask-") as temporary:
        format, folder = _write(Path(temporary), found, [to] if to else _PREFERRED, str(model))
        file = _FILES.get(format, "")
        if there is None or CARD not in there or overwrite_card:
            text = card(found, origin, HubName(place.repo, place.revision, file), format, folder)
            (folder / CARD).write_text(text, encoding="utf-8")
        else:
            say(f"{place} has a {CARD}, which stays as it is; --overwrite-card replaces it")
        message = message or f"Add {found.kind} ({format})"
        commit = upload(folder, name, create=there is None, private=private, message=message)
    return str(HubName(place.repo, commit, file)), format


def _read(model: str | Path, checkpoint: Choice) -> tuple[StoredModel, Origin]:
    if is_hub_name(str(model)):
        return read_model(model, checkpoint), Origin(base=parse(str(model)).repo)
    path = Path(model)
    if (path / "checkpoints").is_dir():
        return read_chosen(path / "checkpoints", checkpoint, _read_checkpoint)
    if (path / CHECKSUMS).exists() and checkpoint == "last":
        return _read_checkpoint(path)
    return read_model(path, checkpoint), Origin()


def _read_checkpoint(folder: Path) -> tuple[StoredModel, Origin]:
    found, meta, step = read_model(folder), read_meta(folder), folder_step(folder)
    log = read_log(folder.parent.parent / METRICS_FILE)
    last = {row["split"]: row for row in log if step is None or row["step"] <= step}
    figures = {"loss": last["train"]["loss"]} if "train" in last else {}
    figures |= {f"val {key}": value for key, value in last.get("val", {}).items() if key not in ("step", "split")}
    init = (found.config or {}).get("init")
    base = parse(init).repo if init and is_hub_name(init) else None
    return found, Origin(base, step, meta.get("data") or {}, figures)


def _write(folder: Path, model: StoredModel, formats: Sequence[Format], source: str) -> tuple[Format, Path]:
    """The first format that has a place for the model, and the folder that holds it."""
    refused: list[str] = []
    for format in formats:
        inside = folder / format
        inside.mkdir()
        try:
            write_model(format, inside / _FILES.get(format, ""), model)
        except CheckpointError as error:
            if isinstance(error.__cause__, OSError | SafetensorError | RuntimeError):  # not that it has no place
                raise CheckpointError(
                    f"{error}; what is sent is put together there, and TMPDIR=FOLDER names another place"
                ) from error
            refused.append(f"{format}: {error}")
        else:
            return format, inside
    raise CheckpointError(f"{source} cannot be pushed as {'; '.join(refused)} (--to names another format)")
