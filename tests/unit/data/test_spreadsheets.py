"""Tables that spreadsheets open without harm, and that give every name back."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unmask.data.sources import to_source
from unmask.data.sources.base import from_printable, printable
from unmask.data.spreadsheets import cell, csv_file, csv_rows, name_in
from unmask.evaluate.features import embedding_records
from unmask.evaluate.formats import write_embeddings_csv
from unmask.evaluate.maps import neighbourhood

HARMFUL = ["=1+1", "+x", "-x", "@x", "\tx", "＝x", "'=x", "''-x"]
NAMES = [
    *HARMFUL,
    "a,b",
    'q"t',
    "图\u3000像",
    "b\\c",
    "n\nl",
    "é\xa0\x85",
    os.fsdecode(b"x\xff\xe9"),
    " s ",
    "\\x41",
    "-12",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_comes_back_from_its_cell(name: str) -> None:
    written = cell(printable(name))
    assert written[0] not in "=+@\t＝"
    assert name_in(written) == name
    assert from_printable(printable(name)) == name
    assert printable(name).isprintable()


def test_numbers_are_no_formulas() -> None:
    assert [cell(text) for text in ("-1", "+1.5", "-1e5", "-", "1")] == ["-1", "+1.5", "'-1e5", "'-", "1"]
    assert printable("\x85") != printable(os.fsdecode(b"\x85"))


@pytest.mark.parametrize(("name", "mark"), [("cat", b""), ("猫", b"\xef\xbb\xbf")])
def test_what_is_not_ascii_is_marked_as_utf8(name: str, mark: bytes, tmp_path: Path) -> None:
    with csv_file(tmp_path / "t.csv", [name]) as file:
        csv_rows(file, [["file", "loss"], [name, -1.5], [None, None]])
    assert (tmp_path / "t.csv").read_bytes() == mark + f"file,loss\n{name},-1.5\n,\n".encode()


@pytest.mark.skipif(os.sep == "\\", reason="Windows has no such names")
def test_a_table_of_embeddings_is_a_list_of_the_same_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for folder in ("=class", "猫"):
        for name in NAMES[:-1]:
            path = tmp_path / "photos" / folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(path)
    source = to_source(str(tmp_path / "photos"), key="photos", labels=None, dtype="uint8")
    records = np.zeros(len(source), embedding_records(3))
    records["valid"], records["embedding"] = True, rng.normal(size=(len(source), 3))
    records["valid"][2], records["embedding"][2] = False, np.nan
    around = neighbourhood(records["embedding"], records["valid"])
    assert around is not None
    write_embeddings_csv(tmp_path / "e.csv", source, 0, iter([records[:9], records[9:]]), 3, around)

    for spec in ("e.csv", f"e.csv#image=file&root={tmp_path / 'photos'}"):  # by the path, and by the name
        again = to_source(str(tmp_path / spec), key="table", labels=True, dtype="uint8")
        assert [again.read(i) for i in range(len(again))] == [source.read(i) for i in range(len(source))]
        assert again.labels is not None
        assert source.labels is not None
        assert again.class_names == source.class_names == ("=class", "猫")
        np.testing.assert_array_equal(again.labels, source.labels)
    rows = list(csv.DictReader((tmp_path / "e.csv").read_text("utf-8-sig").splitlines()))
    values = [[float(row[f"embedding_{k}"] or "nan") for k in (1, 2, 3)] for row in rows]
    np.testing.assert_array_equal(np.array(values, np.float32), records["embedding"])
    nearest = [source.name(i) for i in around.index[:, 0].tolist() if i >= 0]
    assert [name_in(row["neighbor_1"]) for row in rows if row["x"]] == nearest
    assert rows[2]["x"] == rows[2]["neighbor_1"] == ""
    assert 2 not in around.index[around.index[:, 0] >= 0]
    alone = neighbourhood(np.ones((1, 3), np.float32), np.ones(1, bool))
    assert alone is not None
    assert (alone.places.tolist(), alone.index.shape) == ([[0, 0]], (1, 0))


def test_a_list_of_somebody_else_is_left_as_it_is(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / r"'-a\n.png")
    (tmp_path / "list.csv").write_text("file,label,probability\n'-a\\n.png,'=b,0.5\n")
    source = to_source(str(tmp_path / "list.csv"), key="list", labels=True, dtype="uint8")
    assert (source.name(0), source.class_names) == (r"'-a\n.png", ("'=b",))
