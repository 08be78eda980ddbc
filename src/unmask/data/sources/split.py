"""Training and validation images from one set: `data.val=10%`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from unmask.data.sources.base import Source, printable
from unmask.data.sources.subset import SubsetSource
from unmask.errors import DataError
from unmask.report.progress import say


def split(source: Source, share: float, seed: int, group: str | None = None) -> tuple[SubsetSource, SubsetSource]:
    """The images to train on, and about `share` of them to validate on.

    Where an image belongs follows from its name and `seed` alone: not from the order of the images, from what other
    images there are, or from the number of processes. With `group`, a regular expression, from what it finds in the
    name (its groups, where it has any): images with the same stay together, such as those of one patient. An image in
    whose name it finds nothing stands for itself.

    Raises DataError where one of the parts would be empty, or lack a class that has images.
    """
    names = [source.name(index) for index in range(len(source))]
    keys = names if group is None else group_keys(names, group)
    held = _held(keys, share, seed)
    what = f"data.val={100 * share:g}%"
    _check(source, held, what)
    of = "" if group is None else f", {len({*np.array(keys)[held].tolist()})} of {len({*keys})} groups"
    say(f"{what}: {int(held.sum())} of {len(source)} images of data.train are for validation{of}")
    return SubsetSource(source, np.flatnonzero(~held)), SubsetSource(source, np.flatnonzero(held))


def _held(keys: Iterable[str], share: float, seed: int) -> NDArray[np.bool_]:
    key, limit = seed.to_bytes(8, "little"), int(share * 2**64)

    def number(text: str) -> int:
        digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), key=key, digest_size=8, person=b"val")
        return int.from_bytes(digest.digest(), "little")

    return np.array([number(text) < limit for text in keys], bool)


def groups_of(source: Source, group: str | None) -> NDArray[np.int64] | None:
    """(N,) the number of the group that each image is in, see `split`; None where there are no groups."""
    if group is None:
        return None
    names = [source.name(index) for index in range(len(source))]
    return np.unique(group_keys(names, group), return_inverse=True)[1]


def group_keys(names: Sequence[str], group: str) -> list[str]:
    """What each name has in common with the others of its group: see `split`."""
    pattern = re.compile(group)
    return [
        name if match is None else "\0".join(part or "" for part in match.groups() or (match[0],))
        for name, match in zip(names, map(pattern.search, names), strict=True)
    ]


def check_groups(source: Source, group: str) -> None:
    """Raise DataError where `group` finds nothing in any name; tell where it finds nothing in some."""
    names, pattern = [source.name(index) for index in range(len(source))], re.compile(group)
    alone = [name for name in names if pattern.search(name) is None]
    if len(alone) == len(names):
        raise DataError(
            f"data.val_group={group} finds nothing in any name of data.train, such as {printable(names[0])}"
        )
    if alone:
        say(f"data.val_group={group}: {len(alone)} images are in no group, such as {printable(alone[0])}")


def _check(source: Source, held: NDArray[np.bool_], what: str) -> None:
    if held.all() or not held.any():
        part = "train" if held.all() else "validate"
        raise DataError(f"{what} of {len(source)} images leaves none to {part} on; set another share or seed")
    if source.labels is None:
        return
    for label, name in enumerate(source.class_names or ()):
        members = held[source.labels == label]
        if len(members) and (members.all() or not members.any()):
            part = "train" if members.all() else "validate"
            raise DataError(
                f"{what}: class {name!r} has {len(members)} images, and none of them to {part} on; set another share "
                "or seed, or name a folder of validation images"
            )
