"""A table whose column tells train from validation is one part of it, or all by the word of who asks."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from unmask.data.sources import Source, open_source
from unmask.data.sources.left_out import LeftOut
from unmask.data.sources.subset import SubsetSource
from unmask.errors import DataError

Rows = list[dict[str, Any]]


def rows(column: str, values: list[Any]) -> Rows:
    return [{"path": f"{n}.png", "label": "cat" if n % 2 else "dog", column: value} for n, value in enumerate(values)]


def as_csv(path: Path, table: Rows) -> Path:
    with (path / "list.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    return path / "list.csv"


def as_jsonl(path: Path, table: Rows) -> Path:
    (path / "list.jsonl").write_text("\n".join(map(json.dumps, table)))
    return path / "list.jsonl"


def as_json(path: Path, table: Rows) -> Path:
    (path / "list.json").write_text(json.dumps(table))
    return path / "list.json"


def as_parquet(path: Path, table: Rows) -> Path:
    columns = {key: [row[key] for row in table] for key in table[0] if key != "path"}
    names = [row["path"].encode() for row in table]
    pq.write_table(
        pa.table({"image": pa.array(names, pa.binary()), **columns}), path / "list.parquet", row_group_size=3
    )
    return path / "list.parquet"


FORMS = [as_csv, as_jsonl, as_json, as_parquet]


def opened(spec: object, *, labels: bool = True) -> Source:
    return open_source(str(spec), key="data.train", labels=labels)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    for n in range(8):
        Image.new("RGB", (8, 8), (n, 0, 0)).save(tmp_path / f"{n}.png")
    return tmp_path


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("column", "values", "train"),
    [
        ("split", ["train", "train", "val", "train", "test", "val", "train", "train"], "train"),
        ("Subset", ["Training", "Training", "PublicTest", "Training"] * 2, "Training"),
        ("partition", [0, 0, 1, 0, 2, 0, 0, 1], "0"),
        ("is_valid", [False, False, True, False, False, True, False, False], "False"),
    ],
)
def test_parts_are_told_apart(
    here: Path, form: Callable[[Path, Rows], Path], column: str, values: list[Any], train: str
):
    spec = form(here, rows(column, values))
    for labels in (True, False):
        with pytest.raises(DataError, match=rf"its column {column} tells .* apart; take one with #split={train} after"):
            opened(spec, labels=labels)
    source = opened(f"{spec}#split={train}")
    taken = [n for n, value in enumerate(values) if str(value) == train]
    assert source.labels is not None
    assert [source.class_names[label] for label in source.labels] == ["cat" if n % 2 else "dog" for n in taken]  # type: ignore[index]
    assert LeftOut.of(source).counts() == {f"rows of another {column}": 8 - len(taken)}
    contents = [(here / f"{n}.png").read_bytes() if form is not as_parquet else f"{n}.png".encode() for n in taken]
    assert [source.read(index) for index in range(len(source))] == contents
    assert len(opened(f"{spec}#split=*")) == 8
    assert source.fingerprint() != opened(f"{spec}#split=*").fingerprint()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("split", ["train"] * 8),
        ("set", ["winter", "summer"] * 4),
        ("mood", ["train", "val"] * 4),
        ("split", [None] * 8),
    ],
)
def test_columns_that_tell_no_parts(here: Path, form: Callable[[Path, Rows], Path], column: str, values: list[Any]):
    assert len(opened(form(here, rows(column, values)))) == 8


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("column", "asked", "message"),
    [
        ("split", "training", "no row is of #split=training; its column split has train, val"),
        ("mood", "train", "nothing there is called split, subset, .*; leave out #split="),
    ],
)
def test_parts_that_are_not_there(
    here: Path, form: Callable[[Path, Rows], Path], column: str, asked: str, message: str
):
    with pytest.raises(DataError, match=message):
        opened(f"{form(here, rows(column, ['train', 'val'] * 4))}#split={asked}")


def test_labels_of_other_parts_are_not_asked_for(here: Path):
    table = rows("split", ["train"] * 6 + ["test"] * 2)
    for row in table[6:]:
        row["label"] = None
    for form in FORMS:
        assert len(opened(f"{form(here, table)}#split=train")) == 6


def test_a_plain_list_has_no_parts(here: Path):
    (here / "list.txt").write_text("0.png\n1.png\n")
    with pytest.raises(DataError, match=re.escape("leave out #split=")):
        opened(f"{here / 'list.txt'}#split=train", labels=False)


def test_some_images_of_a_list_keep_their_several_classes(here: Path):
    (here / "list.csv").write_text("path,label\n0.png,cat;dog\n1.png,dog\n2.png,\n")
    some = SubsetSource(opened(here / "list.csv"), np.array([0, 2]))
    assert some.labels is None
    assert some.label_sets is not None
    assert some.label_sets.tolist() == [[True, True], [False, False]]
