"""Several files of one sample, such as `k.jpg` and its mask `k.seg.png`: only one of them is the image.

A sample's files have the same name up to a dot (WebDataset's rule), and differ in what follows, here called their
kind. A word that is often appended to the name (`k_mask.png` beside `k.jpg`) belongs to the kind too. Of two folders
with files of the same names, one called as masks are (`masks/k.png` beside `images/k.jpg`) holds no images.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_left
from collections import Counter
from typing import Any

import numpy as np

from unmask.data.sources.base import printable
from unmask.data.sources.left_out import Tally
from unmask.data.sources.table import Table
from unmask.errors import DataError

ALL = "*"
"""In place of a kind: each file is an image of its own."""
_MOST_KINDS = 12
"""With more, what follows the dot is a part of the name."""
_SHARE = 0.05
"""Of the samples; where fewer have several files, names are alike by chance."""
_APPENDED = 0.1
"""Share of the images whose names are those of others with one word more, from which on it is told apart."""
_WORD = re.compile(rb"[ _-]+(?=[A-Za-z])")
"""What begins such a word."""
_TOGETHER = 50_000
"""Rows, which are in byte order, among which the names without the word are looked for."""
_MASKS = frozenset(
    b"mask masks segmentation segmentations segmentationclass segmentationobject annotation annotations label labels "
    b"gt groundtruth ground_truth ground-truth depth depths".split()
)
"""Names of folders with what belongs to images."""
_LOOKED_AT = 64
"""Files of such a folder."""


def survey(index: Table) -> dict[str, Any]:
    """What `one_of_each` needs to know of a table in byte order; as JSON, for its `meta["samples"]`."""
    kinds: Counter[tuple[bytes, bytes]] = Counter()
    examples: dict[bytes, str] = {}
    folders: set[bytes] = set()
    several, example = 0, ""
    before, name_before = b"", b""
    for first in range(0, len(index), _TOGETHER):
        names = [index.name(row) for row in range(first, min(first + _TOGETHER, len(index)))]
        parts = [_split(name) for name in names]
        there = {key: name for (key, _), name in zip(reversed(parts), reversed(names), strict=True)}
        folders.update(key.rpartition(b"/")[0] for key in there)
        for name, (key, kind) in zip(names, parts, strict=True):
            word = b""
            for found in _WORD.finditer(key, key.rfind(b"/") + 2):
                if key[: found.start()] in there:
                    word = key[found.start() :].lower()
                    examples.setdefault(word, f"{_shown(there[key[: found.start()]])} and {_shown(name)}")
                    break
            kinds[word, kind] += 1
            if key == before:
                several += 1
                example = example or f"{_shown(name_before)} and {_shown(name)}"
            before, name_before = key, name
        if len({kind for _, kind in kinds}) > _MOST_KINDS:
            kinds, several = Counter(), 0
            break
    counts: Counter[bytes] = Counter()
    for (word, _), count in kinds.items():
        counts[word] += count
    often = [word for word, count in counts.items() if word and count > _APPENDED * (len(index) - count)]
    appended = {word: count for word, count in counts.items() if word and word.startswith(tuple(often))}
    told: Counter[bytes] = Counter()
    for (word, kind), count in kinds.items():
        told[(word if word in appended else b"") + b"." * (word in appended) + kind] += count
    return {
        "kinds": {os.fsdecode(kind): count for kind, count in told.most_common()},
        "appended": [os.fsdecode(word) for word in appended],
        "several": several + sum(appended.values()),
        "example": examples[often[0]] if often else example,
        "masks": _masks(index, folders),
    }


def _masks(index: Table, folders: set[bytes]) -> str:
    """An image and its mask, if folders called as masks are hold files of the names of those in another."""
    for folder in sorted(folders):
        parts = folder.split(b"/")
        for place, part in enumerate(parts):
            if part.lower() not in _MASKS:
                continue
            rows = index.span(folder)
            names = [
                index.name(row).rpartition(b"/")[2]
                for row in range(rows.start, min(rows.stop, rows.start + _LOOKED_AT))
            ]
            for other in sorted(folders):
                others = other.split(b"/")
                if len(others) != len(parts) or others[place].lower() in _MASKS:
                    continue
                if others[:place] + others[place + 1 :] != parts[:place] + parts[place + 1 :]:
                    continue
                pairs = [(found, name) for name in names if (found := _of_the_name(index, other, name))]
                if 2 * len(pairs) > len(names):
                    image, name = pairs[0]
                    return f"{_shown(image)} and {_shown(folder + b'/' + name)}"
    return ""


def _of_the_name(index: Table, folder: bytes, name: bytes) -> bytes:
    """The file in `folder` that is called so up to the dot; empty where there is none."""
    start = folder + b"/" + name.partition(b".")[0] + b"."
    row = bisect_left(range(len(index)), start, key=index.name)
    found = index.name(row) if row < len(index) else b""
    return found if found.startswith(start) else b""


def one_of_each(index: Table, image: str | None, what: str) -> Table:
    """The rows of `index`, which is in byte order, whose kind is `image`: `jpg` for `k.jpg`, `seg.png` for
    `k.seg.png`, `_mask.png` for `k_mask.png`. ALL takes every row; so does None, which raises DataError where samples
    have several kinds, or a folder those of another.
    """
    found: dict[str, Any] = index.meta["samples"]
    kinds: dict[str, int] = found["kinds"]
    if image is None and found["masks"]:
        raise DataError(
            f"{what}: one folder holds images, another what belongs to them, such as {found['masks']}; name the folder "
            f"of the images, or #image={ALL} after the name where each is one"
        )
    if image == ALL or (image is None and found["several"] <= _SHARE * (len(index) - found["several"])):
        return index
    if image is None:
        raise DataError(
            f"{what}: there are several images under one name, such as {found['example']}; say which is the image with "
            f"#image=KIND after the name (one of {', '.join(kinds)}), or #image={ALL} where each is one"
        )
    wanted = image.lower().lstrip(".")
    appended = tuple(os.fsencode(word) for word in found["appended"])
    keep = np.array([_kind(index.name(row), appended) == os.fsencode(wanted) for row in range(len(index))])
    if not keep.any():
        raise DataError(f"{what}: no image is a .{wanted}; there are {', '.join(kinds) or 'too many kinds to be told'}")
    tally = Tally()
    tally.merge(index.meta["left_out"])
    first = os.fsdecode(index.name(int(np.argmin(keep))))
    if count := int((~keep).sum()):
        tally.add("other files of a sample", os.fsencode(first), doubtful=False, count=count)
    table = index.take(keep)
    return Table(table.names, table.ends, table.columns, {**index.meta, "left_out": tally.record()})


def _kind(name: bytes, appended: tuple[bytes, ...]) -> bytes:
    key, kind = _split(name)
    word = next((word for word in appended if key.lower().endswith(word)), b"")
    return word + b"." + kind if word else kind


def _shown(name: bytes) -> str:
    return printable(os.fsdecode(name))


def _split(name: bytes) -> tuple[bytes, bytes]:
    """The sample's key, and the kind in lower case. What begins with a digit is still the key: `cat.0.jpg`."""
    folder, slash, base = name.rpartition(b"/")
    key, *parts = base.split(b".")
    while len(parts) > 1 and parts[0][:1].isdigit():
        key += b"." + parts.pop(0)
    return folder + slash + key, b".".join(parts).lower()
