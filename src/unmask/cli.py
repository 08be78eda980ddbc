"""The command line. Nothing but the standard library is imported before the command is known."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from pathlib import Path

from unmask import commands, interrupts
from unmask.errors import ProcessError, UnmaskError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: see `unmask.errors`, 143 after SIGTERM and 130 after SIGINT."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if isinstance(sys.stdout, TextIOWrapper):  # a name that the terminal has no characters for is no reason to fail
        sys.stdout.reconfigure(errors="backslashreplace")
    # A file of the MindSpore model zoo comes with `--key value` for any of its keys, which argparse cannot know.
    flat = any(argument.partition("=")[0] == "--config_path" for argument in arguments)
    parser = _parser(flat)
    options, rest = parser.parse_known_args(arguments)
    if rest and not getattr(options, "config_path", None):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.flat = rest
    try:
        with interrupts.command_line():
            from unmask.environment import check_alone, launched

            if not hasattr(options, "share") and options.run not in (commands.train, commands.evaluate):
                check_alone()
            if not hasattr(options, "share") or launched()[0] >= 0:  # msrun's scheduler has no share
                options.run(options)
                sys.stdout.flush()  # what cannot be printed fails here
    except (UnmaskError, interrupts.Interrupted) as error:
        print(f"unmask: {' '.join(str(error).split())}", file=sys.stderr)
        if isinstance(error, ProcessError):
            sys.stdout.flush()
            os._exit(error.exit_code)  # MindSpore would take leave of the others: 20 s, and then a SIGTERM to itself
        return error.exit_code
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a full disk, a name that is too long, a file where a folder should be
        where = f"{error.filename}: " if error.filename else ""
        print(f"unmask: {where}{error.strerror or error}", file=sys.stderr)
        return UnmaskError.exit_code
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

    sub = command("evaluate", commands.evaluate, "measure loss and, for a classifier, accuracy class by class")
    _add_config_path(sub, instead_of="MODEL and FOLDER")
    if not flat:
        _add_model(sub)
        sub.add_argument("images", metavar="FOLDER", help="class folders, or a list with labels (.csv, .json, .txt)")
        _add_flip(sub)
        classes = sub.add_mutually_exclusive_group()
        classes.add_argument(
            "--class-map",
            type=Path,
            metavar="FILE",
            help="which class of the model each class folder is, by number or name: JSON {folder: class}, or CSV with "
            "the header folder,class; for folders named otherwise, or fewer than the model's classes",
        )
        classes.add_argument(
            "--label-offset",
            type=int,
            metavar="N",
            help="the i-th class folder is class i + N of the model: 1 for a head of 1001 classes whose class 0 is "
            "background, 0 for a head with unused classes at its end",
        )
    sub.add_argument(
        "--out",
        type=_place,
        metavar="FOLDER",
        help="write metrics.json, per_class.csv, confusion.csv, confusion.png and worst.png there",
    )

    sub = command("predict", commands.predict, "classify images: the likeliest classes with their probabilities")
    _add_model(sub)
    _add_images(sub)
    _add_flip(sub)
    sub.add_argument("--top", type=_count, default=5, metavar="K", help="classes per image (default 5)")
    sub.add_argument(
        "--out",
        metavar="OUT",
        help="FILE.csv, .jsonl or .parquet, or a folder or URL for many Parquet files (default: CSV on the screen); "
        "interrupted, the same command goes on",
    )
    _add_share(sub)

    sub = command("embed", commands.embed, "write the feature vector of each image")
    _add_model(sub)
    _add_images(sub)
    _add_pool(sub, "patches")
    _add_flip(sub)
    sub.add_argument(
        "--out",
        required=True,
        metavar="OUT",
        help="FILE.parquet, or .npy with the names beside, or a folder or URL for many Parquet files; interrupted, the "
        "same command goes on",
    )
    _add_share(sub)

    sub = command("knn", commands.knn, "accuracy of the nearest training images' classes, by the model's features")
    _add_model(sub)
    _add_labelled(sub)
    sub.add_argument("--k", type=_count, default=20, metavar="N", help="neighbours that vote (default 20)")
    sub.add_argument(
        "--temperature", type=_positive, default=0.07, metavar="T", help="of their weights exp(cosine/T) (default 0.07)"
    )

    sub = command("probe", commands.probe, "accuracy of a linear classifier on the frozen model's features")
    sub.description = (
        "Accuracy of a linear classifier on the frozen model's features, which are computed once, without "
        "augmentation: logistic regression, its L2 strength chosen by cross-validation on TRAIN, never on VAL. The "
        "published probe, with augmentation, is a recipe of `unmask finetune`."
    )
    _add_model(sub)
    _add_labelled(sub)
    sub.add_argument(
        "--attentive",
        action="store_true",
        help="learn where to look: queries on the patches in place of their mean, unless cross-validation on TRAIN "
        "prefers the mean",
    )
    sub.add_argument(
        "--segment",
        nargs=2,
        metavar=("TRAIN_MASKS", "VAL_MASKS"),
        help="classify pixels in place of images: mean IoU of a linear classifier on the patches, from masks of the "
        "images' names and sizes that hold the number of a class (255: none)",
    )
    sub.add_argument("--labels-per-class", type=_count, metavar="N", help="train on a balanced subset of TRAIN")
    sub.add_argument("--seed", type=_seed, default=0, metavar="N", help="of that subset and of the folds (default 0)")

    sub = command(
        "sweep-labels",
        commands.sweep_labels,
        "draw accuracy against the number of labels: of a pretrained model, and of what one would do without it",
    )
    sub.add_argument("recipe", metavar="RECIPE", help="of `unmask finetune`: a name or the path of a YAML file")
    sub.add_argument(
        "settings",
        nargs="*",
        metavar="KEY=VALUE",
        help="init=MODEL data.train=FOLDER data.val=FOLDER output=FOLDER …; the same command again resumes",
    )
    sub.add_argument("--labels", type=_count, nargs="+", required=True, metavar="N", help="labels per class")
    sub.add_argument("--seeds", type=_seed, nargs="+", default=[0, 1, 2], metavar="N", help="default 0 1 2")
    sub.add_argument(
        "--arms",
        nargs="+",
        choices=("pretrained", "probe", "attentive", "semi", "scratch", "cnn", "handmade"),
        metavar="ARM",
        help="of pretrained, probe, attentive (a probe that learns where to look), semi (images without labels too), "
        "scratch, cnn (a small residual network) and handmade (gradients and colours); default all",
    )
    sub.add_argument(
        "--steps",
        type=_count,
        metavar="N",
        help="updates of every run of the recipe, in place of train.epochs; warmup keeps its share",
    )

    sub = command("reconstruct", commands.reconstruct, "draw images original, masked, and painted again")
    _add_model(sub)
    _add_images(sub)
    sub.add_argument(
        "--count",
        type=_count,
        default=8,
        metavar="N",
        help="how many images, spread evenly over those given (default 8)",
    )
    sub.add_argument("--seed", type=_seed, metavar="N", help="of the masks (default: the run's)")
    sub.add_argument("--mask-ratio", type=_share, metavar="R", help="share of patches hidden (default: the run's)")
    sub.add_argument("--out", type=_place, default=Path("reconstruction.png"), metavar="FILE.png")

    sub = command("pack", commands.pack, "copy the images of any source into a few large tars, to train from")
    sub.add_argument("source", nargs="?", metavar="SOURCE", help="anything that data.train may name")
    sub.add_argument("out", nargs="?", metavar="OUT", help="folder or URL; the same command again resumes")
    sub.add_argument(
        "--short-side", type=_count, metavar="PIXELS", help="resize larger images (default: all go in as they are)"
    )
    sub.add_argument(
        "--quality", type=_quality, default=90, metavar="Q", help="of JPEG and WebP resized so (default 90)"
    )
    sub.add_argument(
        "--shard-size",
        type=_bytes,
        default=256 << 20,
        metavar="BYTES",
        help="most in a tar, such as 1G (default 256M); about that where a sample has to tell the sizes",
    )
    sub.add_argument(
        "--max-bad-share",
        type=_share,
        default=0.001,
        metavar="SHARE",
        help="stop when more images than this cannot be decoded; fewer are left out and listed (default 0.001)",
    )
    sub.add_argument("--workers", type=_count, metavar="N", help="threads (default: one a core)")
    _add_set(sub, "data.nodata, data.frame or data.max_pixels")
    sub.add_argument("--verify", metavar="OUT", help="instead: read a pack and name its damaged files")
    _add_share(sub)

    sub = command("convert", commands.convert, "write a model in another format")
    _add_stored(sub)
    sub.add_argument("out", type=_place, metavar="OUT")
    formats = ("facebook", "timm", "transformers", "mindspore", "mindspore-zoo")
    sub.add_argument("--to", required=True, choices=formats, help="format of OUT")

    sub = command("push", commands.push, "send a model to the Hugging Face hub, with a card that says what it is")
    _add_stored(sub)
    sub.add_argument(
        "out", metavar="hf://OWNER/NAME", help="created where there is none; @BRANCH for another than main"
    )
    sub.add_argument("--to", choices=formats, help="format (default transformers, or timm where that has no place)")
    sub.add_argument("--private", action="store_true", help="if it is created, for its owner's eyes only")
    sub.add_argument("--message", metavar="TEXT", help="of the commit")
    sub.add_argument("--overwrite-card", action="store_true", help="also where there is a README.md already")

    sub = command("export", commands.export, "write a model as a graph that runs without unmask")
    _add_stored(sub)
    sub.add_argument("out", type=_place, metavar="OUT", help="FILE.onnx, FILE.pt2 (PyTorch) or FILE.mindir (MindSpore)")
    sub.add_argument(
        "--outputs",
        nargs="+",
        metavar="NAME",
        help="logits, features, patch_features, reconstruction (default logits of a classifier, else features)",
    )
    sub.add_argument("--dtype", choices=("uint8", "float32"), help="of the images it takes (default as data.dtype)")
    sub.add_argument("--int8", metavar="DATA", help="int8 weights (.onnx), and what they cost on these images")

    sub = command("stats", commands.stats, "mean and standard deviation of images: data.mean and data.std to paste")
    sub.add_argument("images", metavar="FOLDER", help="or anything else that data.train may name")
    _add_set(
        sub,
        "model.channels, data.dtype (default: those of the first image), data.range, data.nodata, data.frame or "
        "data.max_pixels",
    )
    sub.add_argument("--out", metavar="FILE.json", help="keep the result; interrupted, the same command goes on")
    _add_share(sub)

    sub = command("check", commands.check, "look at all images: broken, blank, tiny, there twice, or in both sets")
    sub.add_argument("images", metavar="DATA", help="anything that data.train may name")
    sub.add_argument("--against", metavar="VAL", help="images to be judged by, which must not be among DATA")
    sub.add_argument(
        "--smallest", type=_count, default=32, metavar="PIXELS", help="a shorter side below this is tiny (default 32)"
    )
    _add_set(sub, "data.nodata, data.frame or data.max_pixels")
    sub.add_argument(
        "--out",
        type=_place,
        default=Path("check"),
        metavar="FOLDER",
        help="for check.json, alike.csv, alike.png, exclude.txt (default check); interrupted, the same command goes on",
    )
    _add_share(sub)

    sub = command("report", commands.report, "write a page about runs: curves, classes, mistakes, a map of the images")
    sub.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders; several share their charts")
    _add_of_stored(sub)
    _add_computing(sub)
    sub.add_argument(
        "--images",
        type=_number,
        default=10_000,
        metavar="N",
        help="most images to look at, spread over data.val, else data.train; 0: curves alone (default 10000)",
    )
    sub.add_argument(
        "--out", type=_place, metavar="FILE.html", help="one file, for any browser (default: report.html in the run)"
    )

    sub = command("serve", commands.serve, "a page and an API where images are dropped, masked and answered about")
    _add_model(sub)
    sub.add_argument(
        "--images", metavar="FOLDER", help="find neighbours among these: anything that data.train may name"
    )
    sub.add_argument(
        "--most", type=_count, default=10_000, metavar="N", help="of them, spread over all (default 10000)"
    )
    sub.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="default 127.0.0.1: this machine alone")
    sub.add_argument("--port", type=_port, default=8000, metavar="N", help="default 8000; 0: any that is free")

    sub = command("replay", commands.replay, "do one step of a run again: its images, its numbers, its weights")
    sub.add_argument("run_folder", type=Path, metavar="RUN", help="a run folder, which is only read")
    sub.add_argument("--step", type=_count, required=True, metavar="N", help="counted from 1, as in metrics.jsonl")
    sub.add_argument(
        "--out", type=Path, metavar="FOLDER", help="for step.json, images.txt, batch.png (default RUN/replay-N)"
    )

    sub = command(
        "launch", commands.launch, "print the job that trains a recipe on Slurm, SkyPilot, Kubernetes or ModelArts"
    )
    sub.add_argument(
        "platform", metavar="PLATFORM", help="slurm, sky, kubernetes or modelarts; may be left out of a check"
    )
    sub.add_argument("recipe", nargs="?", metavar="RECIPE", help="of `unmask pretrain` or `unmask finetune`")
    sub.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="as there; output is needed")
    sub.add_argument(
        "--size",
        type=_size,
        default=(1, 1),
        metavar="NODESxCARDS",
        help="such as 16x8: 16 machines with 8 cards each, a process for each card (default 1x1)",
    )
    sub.add_argument(
        "--check",
        type=_size,
        metavar="NODESxCARDS",
        help="plan a step of that size first, without a cluster: memory of a card, bytes exchanged, and a model of its "
        "time up to 1,024 cards; what does not fit is refused",
    )
    sub.add_argument(
        "--card", choices=("h100", "a100", "ascend-910b"), help="of --check (default h100; ascend-910b for mindspore)"
    )
    sub.add_argument(
        "--mfu", type=_share, default=0.4, metavar="SHARE", help="of the card's peak that a step reaches (default 0.4)"
    )
    sub.add_argument("--out", type=_place, metavar="FILE", help="write the job there (default: on the screen)")
    sub.add_argument("--submit", action="store_true", help="have sbatch, sky or kubectl take the job")
    sub.add_argument("--partition", metavar="NAME", help="slurm: default the cluster's")
    sub.add_argument("--time", metavar="TIME", help="slurm: after which the job goes on in another, such as 12:00:00")
    sub.add_argument("--accelerator", metavar="NAME", help="sky: such as H100")
    sub.add_argument("--image", metavar="NAME", help="kubernetes, modelarts: a container image with unmask in it")
    sub.add_argument("--volume", metavar="CLAIM:PATH", help="kubernetes: a claim, and where the job sees its files")
    sub.add_argument("--flavor", metavar="ID", help="modelarts: the kind of its machines")

    sub = command("demo", commands.demo, "pretrain, fine-tune and compare on 5,000 real digits in a few minutes")
    sub.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help="engine=…, device=…, seed=…, output=… (default runs/demo)"
    )

    command("doctor", commands.doctor, "show engines, devices and versions, and what is missing")
    return parser


def _whole(text: str, least: int, most: int, what: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return number


def _count(text: str) -> int:
    return _whole(text, 1, 2**31 - 1, "a whole number from 1 on")


def _number(text: str) -> int:
    return _whole(text, 0, 2**31 - 1, "a whole number from 0 on")


def _port(text: str) -> int:
    return _whole(text, 0, 65535, "a port, from 0 to 65535")


def _size(text: str) -> tuple[int, int]:
    """Machines, and cards of each."""
    nodes, _, cards = text.partition("x")
    what = "of the form NODESxCARDS, such as 16x8"
    return _whole(nodes, 1, 2**16, what), _whole(cards, 1, 2**10, what)


def _seed(text: str) -> int:
    return _whole(text, 0, 2**31 - 1, "a seed, a whole number from 0 to 2147483647")


def _quality(text: str) -> int:
    return _whole(text, 1, 100, "a quality, from 1 to 100")


def _real(text: str, what: str, fits: Callable[[float], bool]) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not fits(number):  # no comparison holds of NaN
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return number


def _share(text: str) -> float:
    return _real(text, "a share, from 0 to 1", lambda number: 0 <= number <= 1)


def _share_of(text: str) -> str:
    number, slash, count = text.partition("/")
    numbers = [int(part) if part.isdecimal() and len(part) < 10 else 0 for part in (number, count)]
    if not slash or not 1 <= numbers[0] <= numbers[1]:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share, from 1/100 to 100/100")
    return text


def _positive(text: str) -> float:
    return _real(text, "a positive number", lambda number: 0 < number < float("inf"))


def _place(text: str) -> Path:
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text} is a URL; name a file or folder here, and copy it")
    return Path(text)


def _bytes(text: str) -> int:
    """A number of bytes, such as 256M."""
    scale = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:].upper(), 1)
    try:
        return int(_positive(text if scale == 1 else text[:-1]) * scale) or 1
    except (argparse.ArgumentTypeError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes, such as 256M") from None


def _add_config_path(sub: argparse.ArgumentParser, *, instead_of: str) -> None:
    sub.add_argument(
        "--config_path",
        metavar="FILE",
        help=f"in place of {instead_of}: a YAML file of the MindSpore model zoo, its keys set by --key value",
    )


def _add_stored(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "model", metavar="MODEL", help="a run, a checkpoint, a file or folder of another tool, or hf://OWNER/NAME"
    )
    _add_of_stored(sub)


def _add_of_stored(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--checkpoint",
        type=_checkpoint,
        default="last",
        metavar="STEP",
        help="of a run: last, best (by data.val, without it by k-NN), or the number of a step (default last)",
    )
    _add_set(
        sub, "a setting of the model, such as data.eval_crop=1, or what a file does not tell, such as model.heads=6"
    )


def _add_set(sub: argparse.ArgumentParser, help: str) -> None:
    sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=help)


def _checkpoint(text: str) -> str | int:
    if text not in ("last", "best") and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not last, best, or the number of a step")
    return int(text) if text.isdecimal() else text


def _add_model(sub: argparse.ArgumentParser) -> None:
    _add_stored(sub)
    _add_computing(sub)


def _add_computing(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--engine", metavar="NAME", help="torch, mindspore … (default: the one it was trained on)")
    sub.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, npu … (default auto)")
    sub.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    sub.add_argument("--batch-size", type=_count, default=64, metavar="N")


def _add_flip(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--flip",
        action="store_true",
        help="take the mean over each image and its mirror image, at twice the time; where left and right are alike",
    )


def _add_labelled(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("train", metavar="TRAIN", help="training images: class folders, or a list with labels")
    sub.add_argument("val", metavar="VAL", help="validation images, the same way")
    _add_pool(sub)
    _add_flip(sub)
    sub.add_argument(
        "--cache",
        type=Path,
        metavar="FOLDER",
        help="keep the features there, for the same command when interrupted and for others on the same images",
    )


def _add_pool(sub: argparse.ArgumentParser, *more: str) -> None:
    also = "; patches: those of all patches, row by row" if more else ""
    sub.add_argument(
        "--pool",
        choices=("mean", "cls", "mean+cls", *more),
        help="features: mean of the patch tokens, the cls token, or both (default: a classifier's own, else mean)"
        + also,
    )


def _add_share(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--share",
        type=_share_of,
        metavar="K/N",
        help="do only the K-th of N shares, from 1/N to N/N: for array jobs, whose tasks may run in any order, at any "
        "time; the last one done completes OUT (processes of torchrun and msrun share without being told)",
    )


def _add_images(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("images", nargs="+", metavar="IMAGE", help="files, or one folder")
