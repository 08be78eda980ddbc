"""Training: pretrain, finetune, sweep-labels, replay, demo."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.cli import kinds, shared
from unmask.cli.shared import Commands

if TYPE_CHECKING:
    from unmask.api import Run
    from unmask.sweep import Result


def _add_train(commands: Commands) -> None:
    for task, recipe in (("pretrain", "mae-vit-base"), ("finetune", "finetune-vit-base")):
        help = {
            "pretrain": "train a masked autoencoder on images without labels",
            "finetune": "train a classifier on class folders, from pretrained weights (init=MODEL) or from scratch",
        }[task]
        sub = commands.add(task, train, help, together=True, figures=True)
        sub.set_defaults(task=task)
        shared.add_config_path(sub, instead_of="RECIPE")
        if commands.flat:
            continue
        sub.add_recipe(f"name, such as {recipe}, or path of a YAML file")
        sub.add_settings(
            "for example data.train=FOLDER train.epochs=100 output=runs/first; the same command again resumes"
        )


def train(options: Namespace) -> Run | None:
    from unmask.api import run_modelzoo, run_recipe

    if options.config_path:
        return run_modelzoo(options.config_path, options.flat, command=options.task)
    return run_recipe(options.recipe, options.settings, task=options.task)


def _add_sweep_labels(commands: Commands) -> None:
    sub = commands.add(
        "sweep-labels",
        sweep_labels,
        "draw accuracy against the number of labels: of a pretrained model, and of what one would do without it",
        figures=True,
    )
    sub.add_recipe("of `unmask finetune`: a name or the path of a YAML file")
    sub.add_settings("init=MODEL data.train=FOLDER data.val=FOLDER output=FOLDER …; the same command again resumes")
    sub.add_list("--labels", type=kinds.count, required=True, metavar="N", help="labels per class")
    sub.add_list("--seeds", type=kinds.seed, default=[0, 1, 2], metavar="N", help="default 0 1 2")
    sub.add_list(
        "--arms",
        choices=("pretrained", "probe", "attentive", "semi", "scratch", "taught", "cnn", "handmade"),
        metavar="ARM",
        help="of pretrained, probe, attentive (a probe that learns where to look), semi (images without labels too), "
        "scratch, taught (from scratch, on what handmade says of the images without labels), cnn (a small residual "
        "network) and handmade (gradients, colours, patches); default all",
    )
    sub.add_argument(
        "--steps",
        type=kinds.count,
        metavar="N",
        help="updates of every run of the recipe, in place of train.epochs; warmup keeps its share",
    )


def sweep_labels(options: Namespace) -> list[Result]:
    from unmask.sweep import ARMS, sweep_labels

    return sweep_labels(
        options.recipe,
        options.settings,
        labels=options.labels,
        seeds=options.seeds,
        steps=options.steps,
        arms=options.arms or ARMS,
    )


def _add_replay(commands: Commands) -> None:
    sub = commands.add(
        "replay", replay, "do one step of a run again: its images, its numbers, its weights", figures=True
    )
    sub.add_argument("run_folder", type=Path, metavar="RUN", help="a run folder, which is only read")
    sub.add_argument("--step", type=kinds.count, required=True, metavar="N", help="counted from 1, as in metrics.jsonl")
    sub.add_argument(
        "--out", type=kinds.place, metavar="FOLDER", help="for step.json, images.txt, batch.png (default RUN/replay-N)"
    )


def replay(options: Namespace) -> dict[str, Any]:
    from unmask.replay import replay as again

    return again(options.run_folder, options.step, options.out)


def _add_demo(commands: Commands) -> None:
    sub = commands.add(
        "demo", demo, "pretrain, fine-tune and compare on 5,000 real digits in a few minutes", figures=True
    )
    sub.add_settings("engine=…, device=…, seed=…, output=… (default runs/demo)")


def demo(options: Namespace) -> dict[str, float]:
    from unmask.demo import run_demo

    return run_demo(options.settings)


COMMANDS = (_add_train, _add_sweep_labels, _add_replay, _add_demo)
