"""Whether what a run folder holds is the run that is to go on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unmask.checkpoint.folder import Checkpoint
from unmask.checkpoint.images import changes, sample_of, written_anew
from unmask.config.load import check_config, flatten, read_yaml, to_dict
from unmask.config.schema import Config
from unmask.data.sources.base import Source
from unmask.errors import ConfigError, DataError
from unmask.report.log import METRICS_FILE
from unmask.report.progress import say

MAY_CHANGE = {
    "engine",
    "device",
    "output",
    "init",
    *("data.train", "data.val", "data.unlabelled", "data.allow_change", "data.workers"),
    *("train.accumulate", "train.compile", "train.max_skipped", "train.log_every"),
    *("train.eval_every", "train.checkpoint_every", "train.keep", "train.process_timeout", "data.max_bad_share"),
    *("train.activation_checkpointing", "train.shard"),
    "train.loggers",
    *("evaluate.every", "evaluate.train", "evaluate.val"),
}
"""Keys that may differ when a run is resumed: they do not decide its numbers. The data is compared by fingerprint."""


def check_same_config(config: Config, checkpoint: Checkpoint, folder: Path) -> None:
    """Raise ConfigError with the keys that differ when the checkpoint in `folder` is of another run."""
    _compare(config, checkpoint.meta["config"], folder)


def check_same_start(config: Config, folder: Path) -> None:
    """The same for a folder in which a run was stopped before its first checkpoint: its log is not wiped by another."""
    log, described = folder / METRICS_FILE, folder / "run.yaml"
    if log.exists() and log.stat().st_size and described.exists():
        _compare(config, read_yaml(described)[0].get("config") or {}, folder)


def _compare(config: Config, stored: Mapping[str, Any], folder: Path) -> None:
    if refused := differences(config, stored):
        raise ConfigError(f"{folder} holds another run ({'; '.join(refused)}); choose another output=FOLDER")


def differences(config: Config, stored: Mapping[str, Any]) -> list[str]:
    """The keys that decide a run's numbers and are not as in a config that was stored: `key: before -> now`."""
    # Checked anew: keys that did not exist when the run was started have their defaults, renamed ones today's names.
    before, now = flatten(to_dict(check_config(stored))), flatten(to_dict(config))
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    return [f"{key}: {before.get(key)} -> {now.get(key)}" for key in changed if key not in MAY_CHANGE]


def data_record(
    source: Source,
    others: Mapping[str, Source | None],
    checkpoint: Checkpoint | None,
    folder: Path,
    *,
    allow_change: bool,
) -> dict[str, Any]:
    """What `run.yaml` and every checkpoint say of the training images: {images, fingerprint, sample, earlier, val}.

    `sample`: see `sample_of`. `earlier` lists images and fingerprint of what the run was trained on before, each with
    `until_step`. `others`, beside `data.train`: `val`, the images it is judged by, and `unlabelled`, have theirs under
    their name; there is no `unlabelled` where the run has none. Raises DataError when the images differ from the
    checkpoint's, unless `allow_change`, and always when the classes differ, because the model's head was trained on
    them.
    """
    record: dict[str, Any] = {"images": len(source), "fingerprint": source.fingerprint(), "sample": sample_of(source)}
    beside = {name: None if images is None else identity(images) for name, images in others.items()}
    record |= {"earlier": [], **beside}
    if checkpoint is None:
        return record
    before = {"earlier": [], "sample": None, "val": None} | checkpoint.meta["data"]  # runs from before these were kept
    for name, now in beside.items():
        _check_same(f"data.{name}", before.get(name), now, folder, allow_change=allow_change)
    if not (change := _change(source, before, record, folder)):
        return before | {"sample": record["sample"], **beside}
    difference = f"data.train has changed since the last checkpoint in {folder}: {change}"
    if not allow_change:
        raise DataError(f"{difference}; restore it, choose another output=FOLDER, or go on with data.allow_change=true")
    if checkpoint.meta["class_names"] != (None if source.class_names is None else list(source.class_names)):
        raise DataError(f"data.train has other classes than {folder} was started with; choose another output=FOLDER")
    say(f"{difference}; going on with what is there")
    kept = {name: before[name] for name in ("images", "fingerprint")}
    return record | {"earlier": [*before["earlier"], kept | {"until_step": checkpoint.step}]}


def identity(source: Source) -> dict[str, Any]:
    """What tells images from others: their number, names, sizes and labels, and a sample of what they hold."""
    return {"images": len(source), "fingerprint": source.fingerprint(), "sample": sample_of(source)}


def _change(source: Source, before: dict[str, Any], now: dict[str, Any], folder: Path) -> str:
    """What is different about the training images; "" where nothing is."""
    if before["fingerprint"] != now["fingerprint"]:
        told = changes(source, before["fingerprint"], folder) or "other names, sizes or labels"
        return f"{before['images']} images then, {now['images']} now: {told}"
    if anew := written_anew(source, before["fingerprint"], folder):
        return anew
    same = before["sample"] in (None, now["sample"])
    return "" if same else "names and sizes are the same, but not what the images hold"


def _check_same(
    key: str, before: dict[str, Any] | None, now: dict[str, Any] | None, folder: Path, *, allow_change: bool
) -> None:
    """Figures on other images are no figures of the same curve."""
    if before is None or now is None or before == now:
        return
    counts = f"{before['images']} images then, {now['images']} now"
    difference = f"{key} has changed since the last checkpoint in {folder}: {counts}"
    if not allow_change:
        raise DataError(f"{difference}; restore it, choose another output=FOLDER, or go on with data.allow_change=true")
    say(f"{difference}; going on with what is there")
