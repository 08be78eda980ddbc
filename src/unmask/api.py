"""The Python functions behind the commands that train."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from unmask.checkpoint.mirror import Mirror, folder_here
from unmask.checkpoint.store import Choice
from unmask.config.load import Settings, load_config, task_of
from unmask.config.schema import Config
from unmask.data.sources import Images, Source, to_source
from unmask.data.sources.dataset import check_picklable
from unmask.data.sources.files import is_remote
from unmask.environment import launched, work_alone
from unmask.errors import ConfigError, DataError
from unmask.evaluate.inference import Model, load
from unmask.files import expanded
from unmask.interchange.beside import write_beside
from unmask.loop import Callback
from unmask.modelzoo import modelarts
from unmask.modelzoo.translate import Command, Translation, load_modelzoo
from unmask.objectives.base import create_objective
from unmask.overview import write_report
from unmask.preparation import open_sources
from unmask.report.log import METRICS_FILE, read_log, show_picture
from unmask.report.progress import say, table
from unmask.train import train
from unmask.trial import with_head


@dataclass(frozen=True)
class Run(os.PathLike[str]):
    """A run that was trained; wherever a path to one is taken (`load`, `init`), it is one."""

    folder: Path
    """Holds run.yaml, metrics.jsonl, checkpoints, curves.png, report.html."""
    metrics: Mapping[str, float]
    """The last numbers: `loss` and, with images to validate on, `val_loss`, `val_top1`, ..."""

    def load(self, checkpoint: Choice = "last") -> Model:
        """The model of the "last" checkpoint, the "best" one, or that of a step. See `unmask.load` for more."""
        return load(self.folder, checkpoint)

    def log(self) -> list[dict[str, Any]]:
        """A row for each update and each evaluation: `step`, `split` (train or val) and the numbers."""
        return read_log(self.folder / METRICS_FILE)

    def __fspath__(self) -> str:
        return str(self.folder)

    def __str__(self) -> str:
        return str(self.folder)


def pretrain(
    recipe: str | os.PathLike[str],
    settings: Mapping[str, Any] | None = None,
    *,
    train: Images | None = None,
    val: Images | None = None,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Pretrain a masked autoencoder; the same call again resumes.

    `recipe` is a name or a YAML file; `settings` has dotted keys: `{"data.train": "photos", "train.epochs": 100}`.
    `train` and `val` take the place of `data.train` and `data.val`: also objects, such as a data set of torchvision's
    (`__len__`, and `__getitem__` that gives an image or an image and its class). `callbacks` are called with the
    step and its numbers, and may stop the run: see `unmask.loop.Callback`.

    Raises the errors of `unmask.errors`; KeyboardInterrupt after Ctrl-C, once the step is finished and saved.
    """
    return run_recipe(recipe, settings or {}, task="pretrain", train=train, val=val, callbacks=callbacks)


