"""About this program and the machine it runs on: recipes, config, bench, doctor, completion."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from unmask.cli import kinds
from unmask.cli.shared import Commands

if TYPE_CHECKING:
    from unmask.bench import Measured


def version() -> str:
    """Of unmask, Python and the engines' packages that are there."""
    from unmask import plugins
    from unmask.engines import engine_kind
    from unmask.environment import versions

    packages = [engine_kind(name).package for name in plugins.names(plugins.ENGINES)]
    found = versions(["unmask", *packages])
    return ", ".join(f"{name} {found[name]}" for name in ("unmask", "python", *packages) if name in found)


def _add_recipes(commands: Commands) -> None:
    commands.add("recipes", recipes, "list the recipes: what each trains, for how much, with what result", figures=True)


def recipes(_options: Namespace) -> list[dict[str, str]]:
    from unmask.config.load import load_config, recipe_header, recipe_names, task_of
    from unmask.report.progress import table

    found = [{"name": name, "task": task_of(load_config(name)), **recipe_header(name)} for name in recipe_names()]
    table([[one["name"], one["task"], one["what"], one["hardware"]] for one in found], ["name", "task", "", "hardware"])
    return found


def _add_config(commands: Commands) -> None:
    sub = commands.add("config", config, "print what a recipe sets, each key with its meaning and range", figures=True)
    sub.description = "Print what a recipe sets, with its bases and settings applied, as a recipe: each key with its "
    sub.description += "meaning, what it may be, and its default."
    sub.add_recipe("a name (`unmask recipes`), or path of a YAML file")
    sub.add_settings("as of `unmask pretrain` and `unmask finetune`")


def config(options: Namespace) -> dict[str, Any]:
    from unmask.config.load import load_config
    from unmask.config.reference import as_facts, as_recipe

    found = load_config(options.recipe, options.settings)
    print(as_recipe(found), end="")
    return as_facts(found)


def _add_bench(commands: Commands) -> None:
    sub = commands.add(
        "bench", bench, "time a recipe's loader, its step, and both: which binds, what to change", figures=True
    )
    sub.add_recipe("of `unmask pretrain` or `unmask finetune`")
    sub.add_settings("as there; without data.train random pictures")
    sub.add_argument("--seconds", type=kinds.positive, default=60.0, metavar="S", help="it may take (default 60)")


def bench(options: Namespace) -> Measured:
    from unmask.bench import bench, show

    found = bench(options.recipe, options.settings, options.seconds)
    show(found, options.recipe)
    return found


def _add_doctor(commands: Commands) -> None:
    sub = commands.add("doctor", doctor, "show engines, devices and versions, and what is missing", figures=True)
    sub.add_argument(
        "--tune",
        nargs="+",
        metavar=("RECIPE", "KEY=VALUE"),
        help="instead: find the threads and the micro-batch with which this recipe trains fastest here",
    )


def doctor(options: Namespace) -> dict[str, Any]:
    from unmask.doctor import report, tune

    return {"settings": tune(options.tune[0], options.tune[1:])} if options.tune else report()


def _add_completion(commands: Commands) -> None:
    sub = commands.add("completion", completion, "print what makes a shell complete commands, recipes and keys")
    sub.description = 'Print what makes a shell complete commands, recipes and keys: eval "$(unmask completion bash)".'
    sub.add_argument("shell", choices=("bash", "zsh", "fish"))


def completion(options: Namespace) -> None:
    from unmask.errors import ConfigError

    try:
        from argcomplete.shell_integration import shellcode
    except ImportError:
        raise ConfigError("completion needs a package: pip install 'unmask[completion]'") from None
    print(shellcode(["unmask"], shell=options.shell))


COMMANDS = (_add_recipes, _add_config, _add_bench, _add_doctor, _add_completion)
