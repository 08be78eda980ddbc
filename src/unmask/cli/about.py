"""About this program and the machine it runs on: bench, doctor."""

from __future__ import annotations

from argparse import Namespace

from unmask.cli import kinds
from unmask.cli.shared import Commands


def _add_bench(commands: Commands) -> None:
    sub = commands.add("bench", bench, "time a recipe's loader, its step, and both: which binds, what to change")
    sub.add_argument("recipe", metavar="RECIPE", help="of `unmask pretrain` or `unmask finetune`")
    sub.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="as there; without data.train random pictures")
    sub.add_argument("--seconds", type=kinds.positive, default=60.0, metavar="S", help="it may take (default 60)")


def bench(options: Namespace) -> None:
    from unmask.bench import bench, show

    show(bench(options.recipe, options.settings, options.seconds), options.recipe)


def _add_doctor(commands: Commands) -> None:
    sub = commands.add("doctor", doctor, "show engines, devices and versions, and what is missing")
    sub.add_argument(
        "--tune",
        nargs="+",
        metavar=("RECIPE", "KEY=VALUE"),
        help="instead: find the threads and the micro-batch with which this recipe trains fastest here",
    )


def doctor(options: Namespace) -> None:
    from unmask.doctor import report, tune

    if options.tune:
        tune(options.tune[0], options.tune[1:])
    else:
        report()


COMMANDS = (_add_bench, _add_doctor)
