"""The command line. Nothing but the standard library is imported before the command is known."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from unmask import commands
from unmask.errors import UnmaskError

os.environ.setdefault("GLOG_v", "3")  # MindSpore's C++ warnings; read when it is imported


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (see `unmask.errors`)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # A file of the MindSpore model zoo comes with `--key value` for any of its keys, which argparse cannot know.
    flat = any(argument.partition("=")[0] == "--config_path" for argument in arguments)
    parser = _parser(flat)
    options, rest = parser.parse_known_args(arguments)
    if rest and not getattr(options, "config_path", None):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.flat = rest
    try:
        options.run(options)
    except UnmaskError as error:
        print(f"unmask: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser(flat: bool) -> argparse.ArgumentParser:
    """The grammar of the command line; `flat` where --config_path takes the place of RECIPE or MODEL."""
    parser = argparse.ArgumentParser(
        prog="unmask",
        description="Masked-autoencoder pretraining of Vision Transformers and everything after it.",
        epilog="Every command has its own --help.",
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: commands.Command, help: str) -> argparse.ArgumentParser:
        description = f"{help[0].upper()}{help[1:]}."
        sub = subparsers.add_parser(name, help=help, description=description, allow_abbrev=False)
        sub.set_defaults(run=run)
        return sub

    for task, recipe in (("pretrain", "mae-vit-base"), ("finetune", "finetune-vit-base")):
        help = {
            "pretrain": "train a masked autoencoder on images without labels",
            "finetune": "train a classifier on class folders, from pretrained weights (init=MODEL) or from scratch",
        }[task]
        sub = command(task, commands.train, help)
        sub.set_defaults(task=task)
        _add_config_path(sub, instead_of="RECIPE")
        if flat:
            continue
        sub.add_argument("recipe", metavar="RECIPE", help=f"name, such as {recipe}, or path of a YAML file")
        sub.add_argument(
            "settings",
            nargs="*",
            metavar="KEY=VALUE",
            help="for example data.train=FOLDER train.epochs=100 output=runs/first; the same command again resumes",
        )

    sub = command("evaluate", commands.evaluate, "measure loss and, for a classifier, accuracy")
    _add_config_path(sub, instead_of="MODEL and FOLDER")
    if not flat:
        _add_model(sub)
        sub.add_argument("images", metavar="FOLDER", help="class folders")
    sub.add_argument("--out", type=Path, metavar="FILE.json", help="write the numbers there too")

    sub = command("predict", commands.predict, "classify images: the likeliest classes with their probabilities")
    _add_model(sub)
    _add_images(sub)
    sub.add_argument("--top", type=int, default=5, metavar="K", help="classes per image (default 5)")
    sub.add_argument("--out", type=Path, metavar="FILE", help=".csv or .json (default: CSV on the screen)")

    sub = command("embed", commands.embed, "write the feature vector of each image")
    _add_model(sub)
    _add_images(sub)
    sub.add_argument("--out", type=Path, required=True, metavar="FILE", help=".parquet, or .npy with the names beside")

    sub = command("reconstruct", commands.reconstruct, "draw images original, masked, and painted again")
    _add_model(sub)
    _add_images(sub)
    sub.add_argument(
        "--count", type=int, default=8, metavar="N", help="how many images, spread evenly over those given (default 8)"
    )
    sub.add_argument("--seed", type=int, metavar="N", help="of the masks (default: the run's)")
    sub.add_argument("--mask-ratio", type=float, metavar="R", help="share of patches hidden (default: the run's)")
    sub.add_argument("--out", type=Path, default=Path("reconstruction.png"), metavar="FILE.png")

    sub = command("convert", commands.convert, "write a model in another format")
    sub.add_argument("model", metavar="MODEL", help="a run, a checkpoint, an official .pth, a transformers folder")
    sub.add_argument("out", type=Path, metavar="OUT")
    formats = ("facebook", "transformers", "mindspore", "mindspore-zoo")
    sub.add_argument("--to", required=True, choices=formats, help="format of OUT")

    sub = command("demo", commands.demo, "pretrain, fine-tune and compare on 5,000 real digits in a few minutes")
    sub.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help="engine=…, device=…, seed=…, output=… (default runs/demo)"
    )

    command("doctor", commands.doctor, "show engines, devices and versions, and what is missing")
    return parser


def _add_config_path(sub: argparse.ArgumentParser, *, instead_of: str) -> None:
    sub.add_argument(
        "--config_path",
        metavar="FILE",
        help=f"in place of {instead_of}: a YAML file of the MindSpore model zoo, its keys set by --key value",
    )


def _add_model(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("model", metavar="MODEL", help="a run, a checkpoint, an official .pth, a transformers folder")
    sub.add_argument("--engine", choices=("torch", "mindspore"), help="default: the one it was trained on")
    sub.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, npu … (default auto)")
    sub.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    sub.add_argument("--batch-size", type=int, default=64, metavar="N")


def _add_images(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("images", nargs="+", metavar="IMAGE", help="files, or one folder")
