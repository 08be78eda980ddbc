"""Runs in one page: what `unmask report` writes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from unmask.checkpoint.store import Choice
from unmask.config.schema import Config
from unmask.data.sources import Source, open_with_labels_if_any
from unmask.data.sources.base import printable
from unmask.environment import versions
from unmask.errors import ConfigError, DataError, UnmaskError
from unmask.evaluate.inference import load
from unmask.files import cause, check_free
from unmask.overview.batches import augmented
from unmask.overview.looks import counts_by_class, look
from unmask.overview.runs import RunFolder, config_table, read_runs
from unmask.preparation import open_sources, parts_of
from unmask.report.page import Blobs, page, write_page
from unmask.report.progress import say

IMAGES = 10_000
"""Most images of a run that are looked at, by default."""
REPORT = "report.html"
_SCRIPTS = ("charts.js", "classes.js", "map.js", "report.js")

T = TypeVar("T")


def write_report(
    runs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    *,
    images: int = IMAGES,
    settings: Sequence[str] = (),
    checkpoint: Choice = "last",
    engine: str | None = None,
    device: str = "auto",
    precision: str = "fp32",
    batch_size: int = 64,
) -> Path:
    """Write one HTML file about one or several run folders, and return its path: `out`, or `report.html` in the run.

    It needs no server, no network and no file beside it. Configuration, curves and versions are of all runs together;
    then come, of each, what its model says of at most `images` images of `data.val` (else of `evaluate.val`, else of
    `data.train`): map, neighbours, classes, mistakes, reconstructions; and what training shows it. Where the images or
    the model cannot be had, the page says so and has the rest. With `images=0` neither is looked for.

    `settings` are `KEY=VALUE`, such as `data.val=FOLDER` where the images have moved. The other arguments are those
    of `load`. Raises ConfigError for a folder that holds no run and for an `out` that is there already, and UnmaskError
    when the page cannot be written.
    """
    paths = [Path(run) for run in runs]
    out = _place(paths, out)
    found, blobs = read_runs(paths, settings), Blobs()
    how = {"engine": engine, "device": device, "precision": precision, "batch_size": batch_size, "settings": settings}
    facts = [_of(run, images, blobs, {"checkpoint": checkpoint, **how}) for run in found]
    data = {
        "made": datetime.now().astimezone().isoformat(timespec="minutes"),
        "version": versions().get("unmask", ""),
        "runs": facts,
        "config": config_table(found),
    }
    try:
        write_page(out, page("report", _SCRIPTS, data, blobs))
    except OSError as error:
        raise UnmaskError(f"cannot write {out}: {cause(error)}") from error
    say(f"{out}: {out.stat().st_size / 1e6:.1f} MB, for any browser")
    return out


def _place(paths: Sequence[Path], out: str | os.PathLike[str] | None) -> Path:
    if not paths:
        raise ConfigError("name a run folder")
    if out is None and len(paths) > 1:
        raise ConfigError("a report of several runs belongs to none of their folders; name its place: --out FILE.html")
    place = paths[0] / REPORT if out is None else Path(out)
    if place.is_dir():
        raise ConfigError(f"{place} is a folder; name a file: --out {place / REPORT}")
    if out is not None:
        check_free(place)
    return place


def _of(run: RunFolder, images: int, blobs: Blobs, how: dict[str, Any]) -> dict[str, Any]:
    """All that the page has of a run."""
    facts, notes = run.facts(), _Notes([])
    facts["notes"] = notes.said
    if not images:
        notes.said.append(f"No images were looked at; `unmask report {facts['folder']}` does.")
        return facts
    trained = notes.unless(
        "training images and augmented batches", lambda: _training_images(run.config, how["settings"])
    )
    if trained is not None:
        facts["classCounts"] = counts_by_class(trained[0])
        facts["batches"] = notes.unless("augmented batches", lambda: augmented(run.config, *trained, blobs))
    asked = notes.unless(
        "images and what the model says of them",
        lambda: _images_to_look_at(run.config, trained and trained[0], how["settings"]),
    )
    if asked is not None:
        key, source = asked

        def looked() -> dict[str, Any]:
            with load(run.path, **how) as model:
                return {"key": key, **look(model, source, images, blobs)}

        facts["images"] = notes.unless("what the model says of images", looked)
    return facts


class _AskedForError(DataError):
    """Images that the command itself names cannot be had."""


@dataclass(frozen=True)
class _Notes:
    """What is missing in the page, and why."""

    said: list[str]

    def unless(self, what: str, make: Callable[[], T]) -> T | None:
        """What `make` gives; where it cannot, the page says why, and so does the command."""
        try:
            return make()
        except _AskedForError:
            raise
        except UnmaskError as error:
            note = printable(f"Missing: {what}. {' '.join(str(error).split())}")
            self.said.append(note)
            say(note)
            return None


def _training_images(config: Config, named: Sequence[str]) -> tuple[Source, Source | None]:
    """Those with labels, or all, and those without labels beside them."""
    if config.data.train is None:
        raise DataError("a program gave them to the run; name them: --set data.train=FOLDER")
    try:
        source, _, unlabelled = open_sources(config.model_copy(update={"data": config.data.without_val()}))
    except DataError as error:
        raise _not_there(error, "data.train", named) from None
    return source, unlabelled


def _not_there(error: DataError, key: str, named: Sequence[str]) -> DataError:
    if any(setting.partition("=")[0] == key for setting in named):
        return _AskedForError(str(error))
    return DataError(f"{error}; if they are elsewhere now: --set {key}=FOLDER")


def _images_to_look_at(config: Config, trained: Source | None, named: Sequence[str]) -> tuple[str, Source]:
    """Which they are and the images, with classes where they have any. Raises DataError."""
    for key, spec in (("data.val", config.data.val), ("evaluate.val", config.evaluate.val)):
        if spec is not None:
            try:
                if spec == config.data.val and config.data.val_share is not None:
                    whole = open_with_labels_if_any(config.data.train or "", key="data.train")[0]
                    return key, parts_of(whole, config)[1] or whole
                return key, open_with_labels_if_any(spec, key=key)[0]
            except DataError as error:
                raise _not_there(error, key, named) from None
    if trained is None or config.data.train is None:
        raise DataError("name some: --set data.val=FOLDER")
    if trained.labels is None:
        with suppress(DataError):
            return "data.train", open_with_labels_if_any(config.data.train, key="data.train")[0]
    return "data.train", trained
