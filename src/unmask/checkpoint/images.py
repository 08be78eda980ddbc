"""Which images a run has seen: a list in its folder, to tell what changed, and a sample of what they held.

A fingerprint is made of names, sizes and labels. An image overwritten at equal size shows by the time of its last
change; a set that was copied has other times throughout, and then the sample of contents decides.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.data.rng import Op, generator
from unmask.data.sources import files, is_stored
from unmask.data.sources.base import Source, printable, whole
from unmask.data.sources.folder import FolderSource
from unmask.data.sources.list_file import ListFileSource
from unmask.data.sources.table import Table, load_table, store_table
from unmask.errors import DataError, StorageError

IMAGES = "images.index"
SAMPLED = 256
"""Images whose contents are looked at whenever a run starts: 30 MB of photographs, 0.06 s from a warm disk."""
_THREADS = 16
_NAMED = 3
"""Images of each kind that a message names."""


def write_images(source: Source, fingerprint: str, folder: Path) -> None:
    """Keep the list of the images of `source`. Not of arrays and Parquet files, whose images have no names."""
    if (table := _table(source)) is None:
        return
    columns = {key: values for key, values in table.columns.items() if key in ("size", "label")}
    if (changed := _change_times(source)) is not None:
        columns["changed"] = changed
    before = _read(folder, fingerprint)
    if before is None or not np.array_equal(before.columns.get("changed", ()), columns.get("changed", ())):
        store_table(folder / IMAGES, Table(table.names, table.ends, columns, {"fingerprint": fingerprint}))


def sample_of(source: Source) -> str | None:
    """SHA-256 over what SAMPLED images of `source` hold, which its fingerprint draws; None where an image is made anew
    each time it is asked for, as by a data set of Python's."""
    if not is_stored(source):
        return None
    draw = generator(int(source.fingerprint()[:7], 16), 0, 0, Op.SAMPLE)
    rows = np.unique(draw.integers(len(source), size=SAMPLED)).tolist()

    def content(index: int) -> bytes:
        try:
            image = source.read(index)
        except StorageError:
            raise
        except DataError:  # counted when its turn comes
            return b"cannot be read"
        return image if isinstance(image, bytes) else np.ascontiguousarray(image).tobytes()

    digest = hashlib.sha256()
    with ThreadPoolExecutor(_THREADS) as pool:
        for data in pool.map(content, rows):
            digest.update(hashlib.sha256(data).digest())
    return digest.hexdigest()


def written_anew(source: Source, fingerprint: str, folder: Path) -> str:
    """Such as "2 written anew (a/1.jpg, b/7.jpg)": some images were, since the list was kept; "" where none or all."""
    before, table, now = _read(folder, fingerprint), _table(source), _change_times(source)
    then = None if before is None else before.columns.get("changed")
    if table is None or now is None or then is None or len(then) != len(now):
        return ""
    which = then != now
    return "" if which.all() else _listed(table, which, "written anew")


def changes(source: Source, fingerprint: str, folder: Path) -> str | None:
    """How the images of `source` differ from those of `fingerprint`; None where the list of these is not there."""
    before, now = _read(folder, fingerprint), _table(source)
    return None if before is None or now is None else compared(before, now)


def compared(before: Table, now: Table) -> str:
    """Such as "2 added (a/1.jpg, a/2.jpg), 1 gone (b/7.jpg), 1 of another size (b/9.jpg)"."""
    place = _places(now, before)
    gone = _places(before, now) < 0
    found = [
        _listed(now, place < 0, "added"),
        _listed(before, gone, "gone"),
        *(_listed(now, _differ(before, now, place, key), f"of another {key}") for key in ("size", "label")),
    ]
    return ", ".join(filter(None, found)) or "the same names in another order, or other labels"


def _places(table: Table, other: Table) -> NDArray[np.int64]:
    """Where in `other` each image of `table` stands; -1: nowhere."""
    import pyarrow.compute as pc

    return pc.call_function("index_in", [table.arrow()], pc.SetLookupOptions(other.arrow())).fill_null(-1).to_numpy()


def _differ(before: Table, now: Table, place: NDArray[Any], key: str) -> NDArray[np.bool_]:
    """Which images of `now` that are at `place` in `before` have another number in a column."""
    old, new = before.columns.get(key), now.columns.get(key)
    if old is None or new is None or len(old) != len(before) or len(new) != len(now) or not len(old):
        return np.zeros(len(now), bool)
    return (place >= 0) & (old[np.maximum(place, 0)] != new)


def _listed(table: Table, which: NDArray[np.bool_], what: str) -> str:
    rows = np.flatnonzero(which)
    names = [printable(os.fsdecode(table.name(int(row)))) for row in rows[:_NAMED]]
    more = ", …" if len(rows) > _NAMED else ""
    return f"{len(rows)} {what} ({', '.join(names)}{more})" if len(rows) else ""


def _change_times(source: Source) -> NDArray[np.int64] | None:
    """(N,) when each file was last changed, in ns; 0 where it is gone. None where images are no files on this machine.

    Four seconds for a million.
    """
    base = whole(source)
    if not isinstance(base, FolderSource | ListFileSource) or files.is_remote(base.root):
        return None
    names = map(base.name, range(len(base)))
    return np.fromiter((_changed(files.beside(f"{base.root}/", name)) for name in names), np.int64, len(base))


def _changed(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns  # noqa: PTH116 (a million of them)
    except OSError:
        return 0


def _table(source: Source) -> Table | None:
    index = getattr(whole(source), "index", None)
    return index if isinstance(index, Table) else None


def _read(folder: Path, fingerprint: str) -> Table | None:
    table = load_table(folder / IMAGES, check=True)
    if table is None or table.meta.get("fingerprint") != fingerprint or (np.diff(table.ends, prepend=0) < 0).any():
        return None
    return table
