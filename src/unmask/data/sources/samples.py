"""Several files of one sample, such as `k.jpg` and its mask `k.seg.png`: only one of them is the image.

A sample's files have the same name up to a dot (WebDataset's rule), and differ in what follows, here called their
kind. A word that is often appended to the name (`k_mask.png` beside `k.jpg`) belongs to the kind too. So does a word
for masks and the like where another word is in its place, in front or behind (`mask_k.png` beside `img_k.jpg`,
`k_depth.png` beside `k_rgb.png`). Of two folders with files of the same names, one called as masks are (`masks/k.png`
beside `images/k.jpg`) holds no images.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from itertools import takewhile
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
    b"gt groundtruth ground_truth ground-truth gtfine gtcoarse depth depths trimap trimaps".split()
)
"""What is called so, a folder or a file, belongs to images."""
_MASK = b"|".join(sorted(map(re.escape, _MASKS), key=len, reverse=True)) + b"|seg"
_IN_FRONT = re.compile(rb"(?i)(?:%s)(?:[ _-]+|(?=\d))" % _MASK)
_BEHIND = re.compile(rb"(?i)[ _-]+(?:%s)\Z" % _MASK)
_FROM_THERE = re.compile(rb"(?i)[ _-]+(?:%s)(?![a-z])" % _MASK)
_BETWEEN = (b"_", b"-", b" ")
_FIRST = re.compile(rb"[A-Za-z]+(?:[ _-]+|(?=\d))")
_LAST = re.compile(rb"[ _-]+[A-Za-z]\w*\Z")
_MOST_FIRST = 32
"""With more, words in front are names of classes."""
_LOOKED_AT = 64
"""Files called so, or in a folder called so, whose images are looked for."""


def survey(index: Table) -> dict[str, Any]:
    """What `one_of_each` needs to know of a table in byte order; as JSON, for its `meta["samples"]`."""
    kinds: Counter[tuple[bytes, bytes]] = Counter()
    appended_to: Counter[bytes] = Counter()
    examples: dict[bytes, str] = {}
    folders: set[bytes] = set()
    marked: dict[bytes, list[bytes]] = {}
    first_words: set[bytes] = set()
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
                    appended_to[word] += 1
                    examples.setdefault(word, f"{_shown(there[key[: found.start()]])} and {_shown(name)}")
                    break
            else:
                if word := _mark(key):
                    looked_at = marked.setdefault(word, [])
                    looked_at += [key] if len(looked_at) < _LOOKED_AT else []
                elif len(first_words) <= _MOST_FIRST and (front := _FIRST.match(key, key.rfind(b"/") + 1)):
                    first_words.add(front[0])
            kinds[word, kind] += 1
            if key == before:
                several += 1
                example = example or f"{_shown(name_before)} and {_shown(name)}"
            before, name_before = key, name
        if len({kind for _, kind in kinds}) > _MOST_KINDS:
            kinds, several, marked = Counter(), 0, {}
            appended_to.clear()
            break
    often = [word for word, count in appended_to.items() if count > _APPENDED * (len(index) - count)]
    first_words = first_words if len(first_words) <= _MOST_FIRST else set()
    for word, keys in marked.items():
        pairs = [(image, key) for key in keys if (image := _without(index, key, word, first_words))]
        if 2 * len(pairs) > len(keys):
            often.append(word)
            image, key = pairs[0]
            examples.setdefault(word, f"{_shown(image)} and {_shown(_begins(index, key))}")
    counts: Counter[bytes] = Counter()
    for (word, _), count in kinds.items():
        counts[word] += count
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


def _mark(key: bytes) -> bytes:
    """The word for masks that a name begins or ends with, in lower case, with what stands between."""
    start = key.rfind(b"/") + 1
    found = _IN_FRONT.match(key, start) or _BEHIND.search(key, start + 1)
    return found[0].lower() if found else b""


def _without(index: Table, key: bytes, word: bytes, first_words: set[bytes]) -> bytes:
    """The file called like `key` without `word`, its mark, or with another in that place; empty where there is none."""
    folder, slash, base = key.rpartition(b"/")
    if base.lower().endswith(word) and word[:1] in b" _-":
        stem = folder + slash + base[: -len(word)]
        found = (name for between in _BETWEEN for name in _beginning(index, stem + between))
        keys = ((name, _split(name)[0]) for name in found)
        return next((name for name, key in keys if _LAST.fullmatch(key[len(stem) :]) and not _mark(key)), b"")
    rest = base[len(word) :]
    found = (_begins(index, folder + slash + other + rest + b".") for other in (b"", *sorted(first_words)))
    return next(filter(None, found), b"")


def _beginning(index: Table, start: bytes) -> Iterator[bytes]:
    """A few of the names that begin so."""
    row = bisect_left(range(len(index)), start, key=index.name)
    names = (index.name(each) for each in range(row, min(row + _MOST_KINDS, len(index))))
    return takewhile(lambda name: name.startswith(start), names)


def _begins(index: Table, start: bytes) -> bytes:
    """The first name that begins so; empty where there is none."""
    return next(_beginning(index, start), b"")


def _masks(index: Table, folders: set[bytes]) -> str:
    """An image and its mask, if folders called as masks are hold files of the names of those in another."""
    called = [folder for folder in sorted(folders) if any(part.lower() in _MASKS for part in folder.split(b"/"))]
    others: dict[tuple[bytes, ...], set[bytes]] = {}
    for folder in folders.difference(called) if called else ():
        parts = tuple(folder.split(b"/")) if folder else ()
        for key in [parts, *(parts[:place] + parts[place + 1 :] for place in range(len(parts)))]:
            others.setdefault(key, set()).add(folder)
    for folder in called:
        rows = index.span(folder)
        names = [
            index.name(row).rpartition(b"/")[2] for row in range(rows.start, min(rows.stop, rows.start + _LOOKED_AT))
        ]
        for other in sorted(others.get(tuple(part for part in folder.split(b"/") if part.lower() not in _MASKS), ())):
            pairs = [(found, name) for name in names if (found := _of_the_name(index, other, name))]
            if 2 * len(pairs) > len(names):
                image, name = pairs[0]
                return f"{_shown(image)} and {_shown(folder + b'/' + name)}"
    return ""


def _of_the_name(index: Table, folder: bytes, name: bytes) -> bytes:
    """The file in `folder` that is called so up to the dot, or up to a word for masks; empty where there is none."""
    stem = folder + b"/" * bool(folder) + name.partition(b".")[0]
    if found := _begins(index, stem + b"."):
        return found
    if cut := _FROM_THERE.search(stem, stem.rfind(b"/") + 2):
        return next(filter(None, (_begins(index, stem[: cut.start()] + end) for end in (b".", *_BETWEEN))), b"")
    return b""


def one_of_each(index: Table, image: str | None, what: str) -> Table:
    """The rows of `index`, which is in byte order, whose kind is `image`: `jpg` for `k.jpg`, `seg.png` for
    `k.seg.png`, `_mask.png` for `k_mask.png`. ALL takes every row; so does None, which raises DataError where samples
    have several kinds, or a folder those of another.
    """
    found: dict[str, Any] = index.meta["samples"]
    kinds: dict[str, int] = found["kinds"]
    if image is None and found["masks"]:
        raise DataError(
            f"{what}: one folder holds images, another what belongs to them, such as {found['masks']}; name a "
            f"folder that holds images alone, or #image={ALL} after the name where each is one"
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
    mark = _mark(key)
    word = mark if mark in appended else next((word for word in appended if key.lower().endswith(word)), b"")
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
