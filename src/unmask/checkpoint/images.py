"""Which images a run has seen: a list in its folder, to tell what changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.data.sources.base import Source, printable
from unmask.data.sources.subset import SubsetSource
from unmask.data.sources.table import Table, load_table, store_table

IMAGES = "images.index"
_NAMED = 3
"""Images of each kind that a message names."""


def write_images(source: Source, fingerprint: str, folder: Path) -> None:
    """Keep the list of the images of `source`. Not of arrays and Parquet files, whose images have no names."""
    if (table := _table(source)) is None or _read(folder, fingerprint) is not None:
        return
    columns = {key: values for key, values in table.columns.items() if key in ("size", "label")}
    store_table(folder / IMAGES, Table(table.names, table.ends, columns, {"fingerprint": fingerprint}))


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


def _table(source: Source) -> Table | None:
    index = getattr(source.parent if isinstance(source, SubsetSource) else source, "index", None)
    return index if isinstance(index, Table) else None


def _read(folder: Path, fingerprint: str) -> Table | None:
    table = load_table(folder / IMAGES)
    if table is None or table.meta.get("fingerprint") != fingerprint or (np.diff(table.ends, prepend=0) < 0).any():
        return None
    return table
