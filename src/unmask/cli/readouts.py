"""What a trained model is asked: evaluate, predict, embed, knn, probe, reconstruct."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.cli import kinds, shared
from unmask.cli.shared import Commands

if TYPE_CHECKING:
    from unmask.evaluate.attentive import AttentiveResult
    from unmask.evaluate.fast_probe import ProbeResult
    from unmask.evaluate.inference import Model
    from unmask.evaluate.segment import SegmentationResult


def _add_evaluate(commands: Commands) -> None:
    sub = commands.add(
        "evaluate", evaluate, "measure loss and, for a classifier, accuracy class by class", together=True, figures=True
    )
    shared.add_config_path(sub, instead_of="MODEL and FOLDER")
    if not commands.flat:
        shared.add_model(sub)
        sub.add_argument("images", metavar="FOLDER", help="class folders, or a list with labels (.csv, .json, .txt)")
        shared.add_flip(sub)
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
        type=kinds.place,
        metavar="FOLDER",
        help="write metrics.json there; of a classifier also predictions.csv, per_class.csv, confusion.csv, .png and "
        "worst.png",
    )


def evaluate(options: Namespace) -> dict[str, float] | None:
    from unmask.evaluate.evaluation import write_evaluation

    if options.config_path:
        loaded = _load_modelzoo(options)
        if loaded is None:
            return None
        model, images = loaded
        # As there: the first folder is the head's first class, and the last classes may be unused.
        class_map, label_offset = None, None if model.class_names else 0
    else:
        model, images = shared.load(options, join=True), options.images
        class_map, label_offset = options.class_map, options.label_offset
    with model:
        return write_evaluation(model, images, options.out, class_map=class_map, label_offset=label_offset)


def _load_modelzoo(options: Namespace) -> tuple[Model, str] | None:
    """The model and the images that a YAML file of the MindSpore model zoo names; None where another process works."""
    from unmask.api import translate_modelzoo
    from unmask.errors import ConfigError
    from unmask.evaluate.inference import load

    translation = translate_modelzoo(options.config_path, options.flat, command="evaluate")
    if translation is None:
        return None
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
        join=True,
    )
    return model, config.data.val


def _add_predict(commands: Commands) -> None:
    sub = commands.add("predict", predict, "classify images: the likeliest classes with their probabilities")
    shared.add_model(sub)
    shared.add_images(sub)
    shared.add_flip(sub)
    sub.add_argument("--top", type=kinds.count, default=5, metavar="K", help="classes per image (default 5)")
    sub.add_argument(
        "--out",
        metavar="OUT",
        help="FILE.csv, .jsonl or .parquet, or a folder or URL for many Parquet files (default: CSV on the screen); "
        "interrupted, the same command goes on",
    )
    shared.add_share(sub)


def predict(options: Namespace) -> None:
    from unmask.evaluate.output import write_predictions

    with shared.load(options) as model:
        write_predictions(model, shared.images(options), options.out, top=options.top, share=options.share)


def _add_embed(commands: Commands) -> None:
    sub = commands.add("embed", embed, "write the feature vector of each image")
    shared.add_model(sub)
    shared.add_images(sub)
    shared.add_pool(sub, "patches")
    shared.add_flip(sub)
    sub.add_argument(
        "--out",
        required=True,
        metavar="OUT",
        help="FILE.parquet or .csv, with a map and neighbours; .npy with the names beside; or a folder or URL for many "
        "Parquet files; interrupted, the same command goes on",
    )
    shared.add_share(sub)


def embed(options: Namespace) -> None:
    from unmask.evaluate.output import write_embeddings

    with shared.load(options) as model:
        write_embeddings(model, shared.images(options), options.out, pool=options.pool, share=options.share)


def _add_knn(commands: Commands) -> None:
    sub = commands.add(
        "knn", knn, "accuracy of the nearest training images' classes, by the model's features", figures=True
    )
    shared.add_model(sub)
    shared.add_labelled(sub)
    sub.add_argument("--k", type=kinds.count, default=20, metavar="N", help="neighbours that vote (default 20)")
    sub.add_argument(
        "--temperature",
        type=kinds.positive,
        default=0.07,
        metavar="T",
        help="of their weights exp(cosine/T) (default 0.07)",
    )


def knn(options: Namespace) -> dict[str, float]:
    from unmask.evaluate.knn import knn
    from unmask.report.progress import say

    values = knn(
        shared.load(options),
        options.train,
        options.val,
        k=options.k,
        temperature=options.temperature,
        pool=options.pool,
        cache=options.cache,
    )
    say(f"{values['count']:.0f} images, top-5 {values['top5']:.3f}")
    say(f"accuracy={values['top1']:.3f}")
    return values


def _add_probe(commands: Commands) -> None:
    sub = commands.add("probe", probe, "accuracy of a linear classifier on the frozen model's features", figures=True)
    sub.description = (
        "Accuracy of a linear classifier on the frozen model's features, which are computed once, without "
        "augmentation: logistic regression, its L2 strength chosen by cross-validation on TRAIN, never on VAL. The "
        "published probe, with augmentation, is a recipe of `unmask finetune`."
    )
    shared.add_model(sub)
    shared.add_labelled(sub)
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
    sub.add_argument("--labels-per-class", type=kinds.count, metavar="N", help="train on a balanced subset of TRAIN")
    sub.add_argument(
        "--seed", type=kinds.seed, default=0, metavar="N", help="of that subset and of the folds (default 0)"
    )


def probe(options: Namespace) -> ProbeResult | AttentiveResult | SegmentationResult:
    if options.segment is not None:
        return _segment(options)
    if options.attentive:
        return _attentive(options)
    from unmask.evaluate.fast_probe import probe
    from unmask.report.progress import say, table

    result = probe(
        shared.load(options),
        options.train,
        options.val,
        labels_per_class=options.labels_per_class,
        seed=options.seed,
        pool=options.pool,
        cache=options.cache,
    )
    rows = [
        [
            f"{one.strength:g}",
            f"{one.accuracy:.3f}",
            f"{one.loss:.3f}",
            "chosen" if one.strength == result.strength else "",
        ]
        for one in result.tried
    ]
    if rows:
        table(rows, ["L2 strength", "cross-validated accuracy", "loss at its best temperature", ""])
    else:
        say(f"one image a class: nothing to choose the L2 strength on, it is {result.strength:g}")
    say(f"accuracy={result.accuracy:.3f}")
    return result


def _attentive(options: Namespace) -> AttentiveResult:
    from unmask.errors import ConfigError
    from unmask.evaluate.attentive import attentive_probe
    from unmask.report.progress import say, table

    if options.pool is not None:
        raise ConfigError("--attentive pools the patches itself; leave out --pool")
    found = attentive_probe(
        shared.load(options),
        options.train,
        options.val,
        labels_per_class=options.labels_per_class,
        seed=options.seed,
        cache=options.cache,
    )
    if found.tried:
        named = [("the mean, no queries", found.linear), *((f"{one.strength:g}", one) for one in found.tried)]
        best = min((one for _, one in named), key=lambda one: one.loss)
        rows = [
            [name, f"{one.accuracy:.3f}", f"{one.loss:.3f}", "chosen" if one is best else ""] for name, one in named
        ]
        table(rows, ["L2 strength of the queries", "cross-validated accuracy", "loss at its best temperature", ""])
    else:
        say("one image a class: nothing to choose on, it is the linear probe")
    say(f"accuracy={found.accuracy:.3f}")
    return found


def _segment(options: Namespace) -> SegmentationResult:
    from unmask.errors import ConfigError
    from unmask.evaluate.segment import segment
    from unmask.report.progress import say, table

    for name in ("attentive", "pool", "labels_per_class", "cache"):
        if getattr(options, name):
            raise ConfigError(f"--segment works on patches; leave out --{name.replace('_', '-')}")
    found = segment(shared.load(options), options.train, options.val, *options.segment, seed=options.seed)
    adjusted = f", scores lowered by {found.adjustment:g} log of a class's share of the pixels"
    say(f"L2 strength {found.strength:g}{adjusted if found.adjustment else ''}")
    table([[number, f"{iou:.3f}"] for number, iou in enumerate(found.iou)], ["class", "IoU"])
    say(f"mIoU={found.miou:.3f}")
    return found


def _add_reconstruct(commands: Commands) -> None:
    sub = commands.add("reconstruct", reconstruct, "draw images original, masked, and painted again")
    shared.add_model(sub)
    shared.add_images(sub)
    sub.add_argument(
        "--count",
        type=kinds.count,
        default=8,
        metavar="N",
        help="how many images, spread evenly over those given (default 8)",
    )
    sub.add_argument("--seed", type=kinds.seed, metavar="N", help="of the masks (default: the run's)")
    sub.add_argument("--mask-ratio", type=kinds.share, metavar="R", help="share of patches hidden (default: the run's)")
    sub.add_argument("--out", type=kinds.place, metavar="FILE.png", help="(default: reconstruction.png, renewed)")


def reconstruct(options: Namespace) -> None:
    from unmask.evaluate.evaluation import write_reconstruction

    overrides = {"seed": options.seed, "objective.mask_ratio": options.mask_ratio}
    model = shared.load(options, [f"{key}={value}" for key, value in overrides.items() if value is not None])
    out, renewed = options.out or Path("reconstruction.png"), options.out is None
    write_reconstruction(model, shared.images(options), out, options.count, renewed=renewed)


COMMANDS = (_add_evaluate, _add_predict, _add_embed, _add_knn, _add_probe, _add_reconstruct)
