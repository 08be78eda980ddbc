"""What each command of the command line does. Heavy imports happen inside: only the command that runs pays."""

from __future__ import annotations

import sys
from argparse import Namespace
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unmask.config.schema import DataConfig
    from unmask.data.stats import Stats
    from unmask.evaluate.inference import Images, Model

Command = Callable[[Namespace], None]
STATS = ["channel", "mean", "std"]
STATS_KEYS = ("model.channels", "data.dtype", "data.range", "data.nodata", "data.frame", "data.max_pixels")
CHECK_KEYS = ("data.nodata", "data.frame", "data.max_pixels")
PACK_KEYS = CHECK_KEYS
"""What `--set` may name where there is no model."""


def train(options: Namespace) -> None:
    from unmask.api import run_modelzoo, run_recipe

    if options.config_path:
        run_modelzoo(options.config_path, options.flat, command=options.task)
    else:
        run_recipe(options.recipe, options.settings, task=options.task)


def evaluate(options: Namespace) -> None:
    from unmask.evaluate.output import write_evaluation
    from unmask.report.progress import say, table

    if options.config_path:
        loaded = _load_modelzoo(options)
        if loaded is None:
            return
        model, images = loaded
        # As there: the first folder is the head's first class, and the last classes may be unused.
        class_map, label_offset = None, None if model.class_names else 0
    else:
        model, images = _load(options, join=True), options.images
        class_map, label_offset = options.class_map, options.label_offset
    with model:
        values = write_evaluation(model, images, options.out, class_map=class_map, label_offset=label_offset)
    table([[name, f"{value:.4f}" if name != "count" else int(value)] for name, value in values.items()], ["", "value"])
    if "top1" in values:
        say(f"accuracy={values['top1']:.3f}")


def predict(options: Namespace) -> None:
    from unmask.evaluate.output import write_predictions

    with _load(options) as model:
        write_predictions(model, _images(options), options.out, top=options.top, share=options.share)


def embed(options: Namespace) -> None:
    from unmask.evaluate.output import write_embeddings

    with _load(options) as model:
        write_embeddings(model, _images(options), options.out, pool=options.pool, share=options.share)


def knn(options: Namespace) -> None:
    from unmask.evaluate.knn import knn
    from unmask.report.progress import say

    values = knn(
        _load(options),
        options.train,
        options.val,
        k=options.k,
        temperature=options.temperature,
        pool=options.pool,
        cache=options.cache,
    )
    say(f"{values['count']:.0f} images, top-5 {values['top5']:.3f}")
    say(f"accuracy={values['top1']:.3f}")


