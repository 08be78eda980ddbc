"""The Python functions behind the commands that train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from unmask.config.load import load_config
from unmask.config.schema import Config
from unmask.environment import launched
from unmask.errors import ConfigError
from unmask.modelzoo.translate import Command, Translation, load_modelzoo
from unmask.report.progress import say, table

if TYPE_CHECKING:
    from unmask.sweep import Result


def pretrain(recipe: str | Path, settings: Mapping[str, Any] | None = None) -> Path:
    """Pretrain a masked autoencoder; the same call again resumes.

    `recipe` is a name or a YAML file; `settings` has dotted keys: `{"data.train": "photos", "train.epochs": 100}`.
    Returns the run folder. Raises the errors of `unmask.errors`.
    """
    return run_recipe(recipe, _overrides(settings), task="pretrain")


def finetune(recipe: str | Path, settings: Mapping[str, Any] | None = None) -> Path:
    """Train a classifier from pretrained weights (`init`) or from scratch. As `pretrain` otherwise."""
    return run_recipe(recipe, _overrides(settings), task="finetune")


def sweep_labels(
    recipe: str | Path,
    settings: Mapping[str, Any],
    *,
    labels: Sequence[int],
    seeds: Sequence[int] = (0, 1, 2),
    steps: int | None = None,
) -> list[Result]:
    """Accuracy against labels per class: fine-tuned from `init`, from scratch, and of a linear probe.

    `settings` as for `finetune`, with `init`, `data.train`, `data.val` and `output`; see `unmask.sweep`.
    The same call again goes on. Raises the errors of `unmask.errors`.
    """
    from unmask.sweep import sweep_labels

    return sweep_labels(load_config(recipe, _overrides(settings)), labels=labels, seeds=seeds, steps=steps)


def run_recipe(recipe: str | Path, overrides: Sequence[str], *, task: str) -> Path:
    """Run a recipe with `key=value` overrides and draw its pictures. Returns the run folder."""
    config = load_config(recipe, overrides)
    if config.objective.task != task:
        raise ConfigError(f"{recipe} is a recipe for `unmask {config.objective.task}`, not `unmask {task}`")
    return _run_in_its_folder(config, Path(recipe).stem)


def run_modelzoo(path: str | Path, options: Sequence[str], *, command: Command) -> Path:
    """Run a YAML file of the MindSpore model zoo with `--key value` options. Returns the run folder."""
    return _run_in_its_folder(translate_modelzoo(path, options, command=command).config, Path(path).stem)


def translate_modelzoo(path: str | Path, options: Sequence[str], *, command: Command) -> Translation:
    """Read a YAML file of the MindSpore model zoo and print what became of each of its keys."""
    translation = load_modelzoo(path, options, command)
    table(translation.rows, ["key", "value", "what it becomes"])
    return translation


def run(config: Config, folder: Path) -> dict[str, float]:
    """Train in `folder`, then draw the curves and, after pretraining, a reconstruction. Returns the last numbers."""
    from unmask.objectives.base import create_objective
    from unmask.report.pictures import curves
    from unmask.train import train

    values = train(config, folder)
    if launched()[0] != 0:
        return values
    pictures = [curves(folder)]
    images = config.data.val or config.data.train
    if "reconstruction" in create_objective(config).outputs and images is not None:
        from unmask.evaluate.inference import load
        from unmask.evaluate.output import write_reconstruction

        model = load(folder, engine=config.engine, device=config.device)
        pictures.append(folder / "reconstruction.png")
        write_reconstruction(model, images, pictures[-1], count=8)
    say("  ".join([f"done: {folder}", *(f"{name} {value:.4f}" for name, value in values.items())]))
    say("pictures: " + ", ".join(str(picture) for picture in pictures))
    return values


def _run_in_its_folder(config: Config, name: str) -> Path:
    folder = Path(config.output) if config.output else _next_folder(name)
    run(config, folder)
    return folder


def _overrides(settings: Mapping[str, Any] | None) -> list[str]:
    def text(value: Any) -> str:
        plain = str(value) if isinstance(value, Path) else value
        return yaml.safe_dump(plain, default_flow_style=True, width=10**9).removesuffix("\n...\n").strip()

    return [f"{key}={text(value)}" for key, value in (settings or {}).items()]


def _next_folder(name: str) -> Path:
    number = 1
    while (folder := Path("runs") / f"{name}-{number}").exists():
        number += 1
    return folder
