"""Models to and from other tools: convert, push, export."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from unmask.cli import kinds, shared
from unmask.cli.shared import Commands

FORMATS = ("facebook", "timm", "transformers", "mindspore", "mindspore-zoo")


def _add_convert(commands: Commands) -> None:
    sub = commands.add("convert", convert, "write a model in another format")
    shared.add_stored(sub)
    sub.add_argument("out", type=kinds.place, metavar="OUT")
    sub.add_argument("--to", required=True, choices=FORMATS, help="format of OUT")


def convert(options: Namespace) -> None:
    from unmask.files import check_free
    from unmask.interchange import read_model, write_model
    from unmask.interchange.completion import completed
    from unmask.report.progress import say

    check_free(options.out)
    found = completed(read_model(options.model, options.checkpoint), options.model, options.set)
    write_model(options.to, options.out, found)
    say(f"{options.model} ({found.format}) -> {options.out} ({options.to}), {found.kind}")


def _add_push(commands: Commands) -> None:
    sub = commands.add("push", push, "send a model to the Hugging Face hub, with a card that says what it is")
    shared.add_stored(sub)
    sub.add_argument(
        "out", metavar="hf://OWNER/NAME", help="created where there is none; @BRANCH for another than main"
    )
    sub.add_argument("--to", choices=FORMATS, help="format (default transformers, or timm where that has no place)")
    sub.add_argument("--private", action="store_true", help="if it is created, for its owner's eyes only")
    sub.add_argument("--message", metavar="TEXT", help="of the commit")
    sub.add_argument("--overwrite-card", action="store_true", help="also where there is a README.md already")


def push(options: Namespace) -> None:
    from unmask.interchange.push import push as send
    from unmask.report.progress import say

    name, format = send(
        options.model,
        options.out,
        to=options.to,
        checkpoint=options.checkpoint,
        settings=options.set,
        private=options.private,
        message=options.message,
        overwrite_card=options.overwrite_card,
    )
    say(f"{options.model} -> {name} ({format})")


def _add_export(commands: Commands) -> None:
    sub = commands.add("export", export, "write a model as a graph that runs without unmask", figures=True)
    shared.add_stored(sub)
    sub.add_argument(
        "out", type=kinds.place, metavar="OUT", help="FILE.onnx, FILE.pt2 (PyTorch) or FILE.mindir (MindSpore)"
    )
    sub.add_argument(
        "--outputs",
        nargs="+",
        metavar="NAME",
        help="logits, features, patch_features, reconstruction (default logits of a classifier, else features)",
    )
    sub.add_argument("--dtype", choices=("uint8", "float32"), help="of the images it takes (default as data.dtype)")
    sub.add_argument("--int8", metavar="DATA", help="int8 weights (.onnx), and what they cost on these images")


def export(options: Namespace) -> dict[str, Any]:
    from unmask.export import export as write
    from unmask.report.progress import say

    cost = write(
        options.model,
        options.out,
        outputs=options.outputs,
        dtype=options.dtype,
        int8=options.int8,
        checkpoint=options.checkpoint,
        settings=options.set,
    )
    say(f"{options.model} -> {options.out}, described in {options.out}.json")
    if cost is not None:
        say(f"int8 on {cost.images} images: {cost.text()}")
    return {"out": options.out, "int8": cost}


COMMANDS = (_add_convert, _add_push, _add_export)