def probe(options: Namespace) -> None:
    if options.segment is not None:
        _segment(options)
        return
    if options.attentive:
        _attentive(options)
        return
    from unmask.evaluate.fast_probe import probe
    from unmask.report.progress import say, table

    result = probe(
        _load(options),
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


def _attentive(options: Namespace) -> None:
    from unmask.errors import ConfigError
    from unmask.evaluate.attentive import attentive_probe
    from unmask.report.progress import say, table

    if options.pool is not None:
        raise ConfigError("--attentive pools the patches itself; leave out --pool")
    found = attentive_probe(
        _load(options),
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


def _segment(options: Namespace) -> None:
    from unmask.errors import ConfigError
    from unmask.evaluate.segment import segment
    from unmask.report.progress import say, table

    for name in ("attentive", "pool", "labels_per_class", "cache"):
        if getattr(options, name):
            raise ConfigError(f"--segment works on patches; leave out --{name.replace('_', '-')}")
    found = segment(_load(options), options.train, options.val, *options.segment, seed=options.seed)
    adjusted = f", scores lowered by {found.adjustment:g} log of a class's share of the pixels"
    say(f"L2 strength {found.strength:g}{adjusted if found.adjustment else ''}")
    table([[number, f"{iou:.3f}"] for number, iou in enumerate(found.iou)], ["class", "IoU"])
    say(f"mIoU={found.miou:.3f}")


def sweep_labels(options: Namespace) -> None:
    from unmask.sweep import ARMS, sweep_labels

    sweep_labels(
        options.recipe,
        options.settings,
        labels=options.labels,
        seeds=options.seeds,
        steps=options.steps,
        arms=options.arms or ARMS,
    )


def reconstruct(options: Namespace) -> None:
    from unmask.evaluate.output import write_reconstruction

    overrides = {"seed": options.seed, "objective.mask_ratio": options.mask_ratio}
    model = _load(options, [f"{key}={value}" for key, value in overrides.items() if value is not None])
    write_reconstruction(model, _images(options), options.out, options.count)


def pack(options: Namespace) -> None:
    from unmask.config.load import read_settings
    from unmask.data.packs.verify import verify_pack
    from unmask.data.packs.write import pack as write
    from unmask.errors import ConfigError

    data = read_settings(options.set, PACK_KEYS, "unmask pack")[0].data
    if options.verify is not None and options.source is None:
        verify_pack(options.verify)
    elif options.verify is None and options.out is not None:
        write(
            options.source,
            options.out,
            short_side=options.short_side,
            quality=options.quality,
            shard_size=options.shard_size,
            max_bad_share=options.max_bad_share,
            workers=options.workers,
            data=data,
            share=options.share,
        )
    else:
        raise ConfigError("name what to pack and where to, SOURCE OUT; or --verify OUT")


def convert(options: Namespace) -> None:
    from unmask.interchange import read_model, write_model
    from unmask.interchange.completion import completed
    from unmask.report.progress import say

    found = completed(read_model(options.model, options.checkpoint), options.model, options.set)
    write_model(options.to, options.out, found)
    say(f"{options.model} ({found.format}) -> {options.out} ({options.to}), {found.kind}")


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


def export(options: Namespace) -> None:
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
    say(f"{options.model} -> {options.out}, described in {options.out.with_suffix('.json')}")
    if cost is not None:
        say(f"int8 on {cost.images} images: {cost.text()}")


def launch(options: Namespace) -> None:
    from unmask.errors import ConfigError
    from unmask.launch import PLATFORMS, Options, plan, prepare, submit, submit_with, write_file, written

    words = [word for word in (options.platform, options.recipe, *options.settings) if word is not None]
    platform = words.pop(0) if words[0] in PLATFORMS else None
    if not words or (platform is None and options.check is None):
        raise ConfigError(f"name a platform and a recipe: unmask launch {'|'.join(PLATFORMS)} RECIPE KEY=VALUE …")
    nodes, cards = options.check or options.size
    if options.check is not None:
        plan(words[0], words[1:], nodes, cards, card=options.card, mfu=options.mfu)
    if platform is None:
        return
    job = prepare(words[0], words[1:], nodes, cards)
    mine = Options(**{name: getattr(options, name) for name in Options.__dataclass_fields__})
    text = written(platform, job, mine)
    if job.device != "cpu" and job.config.data.workers == 0:
        print(
            "data.workers=0: each process gets one core, which decodes its images too; set data.workers=N",
            file=sys.stderr,
        )
    if options.out is not None:
        write_file(text, options.out)
    if options.submit:
        print(submit(platform, text, options.out))
    elif options.out is None:
        print(text, end="")
    else:
        print(submit_with(platform, options.out))


def demo(options: Namespace) -> None:
    from unmask.demo import run_demo

    run_demo(options.settings)


def stats(options: Namespace) -> None:
    from unmask.config.load import read_settings
    from unmask.data.sources import open_source
    from unmask.data.stats import measure
    from unmask.report.progress import speaking

    config, given = read_settings(options.set, STATS_KEYS, "unmask stats")
    data = config.data
    found = measure(
        open_source(options.images, key="images", labels=False),
        channels=config.model.channels if "model.channels" in given else None,
        dtype=data.dtype if "data.dtype" in given else None,
        max_pixels=data.max_pixels,
        value_range=data.range,
        nodata=data.nodata,
        frame=data.frame,
        out=options.out,
        share=options.share,
    )
    if found is not None:
        with speaking():
            _tell_stats(found, data)


def _tell_stats(found: Stats, data: DataConfig) -> None:
    from unmask.report.progress import say, table

    table([[c, f"{m:.6g}", f"{s:.6g}"] for c, (m, s) in enumerate(zip(found.mean, found.std, strict=True))], STATS)
    for name, sides in (("height", found.heights), ("width", found.widths)):
        if sides:
            half = list(accumulate(sides[side] for side in sorted(sides)))
            median = sorted(sides)[bisect_right(half, found.count // 2)]
            say(f"{name}: {min(sides)} to {max(sides)}, median {median}")
    say(f"{found.count} images: " + ", ".join(f"{count} {kind}" for kind, count in found.stored.most_common()))
    for line in found.bad[:10]:
        say(f"left out: {line}")
    if found.bad:
        say(f"{len(found.bad)} images were left out")
    if found.nodata:
        say(f"no data: {found.nodata_share:.2%} of the values, in no figure here (data.nodata)")
    for name in found.mostly_nodata[:10]:
        say(f"mostly no data: {name}")
    if found.mostly_nodata:
        say(f"{len(found.mostly_nodata)} images are mostly no data")
    values = {"mean": found.mean, "std": found.std}
    if found.dtype == "uint16" and data.range is None and found.highest < 65535 / 4:
        say(
            f"the values reach {found.highest:g} of 65535: for a model of 8-bit images, which would see them nearly "
            f"black, or to spread them, data.range=[{found.lowest:g},{found.highest:g}]"
        )
    ranged = "" if data.range is None else f" data.range=[{data.range[0]:g},{data.range[1]:g}]"
    ranged += "" if data.nodata is None else f" data.nodata={data.nodata:g}"
    ranged += "" if data.frame is None else f" data.frame={data.frame}"
    say(f"model.channels={found.channels} data.dtype={found.dtype}{ranged}")
    say(" ".join(f"data.{key}=[{','.join(f'{v:.6g}' for v in value)}]" for key, value in values.items()))


def check(options: Namespace) -> None:
    from unmask.check import check as look_at_all
    from unmask.config.load import read_settings

    look_at_all(
        options.images,
        options.out,
        against=options.against,
        smallest=options.smallest,
        data=read_settings(options.set, CHECK_KEYS, "unmask check")[0].data,
        share=options.share,
    )


def report(options: Namespace) -> None:
    from unmask.overview import write_report

    write_report(
        options.runs,
        options.out,
        images=options.images,
        settings=options.set,
        checkpoint=options.checkpoint,
        engine=options.engine,
        device=options.device,
        precision=options.precision,
        batch_size=options.batch_size,
    )


def serve(options: Namespace) -> None:
    from unmask.serve import serve as answer

    answer(
        options.model,
        host=options.host,
        port=options.port,
        images=options.images,
        most=options.most,
        settings=options.set,
        checkpoint=options.checkpoint,
        engine=options.engine,
        device=options.device,
        precision=options.precision,
        batch_size=options.batch_size,
    )


def replay(options: Namespace) -> None:
    from unmask.replay import replay as again

    again(options.run_folder, options.step, options.out)


def doctor(_options: Namespace) -> None:
    from unmask.doctor import report as tell

    tell()


def _load(options: Namespace, settings: Sequence[str] = (), *, join: bool = False) -> Model:
    from unmask.evaluate.inference import load

    return load(
        options.model,
        options.checkpoint,
        engine=options.engine,
        device=options.device,
        precision=options.precision,
        batch_size=options.batch_size,
        settings=[*options.set, *settings],
        join=join,
        flip=getattr(options, "flip", False),
    )


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


def _images(options: Namespace) -> Images:
    return options.images[0] if len(options.images) == 1 else options.images
