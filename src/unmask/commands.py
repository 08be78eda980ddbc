"""What each command of the command line does. Heavy imports happen inside: only the command that runs pays."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unmask.evaluate.model import Images, Model

Command = Callable[[Namespace], None]


def train(options: Namespace) -> None:
    from unmask.api import run_modelzoo, run_recipe

    if options.config_path:
        run_modelzoo(options.config_path, options.flat, command=options.task)
    else:
        run_recipe(options.recipe, options.settings, task=options.task)


def evaluate(options: Namespace) -> None:
    from unmask.report.progress import say, table

    model, images = _load_modelzoo(options) if options.config_path else (_load(options), options.images)
    values = model.evaluate(images)
    table([[name, f"{value:.4f}" if name != "count" else int(value)] for name, value in values.items()], ["", "value"])
    if options.out:
        options.out.write_text(json.dumps(values, indent=2) + "\n")
    if "top1" in values:
        say(f"accuracy={values['top1']:.3f}")


def predict(options: Namespace) -> None:
    from unmask.evaluate.output import write_predictions

    model = _load(options)
    write_predictions(model, _images(options), options.out, options.top)


def embed(options: Namespace) -> None:
    from unmask.evaluate.output import write_embeddings

    model = _load(options)
    write_embeddings(model, _images(options), options.out)


def reconstruct(options: Namespace) -> None:
    from unmask.evaluate.output import write_reconstruction

    overrides = {"seed": options.seed, "model.mask_ratio": options.mask_ratio}
    model = _load(options, {key: value for key, value in overrides.items() if value is not None})
    write_reconstruction(model, _images(options), options.out, options.count)


def convert(options: Namespace) -> None:
    from unmask.checkpoint.convert import read_foreign, write_foreign
    from unmask.report.progress import say

    found = read_foreign(options.model)
    write_foreign(options.to, options.out, found.weights, found.model, found.class_names)
    say(f"{options.model} ({found.format}) -> {options.out} ({options.to}), {len(found.weights)} tensors")


def demo(options: Namespace) -> None:
    from unmask.demo import run_demo

    run_demo(options.settings)


def doctor(_options: Namespace) -> None:
    from unmask.doctor import report

    report()


def _load(options: Namespace, settings: dict[str, object] | None = None) -> Model:
    from unmask.evaluate.model import load

    return load(
        options.model,
        engine=options.engine,
        device=options.device,
        precision=options.precision,
        batch_size=options.batch_size,
        settings=settings or {},
    )


def _load_modelzoo(options: Namespace) -> tuple[Model, str]:
    """The model and the images that a YAML file of the MindSpore model zoo names."""
    from unmask.api import translate_modelzoo
    from unmask.errors import ConfigError
    from unmask.evaluate.model import load

    translation = translate_modelzoo(options.config_path, options.flat, command="evaluate")
    config = translation.config
    if config.init is None or config.data.val is None:
        raise ConfigError(f"{options.config_path}: evaluating needs --use_ckpt MODEL and --eval_path FOLDER")
    model = load(
        config.init,
        engine=config.engine,
        device=config.device,
        precision=config.train.precision,
        batch_size=config.train.batch_size,
        settings={
            key: value
            for key, value in translation.settings.items()
            if key.startswith(("model.", "data.")) or key == "train.compile"
        },
    )
    return model, config.data.val


def _images(options: Namespace) -> Images:
    return options.images[0] if len(options.images) == 1 else options.images
