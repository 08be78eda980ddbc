"""Do one step of a run again, to look at it: its images as they were shown, its loss, the weights it left."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from unmask.checkpoint.folder import folder_name, read_meta
from unmask.checkpoint.images import IMAGES
from unmask.checkpoint.store import list_steps, load_newest
from unmask.config.load import check_config
from unmask.config.schema import Config
from unmask.data.batch import FULL_RANGE
from unmask.data.loader.spikes import unlabelled_names
from unmask.data.sources import Source
from unmask.data.sources.base import printable
from unmask.errors import ConfigError, UnmaskError
from unmask.files import check_free, folder_written_aside, write_text
from unmask.preparation import batches_of, open_sources
from unmask.report.log import METRICS_FILE, read_log
from unmask.report.pictures import contact_sheet
from unmask.report.progress import say, table
from unmask.teacher import TEACHER, Teacher
from unmask.train import train

_SHOWN = 48
"""Images in the picture."""
_NEVER = 1e9


def replay(run: Path, step: int, out: Path | None = None) -> dict[str, Any]:
    """Train again from the newest checkpoint before `step` to `step`, in a folder of its own; the run is only read.

    On the same engine, device and number of processes the numbers are those of the run, bit for bit. Writes into `out`
    (None: `RUN/replay-STEP`): `step.json` with the step's numbers, those in the run's log, and the norm of each weight
    after it; `images.txt`, what the step was of; `batch.png`, the first of it as the network saw them. Returns what is
    in `step.json`. Raises ConfigError where the run has no such step or `out` is there already, DataError where its
    images have changed.
    """
    out = out or run / f"replay-{step}"
    check_free(out)
    checkpoints = run / "checkpoints"
    earlier = [saved for saved in list_steps(checkpoints) if saved < step] if checkpoints.is_dir() else []
    config = _config(run, earlier)
    source, _, unlabelled = open_sources(config)
    last = max((int(row["step"]) for row in read_log(run / METRICS_FILE) if row["split"] == "train"), default=0)
    if not 1 <= step <= last:
        raise ConfigError(f"{run} has the steps 1 to {last}; --step {step} is none of them")
    say(f"from {f'the checkpoint of step {earlier[-1]}' if earlier else 'the start'} to step {step}")
    with tempfile.TemporaryDirectory(prefix="unmask-") as temporary:
        folder = Path(temporary)
        if earlier:
            name = folder_name(earlier[-1])
            shutil.copytree(checkpoints / name, folder / "checkpoints" / name)
        if (run / IMAGES).exists():
            shutil.copy(run / IMAGES, folder / IMAGES)
        if (run / TEACHER).is_dir():
            shutil.copytree(run / TEACHER, folder / TEACHER)
        train(config, folder, callbacks=[lambda done, _: done >= step])
        found = _numbers(folder, step)
        if config.objective.teachers and unlabelled is not None:
            source, unlabelled = Teacher(config, source, unlabelled).taught(folder), None
        weights = load_newest(folder / "checkpoints").state.weights
    norms = {name: float(np.linalg.norm(tensor.astype(np.float64))) for name, tensor in weights.items()}
    logged = _numbers(run, step)
    result = {"step": step, "found": found, "logged": logged, "same": found == logged, "weight_norms": norms}
    try:
        with folder_written_aside(out) as aside:
            names = _write(result, config, source, unlabelled, aside)
    except OSError as error:
        raise UnmaskError(f"cannot write {out}: {error.strerror or error}") from error
    _tell(result)
    say(f"{'the same numbers' if result['same'] else 'OTHER numbers than in the log'}; {names} images: {out}")
    return result


def _config(run: Path, earlier: list[int]) -> Config:
    """The run's own, looking at the device after each step and saving and evaluating nothing on the way."""
    if earlier:
        values = read_meta(run / "checkpoints" / folder_name(earlier[-1]))["config"]
    else:
        try:
            values = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))["config"]
        except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
            raise ConfigError(
                f"{run} is no run folder: it has neither a checkpoint before that step nor run.yaml"
            ) from None
    config = check_config(values)
    often = {"log_every": 1, "checkpoint_every": _NEVER, "eval_every": _NEVER}
    return config.model_copy(
        update={
            "train": config.train.model_copy(update=often),
            "data": config.data.without_val(),
            "evaluate": config.evaluate.model_copy(update={"every": None}),
        }
    )


def _numbers(folder: Path, step: int) -> dict[str, float]:
    rows: list[Mapping[str, Any]] = [
        row for row in read_log(folder / METRICS_FILE) if row["split"] == "train" and row["step"] == step
    ]
    return {name: value for name, value in rows[-1].items() if name not in ("split", "step")} if rows else {}


def _write(result: dict[str, Any], config: Config, source: Source, unlabelled: Source | None, out: Path) -> int:
    """Into the folder `out`, which is there; returns how many images the step is of."""
    step, size = result["step"], config.train.batch_size
    whole = config.model_copy(update={"train": config.train.model_copy(update={"accumulate": 1})})
    with closing(batches_of(whole, source, unlabelled)(start_step=step - 1, stop_step=step)) as batches:
        (batch,) = next(batches)
    names = [printable(source.name(index)) for index in batch.index.tolist()]
    write_text(out / "step.json", json.dumps(result, indent=1) + "\n")
    beside: list[str] = []
    if unlabelled is not None:
        positions, each = range((step - 1) * size, step * size), config.objective.unlabelled_images
        beside = unlabelled_names(unlabelled, positions, each, config.seed)
    write_text(out / "images.txt", "".join(f"{name}\n" for name in [*names, *beside]))
    pixels = batch.images[:_SHOWN]
    pixels = pixels[:, 0] if pixels.ndim == 5 else pixels  # of several views the first
    shown = pixels.astype(np.float32) / FULL_RANGE[config.data.dtype]
    contact_sheet(
        np.clip(shown, 0, 1), out / "batch.png", captions=[name.rpartition("/")[2] for name in names[:_SHOWN]]
    )
    return len(names)


def _tell(result: dict[str, Any]) -> None:
    keys = [key for key in ("loss", "grad_norm", "lr", "skipped", "loss_scale") if key in result["found"]]
    table([[key, result["found"][key], result["logged"].get(key, "")] for key in keys], ["", "again", "in the log"])
    odd = [name for name, norm in result["weight_norms"].items() if not np.isfinite(norm)]
    say(f"weights that are not finite after it: {', '.join(odd[:5]) or 'none'}{', …' if len(odd) > 5 else ''}")
