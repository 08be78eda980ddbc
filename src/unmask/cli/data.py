"""Images before they are trained on: pack, stats, check."""

from __future__ import annotations

import json
from argparse import Namespace
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.cli import kinds, shared
from unmask.cli.shared import Commands

if TYPE_CHECKING:
    from unmask.config.schema import DataConfig
    from unmask.data.stats import Stats

STATS = ["channel", "mean", "std"]
PACK_KEYS = ("data.nodata", "data.frame", "data.max_pixels")
CHECK_KEYS = ("data.range", *PACK_KEYS, "data.max_bad_share")
STATS_KEYS = ("model.channels", "data.dtype", *CHECK_KEYS)
"""What `--set` may name where there is no model."""


def _add_pack(commands: Commands) -> None:
    sub = commands.add("pack", pack, "copy the images of any source into a few large tars, to train from")
    sub.add_argument("source", nargs="?", metavar="SOURCE", help="anything that data.train may name")
    sub.add_argument("out", nargs="?", metavar="OUT", help="folder or URL; the same command again resumes")
    sub.add_argument(
        "--short-side", type=kinds.count, metavar="PIXELS", help="resize larger images (default: all go in as they are)"
    )
    sub.add_argument(
        "--quality", type=kinds.quality, default=90, metavar="Q", help="of JPEG and WebP resized so (default 90)"
    )
    sub.add_argument(
        "--shard-size",
        type=kinds.size_in_bytes,
        default=256 << 20,
        metavar="BYTES",
        help="most in a tar, such as 1G (default 256M); about that where a sample has to tell the sizes",
    )
    sub.add_argument(
        "--max-bad-share",
        type=kinds.share,
        default=0.001,
        metavar="SHARE",
        help="stop when more images than this cannot be decoded; fewer are left out and listed (default 0.001)",
    )
    sub.add_argument("--workers", type=kinds.count, metavar="N", help="threads (default: one a core)")
    shared.add_set(sub, "data.nodata, data.frame or data.max_pixels")
    sub.add_argument("--verify", metavar="OUT", help="instead: read a pack and name its damaged files")
    shared.add_share(sub)


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


def _add_stats(commands: Commands) -> None:
    sub = commands.add(
        "stats", stats, "mean and standard deviation of images: data.mean and data.std to paste", figures=True
    )
    sub.add_argument("images", metavar="FOLDER", help="or anything else that data.train may name")
    shared.add_set(
        sub,
        "model.channels, data.dtype (default: those of the first image), data.range, data.nodata, data.frame, "
        "data.max_pixels or data.max_bad_share",
    )
    sub.add_argument("--out", metavar="FILE.json", help="keep the result; interrupted, the same command goes on")
    shared.add_share(sub)


def stats(options: Namespace) -> dict[str, Any] | None:
    from unmask.config.load import read_settings
    from unmask.data.loader.bad_files import check_share
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
    if found is None:
        return None
    with speaking():
        _tell_stats(found, data)
    check_share(len(found.bad), found.count + len(found.bad), data.max_bad_share, lambda: found.bad[0])
    names = ("channels", "dtype", "count", "mean", "std", "lowest", "highest", "nodata_share", "heights", "widths")
    return {name: getattr(found, name) for name in names} | {"bad": found.bad, "mostly_nodata": found.mostly_nodata}


_NOTHING = 1e-9
"""Of the mean: a deviation no larger than this is what rounding leaves of none."""


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
    if found.dtype == "uint16" and data.range is None and found.lowest < found.highest < 65535 / 4:
        say(
            f"the values reach {found.highest:g} of 65535: for a model of 8-bit images, which would see them nearly "
            f"black, or to spread them, data.range=[{found.lowest:g},{found.highest:g}]"
        )
    ranged = "" if data.range is None else f" data.range=[{data.range[0]:g},{data.range[1]:g}]"
    ranged += "" if data.nodata is None else f" data.nodata={data.nodata:g}"
    ranged += "" if data.frame is None else f" data.frame={data.frame}"
    say(f"model.channels={found.channels} data.dtype={found.dtype}{ranged}")
    if flat := [str(c) for c, (m, s) in enumerate(zip(found.mean, found.std, strict=True)) if s <= _NOTHING * abs(m)]:
        say(f"one value everywhere in channel {', '.join(flat)}: there is nothing to learn from, and no data.std")
        return
    say(" ".join(f"data.{key}=[{','.join(f'{v:.6g}' for v in value)}]" for key, value in values.items()))


def _add_check(commands: Commands) -> None:
    sub = commands.add(
        "check", check, "look at all images: broken, blank, tiny, there twice, or in both sets", figures=True
    )
    sub.add_argument("images", metavar="DATA", help="anything that data.train may name")
    sub.add_argument("--against", metavar="VAL", help="images to be judged by, which must not be among DATA")
    sub.add_argument(
        "--smallest",
        type=kinds.count,
        default=32,
        metavar="PIXELS",
        help="a shorter side below this is tiny (default 32)",
    )
    shared.add_set(sub, "data.range, data.nodata, data.frame, data.max_pixels or data.max_bad_share")
    sub.add_argument(
        "--out",
        type=kinds.place,
        default=Path("check"),
        metavar="FOLDER",
        help="for check.json, alike.csv, alike.png, exclude.txt (default check); interrupted, the same command goes on",
    )
    shared.add_share(sub)


def check(options: Namespace) -> dict[str, Any] | None:
    from unmask.check import CHECK
    from unmask.check import check as look_at_all
    from unmask.config.load import read_settings
    from unmask.data.loader.bad_files import check_share

    data = read_settings(options.set, CHECK_KEYS, "unmask check")[0].data
    found = look_at_all(
        options.images,
        options.out,
        against=options.against,
        smallest=options.smallest,
        data=data,
        share=options.share,
    )
    if found is None:
        return None
    known = json.loads((options.out / CHECK).read_text(encoding="utf-8"))
    for images, why, where in (("images", "reasons", ""), ("images_of_against", "broken_in_against", "--against: ")):
        broken = known[why]
        such_as = [f"{name}: {reason}" for name, reason in broken.items()][:1]
        said = f"{options.out} is written, but {where}"
        check_share(len(broken), known[images], data.max_bad_share, lambda such=such_as: such[0], said)
    return known


COMMANDS = (_add_pack, _add_stats, _add_check)
