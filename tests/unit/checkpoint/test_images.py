from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from unmask.checkpoint.images import changes, compared, write_images
from unmask.data.sources import open_source
from unmask.data.sources.subset import SubsetSource
from unmask.data.sources.table import Table, TableBuilder

ROWS = {"a/1.png": (10, 0), "a/2.png": (20, 0), "b/1.png": (30, 1), "b/\udcff\n.png": (40, 1)}


def table(rows: dict[str, tuple[int, ...]], *columns: str) -> Table:
    builder = TableBuilder(*columns)
    for name, values in rows.items():
        builder.add(name.encode("utf-8", "surrogateescape"), *values[: len(columns)])
    return builder.build()


def differ(now: dict[str, tuple[int, ...]], *columns: str) -> str:
    return compared(table(ROWS, *columns), table(now, *columns))


def test_what_came_and_went_is_named():
    now = {name: values for name, values in ROWS.items() if name != "a/2.png"} | {"b/0.png": (1, 1), "c.png": (1, 1)}
    assert differ(now, "size", "label") == "2 added (b/0.png, c.png), 1 gone (a/2.png)"
    assert differ({"a/1.png": (10, 0)}) == r"3 gone (a/2.png, b/1.png, b/\xff\n.png)"


def test_no_more_than_three_are_named():
    now = ROWS | {f"c/{number}": (1, 1) for number in range(5)}
    assert differ(now) == "5 added (c/0, c/1, c/2, …)"


def test_other_sizes_and_labels_are_told_wherever_the_image_stands():
    now = {"a/0.png": (5, 0), **ROWS, "b/1.png": (31, 1), "a/2.png": (20, 1)}
    assert (
        differ(now, "size", "label") == "1 added (a/0.png), 1 of another size (b/1.png), 1 of another label (a/2.png)"
    )
    assert differ(now) == "1 added (a/0.png)", "nothing is known of sizes"


def test_order_alone():
    assert differ(dict(reversed(ROWS.items())), "size") == "the same names in another order, or other labels"


def test_labels_of_several_classes_an_image_are_not_compared():
    before, now = table(ROWS), table(ROWS)
    before.columns["label"] = np.arange(9)
    now.columns["label"] = np.arange(8)
    assert compared(before, now) == "the same names in another order, or other labels"


def test_a_million_images_are_compared(tmp_path: Path):
    ends = np.arange(1, 10**6 + 1) * 8
    blob = np.frombuffer(b"".join(b"%08d" % number for number in range(10**6)), np.uint8)
    before = Table(blob, ends, {"size": np.full(10**6, 7)})
    write_images(SimpleNamespace(index=before), "f", tmp_path)  # pyright: ignore[reportArgumentType]
    now = before.take(np.arange(10**6) != 123_456)
    now.columns["size"][5] = 8
    source: Any = SimpleNamespace(index=now)
    assert changes(source, "f", tmp_path) == "1 gone (00123456), 1 of another size (00000005)"


def test_list_of_other_images_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.png").touch()
    source = open_source(str(tmp_path / "photos"), key="data.train", labels=False)
    assert changes(source, source.fingerprint(), tmp_path) is None
    write_images(source, source.fingerprint(), tmp_path)
    assert changes(source, "another", tmp_path) is None
    assert changes(source, source.fingerprint(), tmp_path) == "the same names in another order, or other labels"
    part = SubsetSource(source, np.array([0]))
    assert changes(part, source.fingerprint(), tmp_path) is not None


def test_damaged_list_is_not_taken(tmp_path: Path):
    broken = Table(np.zeros(9, np.uint8), np.array([9, 3, 9]), {})
    write_images(SimpleNamespace(index=broken), "f", tmp_path)  # pyright: ignore[reportArgumentType]
    source: Any = SimpleNamespace(index=table(ROWS))
    assert changes(source, "f", tmp_path) is None


def test_arrays_have_no_names(tmp_path: Path):
    source = open_source("bundled:mnist5k", key="data.train", labels=False)
    write_images(source, "f", tmp_path)
    assert not list(tmp_path.iterdir())
    assert changes(source, "f", tmp_path) is None