def finetune(
    recipe: str | os.PathLike[str],
    settings: Mapping[str, Any] | None = None,
    *,
    train: Images | None = None,
    val: Images | None = None,
    unlabelled: Images | None = None,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Train a classifier from pretrained weights (`init`: a run, or what `load` takes) or from scratch.

    `unlabelled` takes the place of `data.unlabelled`. As `pretrain` otherwise.
    """
    images = {"train": train, "val": val, "unlabelled": unlabelled}
    return run_recipe(recipe, settings or {}, task="finetune", callbacks=callbacks, **images)


def run_recipe(
    recipe: str | os.PathLike[str],
    settings: Settings,
    *,
    task: str,
    train: Images | None = None,
    val: Images | None = None,
    unlabelled: Images | None = None,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Run a recipe with the settings applied and draw its pictures."""
    config = load_config(recipe, settings)
    if (theirs := task_of(config)) != task:
        raise ConfigError(f"{recipe} is a recipe for `unmask {theirs}`, not `unmask {task}`")
    config, images = _given(config, "train", train)
    config, val_images = _given(config, "val", val)
    config, unlabelled_images = _given(config, "unlabelled", unlabelled)
    return run(
        config,
        _folder(config, Path(recipe).stem),
        images=images,
        val_images=val_images,
        unlabelled_images=unlabelled_images,
        callbacks=callbacks,
        kept_at=_kept_at(config),
    )


def run_modelzoo(path: str | Path, options: Sequence[str], *, command: Command) -> Run | None:
    """Run a YAML file of the MindSpore model zoo with `--key value` options; None where another process does."""
    translation = translate_modelzoo(path, options, command=command)
    if translation is None:
        return None
    config, places = translation.config, translation.places
    folder = _folder(config, Path(path).stem)
    if places is not None:
        folder = folder if places.folder is None else expanded(places.folder)
        config = places.bring(config)
    return run(config, folder, kept_at=_kept_at(config), beside=True)


def translate_modelzoo(path: str | Path, options: Sequence[str], *, command: Command) -> Translation | None:
    """Read a YAML file of the MindSpore model zoo and print what became of each of its keys.

    None in all but the first of several processes where use_parallel is off: the first works alone.
    """
    translation = load_modelzoo(path, options, command)
    if not translation.alone:
        arguments, engine = [command, f"--config_path={path}", *options], translation.config.engine
        if translation.places and engine == "torch" and (again := modelarts.torchrun(os.environ, arguments)):
            _replace_process(again)
        if joined := modelarts.join(os.environ, on_modelarts=translation.places is not None, engine=engine):
            os.environ.update(joined)
            translation = load_modelzoo(path, options, command)  # batch and device depend on the processes
    rank = work_alone() if translation.alone else 0
    if rank != 0:
        say(f"use_parallel is False: process {rank} leaves the work to process 0")
        return None
    table(translation.rows, ["key", "value", "what it becomes"])
    return translation


def _replace_process(command: list[str]) -> NoReturn:
    """Become `command`, which finds this package where it is."""
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.execve(command[0], command, os.environ | {"PYTHONPATH": os.pathsep.join(paths)})


def run(
    config: Config,
    folder: Path,
    *,
    images: Source | None = None,
    val_images: Source | None = None,
    unlabelled_images: Source | None = None,
    callbacks: Sequence[Callback] = (),
    kept_at: str | None = None,
    beside: bool = False,
) -> Run:
    """Train in `folder`, then draw curves and, where it can, a reconstruction, and a page. Arguments as for `train`.

    `kept_at`: a URL that the run comes from and is sent to. `beside`: MindSpore's files beside the folder, see
    `write_beside`.
    """
    mirror = None if kept_at is None else Mirror(folder, kept_at)
    if mirror is not None:
        mirror.begin(writes=launched()[0] == 0)

    def saved() -> None:
        if beside:
            write_beside(folder)
        if mirror is not None:
            mirror.send()

    config = with_head(config, folder, images=images, unlabelled_images=unlabelled_images)
    given = {"images": images, "val_images": val_images, "unlabelled_images": unlabelled_images}
    values = train(config, folder, callbacks=callbacks, saved=saved, **given)
    if launched()[0] != 0:
        return Run(folder, values)
    if beside:
        write_beside(folder)  # also what a run that was killed had no time for
    from unmask.report.pictures import curves

    finished = Run(folder, _last(read_log(folder / METRICS_FILE)))
    pictures = [curves(folder)] if config.train.epochs else []
    part = open_sources(config, images)[1] if config.data.val_share is not None else config.data.val
    shown = val_images or part or images or config.data.train
    if "reconstruction" in create_objective(config).outputs and shown is not None:
        from unmask.evaluate.evaluation import write_reconstruction

        pictures.append(folder / "reconstruction.png")
        # Of all images the run has judged already; a share of so few tells nothing.
        allowed = {"data.max_bad_share": 1}
        with load(folder, engine=config.engine, device=config.device, settings=allowed) as model:
            write_reconstruction(model, shown, pictures[-1], count=8)
        show_picture(folder, "reconstruction", pictures[-1])
    say("  ".join([f"done: {folder}", *(f"{name} {value:.4f}" for name, value in finished.metrics.items())]))
    if pictures:
        say("pictures: " + ", ".join(str(picture) for picture in pictures))
    write_report([folder], images=0)
    say(f"`unmask report {folder}` adds to that page what the model says of images")
    if mirror is not None:
        mirror.finish()
        say(f"sent to {mirror.url}")
    return finished


def _given(config: Config, part: str, images: Images | None) -> tuple[Config, Source | None]:
    """Images given as an argument: a path as if it were the setting, an object beside a setting that names none."""
    if images is None:
        return config, None
    path, source = (os.fspath(images), None) if isinstance(images, str | os.PathLike) else (None, images)
    if source is not None:
        key, labels = f"data.{part}", config.objective.labelled and part != "unlabelled"
        source = to_source(source, key=key, labels=labels, dtype=config.data.dtype)
        if labels and source.class_names is None:
            raise DataError(f"{key}: these images have no labels, which {config.objective.name} needs")
        if config.data.workers:
            check_picklable(source, key)
    return config.model_copy(update={"data": config.data.model_copy(update={part: path})}), source


def _last(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The last numbers of a log, as `train` names them; all of them, also where no step was left to run."""
    last = {row["split"]: row for row in rows}
    values = {"loss": last["train"]["loss"]} if "train" in last else {}
    return values | {f"val_{name}": v for name, v in last.get("val", {}).items() if name not in ("step", "split")}


def _kept_at(config: Config) -> str | None:
    return config.output if config.output and is_remote(config.output) else None


def _folder(config: Config, name: str) -> Path:
    if url := _kept_at(config):
        return folder_here(url)
    if config.output:
        return expanded(config.output)
    number = 1
    while (folder := Path("runs") / f"{name}-{number}").exists():
        number += 1
    return folder
