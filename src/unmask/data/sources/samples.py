"""Several files of one sample, such as `k.jpg` and its mask `k.seg.png`: only one of them is the image.

A sample's files have the same name up to a dot (WebDataset's rule), and differ in what follows, here called their kind.
"""

from __future__ import annotations

import os
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


def survey(index: Table) -> dict[str, Any]:
    """What `one_of_each` needs to know of a table in byte order; as JSON, for its `meta["samples"]`."""
    kinds: Counter[bytes] = Counter()
    several, example = 0, ""
    before, name_before = b"", b""
    for row in range(len(index)):
        name = index.name(row)
        key, kind = _split(name)
        kinds[kind] += 1
        if len(kinds) > _MOST_KINDS:
            return {"kinds": {}, "several": 0, "example": ""}
        if key == before:
            several += 1
            example = example or f"{printable(os.fsdecode(name_before))} and {printable(os.fsdecode(name))}"
        before, name_before = key, name
    return {
        "kinds": {os.fsdecode(kind): count for kind, count in kinds.most_common()},
        "several": several,
        "example": example,
    }


def one_of_each(index: Table, image: str | None, what: str) -> Table:
    """The rows of `index`, which is in byte order, whose kind is `image`: `jpg` for `k.jpg`, `seg.png` for
    `k.seg.png`. ALL takes every row; so does None, which raises DataError where samples have several kinds.
    """
    found: dict[str, Any] = index.meta["samples"]
    kinds: dict[str, int] = found["kinds"]
    if image == ALL or (image is None and found["several"] <= _SHARE * (len(index) - found["several"])):
        return index
    if image is None:
        raise DataError(
            f"{what}: there are several images under one name, such as {found['example']}; say which is the image with "
            f"#image=KIND after the name (one of {', '.join(kinds)}), or #image={ALL} where each is one"
        )
    wanted = image.lower().lstrip(".")
    keep = np.array([_split(index.name(row))[1] == os.fsencode(wanted) for row in range(len(index))])
    if not keep.any():
        raise DataError(f"{what}: no image is a .{wanted}; there are {', '.join(kinds) or 'too many kinds to be told'}")
    tally = Tally()
    tally.merge(index.meta["left_out"])
    first = os.fsdecode(index.name(int(np.argmin(keep))))
    if count := int((~keep).sum()):
        tally.add("other files of a sample", os.fsencode(first), doubtful=False, count=count)
    table = index.take(keep)
    return Table(table.names, table.ends, table.columns, {**index.meta, "left_out": tally.record()})


def _split(name: bytes) -> tuple[bytes, bytes]:
    """The sample's key, and the kind in lower case. What begins with a digit is still the key: `cat.0.jpg`."""
    folder, slash, base = name.rpartition(b"/")
    key, *parts = base.split(b".")
    while len(parts) > 1 and parts[0][:1].isdigit():
        key += b"." + parts.pop(0)
    return folder + slash + key, b".".join(parts).lower()
