"""Options that several commands have, and what they give."""

from __future__ import annotations

import json
import math
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from unmask.cli import kinds

if TYPE_CHECKING:
    from unmask.evaluate.inference import Images, Model


_SETTING = re.compile(r"[a-z]\w*(\.\w+)*=")


class Command(ArgumentParser):
    """The options of one command, which may stand before, between and behind its other words."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._lists: list[str] = []

    def add_list(self, name: str, **named: Any) -> None:
        """An option of several values, beside settings: no KEY=VALUE is one of them."""
        self._lists.append(name)
        self.add_argument(name, nargs="+", **named)

    def add_recipe(self, help: str, *, optional: bool = False) -> None:
        added = self.add_argument("recipe", nargs="?" if optional else None, metavar="RECIPE", help=help)
        added.completer = _recipes  # pyright: ignore[reportAttributeAccessIssue]  # for argcomplete

    def add_settings(self, help: str) -> None:
        """Any number of KEY=VALUE."""
        added = self.add_argument("settings", nargs="*", metavar="KEY=VALUE", help=help)
        added.completer = _keys  # pyright: ignore[reportAttributeAccessIssue]

    def parse(self, words: Sequence[str]) -> tuple[Namespace, list[str]]:
        """The options, and the words that are none."""
        return self.parse_known_intermixed_args(_settings_first(words, self._lists))


def _settings_first(words: Sequence[str], lists: Sequence[str]) -> list[str]:
    """A KEY=VALUE behind a list goes before its option, or it would be a value: `--labels 1 5 seed=0`."""
    placed: list[str] = []
    option = 0
    in_list = False
    for word in words:
        if word.startswith("-"):
            option = option if in_list else len(placed)  # before the first of several lists
            in_list = word.partition("=")[0] in lists
        if in_list and _SETTING.match(word):
            placed.insert(option, word)
            option += 1
        else:
            placed.append(word)
    return placed


def _keys(prefix: str, **_: Any) -> list[str]:
    from unmask.config.load import known_keys

    return [f"{key}=" for key in known_keys() if key.startswith(prefix)]


def _recipes(**_: Any) -> list[str]:
    from unmask.config.load import recipe_names

    return recipe_names()


class Commands:
    """The commands of a parser; `flat` where --config_path takes the place of RECIPE or MODEL."""

    def __init__(self, parser: ArgumentParser, flat: bool) -> None:
        self._parsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Command)
        self.named: dict[str, Command] = {}
        self.flat = flat

    def add(
        self,
        name: str,
        run: Callable[[Namespace], Any],
        help: str,
        *,
        together: bool = False,
        figures: bool = False,
    ) -> Command:
        """`together`: several processes that were started together may run it as one. `figures`: what `run` returns is
        what --json prints."""
        description = f"{help[0].upper()}{help[1:]}."
        sub = self._parsers.add_parser(name, help=help, description=description, allow_abbrev=False)
        sub.set_defaults(run=run, together=together)
        if figures:
            sub.add_argument(
                "--json", action="store_true", help="print the result as JSON, and all else to standard error"
            )
        self.named[name] = sub
        return sub


def run(options: Namespace) -> None:
    """Do what the command does. With --json, people read standard error, and a program the result."""
    from unmask.environment import launched

    if not getattr(options, "json", False):
        options.run(options)
        return
    with redirect_stdout(sys.stderr):
        found = options.run(options)
    if found is not None and launched()[0] == 0:
        print(json.dumps(_plain(found), ensure_ascii=False, indent=1))


def _plain(value: Any) -> Any:
    """As JSON holds it; numbers that are none as in the log of a run: "nan", "inf", "-inf"."""
    if is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if hasattr(value, "tolist"):  # NumPy's numbers and arrays
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, str | int | float) else str(value)


def add_config_path(sub: ArgumentParser, *, instead_of: str) -> None:
    sub.add_argument(
        "--config_path",
        metavar="FILE",
        help=f"in place of {instead_of}: a YAML file of the MindSpore model zoo, its keys set by --key value",
    )


def _add_model_name(sub: ArgumentParser) -> None:
    sub.add_argument(
        "model", metavar="MODEL", help="a run, a checkpoint, a file or folder of another tool, or hf://OWNER/NAME"
    )


def add_stored(sub: ArgumentParser) -> None:
    """A stored model, where none is computed."""
    _add_model_name(sub)
    _add_of_stored(sub)


def _add_of_stored(sub: ArgumentParser) -> None:
    sub.add_argument(
        "--checkpoint",
        type=kinds.checkpoint,
        default="last",
        metavar="STEP",
        help="of a run: last, best (by data.val, without it by k-NN), or the number of a step (default last)",
    )
    add_set(
        sub, "a setting of the model, such as data.eval_crop=1, or what a file does not tell, such as model.heads=6"
    )


def add_set(sub: ArgumentParser, help: str) -> None:
    sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=help)


def add_model(sub: ArgumentParser) -> None:
    """A stored model, and what `loading` gives."""
    _add_model_name(sub)
    add_loading(sub)


def add_loading(sub: ArgumentParser) -> None:
    """What `loading` gives."""
    _add_of_stored(sub)
    sub.add_argument("--engine", metavar="NAME", help="torch, mindspore … (default: the one it was trained on)")
    sub.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, npu … (default auto)")
    sub.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16", "auto"),
        default="fp32",
        help="what the network computes in; auto: what the device multiplies in hardware (default fp32)",
    )
    sub.add_argument("--batch-size", type=kinds.count, default=64, metavar="N")


def add_flip(sub: ArgumentParser) -> None:
    sub.add_argument(
        "--flip",
        action="store_true",
        help="take the mean over each image and its mirror image, at twice the time; where left and right are alike",
    )


def add_labelled(sub: ArgumentParser) -> None:
    sub.add_argument("train", metavar="TRAIN", help="training images: class folders, or a list with labels")
    sub.add_argument("val", metavar="VAL", help="validation images, the same way")
    add_pool(sub)
    add_flip(sub)
    sub.add_argument(
        "--cache",
        type=kinds.place,
        metavar="FOLDER",
        help="keep the features there, for the same command when interrupted and for others on the same images",
    )


def add_pool(sub: ArgumentParser, *more: str) -> None:
    also = "; patches: those of all patches, row by row" if more else ""
    sub.add_argument(
        "--pool",
        choices=("mean", "cls", "mean+cls", *more),
        help="features: mean of the patch tokens, the cls token, or both (default: a classifier's own, else mean)"
        + also,
    )


def add_share(sub: ArgumentParser) -> None:
    sub.add_argument(
        "--share",
        type=kinds.share_of,
        metavar="K/N",
        help="do only the K-th of N shares, from 1/N to N/N: for array jobs, whose tasks may run in any order, at any "
        "time; the last one done completes OUT (processes of torchrun and msrun share without being told)",
    )


def add_images(sub: ArgumentParser) -> None:
    sub.add_argument("images", nargs="+", metavar="IMAGE", help="files, or one folder")


def loading(options: Namespace) -> dict[str, Any]:
    """How a model is loaded: arguments of `load`, and of what calls it."""
    names = ("checkpoint", "engine", "device", "precision", "batch_size")
    return {"settings": options.set, **{name: getattr(options, name) for name in names}}


def load(options: Namespace, settings: Sequence[str] = (), *, join: bool = False) -> Model:
    from unmask.evaluate.inference import load

    how = loading(options)
    how["settings"] = [*how["settings"], *settings]
    return load(options.model, **how, join=join, flip=getattr(options, "flip", False))


def images(options: Namespace) -> Images:
    return options.images[0] if len(options.images) == 1 else options.images
