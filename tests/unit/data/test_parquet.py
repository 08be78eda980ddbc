"""Parquet and Arrow in the layout of Hugging Face's datasets, written as that library writes them."""

import json
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unmask.data.sources import Source, open_source, parquet
from unmask.errors import DataError

PHOTOS = Path(__file__).parents[4] / "shared/data/photos-1k"
CLASSES = ["cat", "dog", "emu"]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def make_table(first: int, count: int, *, image: str = "image", label: str = "label") -> pa.Table:
    features = {image: {"_type": "Image"}, label: {"names": CLASSES, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pa.schema([("id", pa.string()), (image, IMAGE), (label, pa.int64())], metadata=metadata)
    numbers = range(first, first + count)
    rows = [{"id": str(i), image: {"bytes": b"%d" % i * 50, "path": f"{i}.jpg"}, label: i % 3} for i in numbers]
    return pa.Table.from_pylist(rows, schema)


def make_files(folder: Path, split: str = "train") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file, (first, count) in enumerate([(0, 7), (7, 5)]):
        pq.write_table(make_table(first, count), folder / f"{split}-{file:05}-of-00002.parquet", row_group_size=3)


def open_images(path: Path | str, *, labels: bool = True) -> Source:
    return open_source(str(path), key="data.train", labels=labels)


def check(source: Source) -> None:
    assert len(source) == 12
    for i in np.random.default_rng(0).permutation(12).tolist():
        assert source.read(i) == b"%d" % i * 50
    assert source.class_names == tuple(CLASSES)
    assert source.labels is not None
    assert source.labels.tolist() == [i % 3 for i in range(12)]


def test_folder_pattern_and_file(tmp_path: Path):
    make_files(tmp_path / "data")
    for spec in ("data", "data/", "data/*.parquet", "data/train-{00000..00001}-of-00002.parquet"):
        check(open_images(f"{tmp_path}/{spec}"))
    source = open_images(tmp_path / "data")
    assert [source.name(i) for i in (0, 6, 7, 11)] == [
        f"train-0000{file}-of-00002.parquet/{row}" for file, row in [(0, 0), (0, 6), (1, 0), (1, 4)]
    ]
    one = open_images(tmp_path / "data" / "train-00001-of-00002.parquet", labels=False)
    assert (len(one), one.labels, one.read(0)) == (5, None, b"7" * 50)
    with pytest.raises(IndexError):
        source.read(12)


def test_splits_are_not_mixed(tmp_path: Path):
    make_files(tmp_path)
    make_files(tmp_path, "validation")
    with pytest.raises(DataError, match=r"holds train, validation; name one of them, such as .*/train-\*\.parquet"):
        open_images(tmp_path)
    check(open_images(tmp_path / "validation-*.parquet"))


@pytest.mark.parametrize("stream", [True, False])
def test_arrow_files(tmp_path: Path, stream: bool):
    for file, (first, count) in enumerate([(0, 7), (7, 5)]):
        table = make_table(first, count)
        write = pa.ipc.new_stream if stream else pa.ipc.new_file
        with write(str(tmp_path / f"data-{file:05}-of-00002.arrow"), table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    (tmp_path / "cache-0123.arrow").touch()
    (tmp_path / "dataset_info.json").write_text("{}")
    check(open_images(tmp_path))


def test_loader_process_and_cache_of_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_files(tmp_path)
    source = open_images(tmp_path)
    assert len(pickle.dumps(source)) < 5000
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        items = pool.map(source.read, range(12), chunksize=12)
    assert items == [b"%d" % i * 50 for i in range(12)]
    reads: list[int] = []
    read = parquet._Parquet.read
    monkeypatch.setattr(
        parquet._Parquet, "read", lambda self, group, name: (reads.append(group), read(self, group, name))[1]
    )
    for _ in range(2):
        check(source)
    assert len(reads) == 5  # as many as there are groups
    monkeypatch.setattr(parquet, "_CACHE_BYTES", 1)  # less than one group: the last is kept all the same
    check(open_images(tmp_path))
    assert 10 <= len(reads) <= 17


def test_fingerprint(tmp_path: Path):
    make_files(tmp_path / "a")
    make_files(tmp_path / "b")
    pq.write_table(make_table(1, 7), tmp_path / "b" / "train-00000-of-00002.parquet", row_group_size=3)
    a, b = open_images(tmp_path / "a"), open_images(tmp_path / "b")
    assert a.fingerprint() == open_images(tmp_path / "a").fingerprint() != b.fingerprint()


def test_columns_are_found_or_named(tmp_path: Path):
    path = tmp_path / "d.parquet"
    pq.write_table(make_table(0, 12, image="img", label="fine_label"), path)
    check(open_images(path))
    pq.write_table(make_table(0, 12, image="scan", label="kind"), path)
    check(open_images(path))
    check(open_images(f"{path}#image=scan&label=kind"))
    with pytest.raises(DataError, match="has no column nope; there are id, scan, kind"):
        open_images(f"{path}#label=nope")
    with pytest.raises(DataError, match="column id is string, not images"):
        open_images(f"{path}#image=id")
    with pytest.raises(DataError, match="Parquet or Arrow has no option column; its options are: image, label"):
        open_images(f"{path}#column=id")


def test_plain_columns_without_notes_of_the_library(tmp_path: Path):
    path = tmp_path / "d.parquet"
    pq.write_table(pa.table({"jpg": [b"1", b"2", b"3"], "label": ["dog", "cat", "dog"]}), path)
    source = open_images(path)
    assert (source.class_names, source.labels is not None and source.labels.tolist()) == (("cat", "dog"), [1, 0, 1])
    assert source.read(1) == b"2"
    pq.write_table(pa.table({"jpg": [b"1", b"2"], "cls": pa.array([3, 0], pa.uint8())}), path)
    assert open_images(path).class_names == ("0", "3")


def cases() -> dict[str, tuple[Any, str]]:
    return {
        "no image": (pa.table({"text": ["a"]}), "has no image column among text"),
        "no label": (pa.table({"image": [b"1"]}), "has no label column"),
        "null label": (pa.table({"image": [b"1"], "label": pa.array([None], pa.int64())}), "1 images have no label"),
        "float label": (pa.table({"image": [b"1"], "label": [0.5]}), "is double, not a class"),
        "negative label": (pa.table({"image": [b"1"], "label": [-1]}), "all labels are -1"),
        "no rows": (make_table(0, 0), "holds no images"),
    }


@pytest.mark.parametrize("case", list(cases()))
def test_unusable_tables_are_refused(tmp_path: Path, case: str):
    table, message = cases()[case]
    pq.write_table(table, tmp_path / "d.parquet")
    with pytest.raises(DataError, match=message):
        open_images(tmp_path / "d.parquet")


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_damaged_files_are_refused(tmp_path: Path, suffix: str):
    pq.write_table(make_table(0, 5), tmp_path / "whole")
    data = (tmp_path / "whole").read_bytes()
    for damage in (b"", b"garbage" * 10, data[: len(data) // 2]):
        (tmp_path / f"d.{suffix}").write_bytes(damage)
        with pytest.raises(DataError, match=rf"d\.{suffix} is not a whole") as caught:
            open_images(tmp_path / f"d.{suffix}")
        assert "\n" not in str(caught.value)


def test_image_without_bytes_is_an_error_of_its_own(tmp_path: Path):
    rows = [{"image": {"bytes": None, "path": "/far/1.jpg"}, "label": 0}]
    pq.write_table(
        pa.Table.from_pylist(rows, pa.schema([("image", IMAGE), ("label", pa.int64())])), tmp_path / "d.parquet"
    )
    with pytest.raises(DataError, match=r"d\.parquet/0 has no bytes, only the path /far/1\.jpg"):
        open_images(tmp_path / "d.parquet").read(0)


def hugging_face(columns: dict[str, Any], **features: Any) -> pa.Table:
    table = pa.table(columns)
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def images(count: int = 4) -> pa.Array:
    return pa.array([{"bytes": b"image %d" % i, "path": f"{i}.jpg"} for i in range(count)], IMAGE)


@pytest.mark.parametrize("files", [("train", "test"), ("validation_0", "training_0"), ("cats-dev", "cats-train")])
def test_files_named_after_parts_of_a_data_set_are_not_mixed(tmp_path: Path, files: tuple[str, str]):
    for name in files:
        pq.write_table(pa.table({"image": images(), "label": [0, 1, 0, 1]}), tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match=r"name one of them, such as .*train(ing_0)?\.parquet"):
        open_images(tmp_path)
    with pytest.raises(DataError, match=r"name one of them, such as .*train(ing_0)?\.parquet"):
        open_images(tmp_path / "*.parquet")
    assert len(open_images(tmp_path / f"{{{','.join(files)}}}.parquet")) == 8


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_files_that_number_their_classes_differently_are_refused(tmp_path: Path, suffix: str):
    orders = {"a": ["cat", "dog"], "b": ["dog", "cat"], "c": ["cat", "dog"], "d": None}
    for name, classes in orders.items():
        kind = {"label": {"_type": "ClassLabel", "names": classes}} if classes else {}
        table = hugging_face({"image": images(), "label": [0, 1, 0, 1]}, image={"_type": "Image"}, **kind)
        path = tmp_path / f"{name}.{suffix}"
        if suffix == "parquet":
            pq.write_table(table, path)
        else:
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
    with pytest.raises(DataError, match=rf"a\.{suffix} and b\.{suffix} number their classes differently"):
        open_images(tmp_path)
    assert len(open_images(tmp_path, labels=False)) == 16
    assert open_images(f"{tmp_path}/[acd].{suffix}").labels is not None


@pytest.mark.parametrize(
    ("columns", "taken"),
    [
        (["mask", "image"], "image"),
        (["depth", "img", "jpg"], "img"),
        (["jpg", "png"], "several image columns, jpg, png; name the one with #image=COLUMN"),
        (["left", "right"], "several image columns, left, right; name the one with #image=COLUMN"),
    ],
)
def test_of_several_image_columns_one_is_the_image_or_it_is_asked_for(tmp_path: Path, columns: list[str], taken: str):
    content = {name: [{"bytes": name.encode(), "path": None}] for name in columns}
    table = hugging_face({**content, "label": [1]}, **{name: {"_type": "Image"} for name in columns})
    pq.write_table(table, tmp_path / "set.parquet")
    if taken in columns:
        assert open_images(tmp_path / "set.parquet").read(0) == taken.encode()
    else:
        with pytest.raises(DataError, match=taken):
            open_images(tmp_path / "set.parquet")
    assert open_images(f"{tmp_path}/set.parquet#image={columns[-1]}").read(0) == columns[-1].encode()


def test_of_two_columns_of_classes_one_is_asked_for(tmp_path: Path):
    kinds = {name: {"_type": "ClassLabel", "names": ["a", "b"]} for name in ("breed", "colour")}
    pq.write_table(
        hugging_face({"image": images(2), "breed": [0, 1], "colour": [1, 0]}, **kinds), tmp_path / "s.parquet"
    )
    with pytest.raises(DataError, match="no label column, or several; name one of image, breed, colour with #label="):
        open_images(tmp_path / "s.parquet")
    labels = open_images(f"{tmp_path}/s.parquet#label=colour").labels
    assert labels is not None
    assert labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (pa.array(["b", "a", "b", "a"]).cast(pa.string_view()), (("a", "b"), [1, 0, 1, 0])),
        (pa.array([2**64 - 1, 7, 2**63, 7], pa.uint64()), (("7", str(2**63), str(2**64 - 1)), [2, 0, 1, 0])),
        (pa.array(["10.0", "9.5", "-2", "9.5"]), (("-2", "9.5", "10.0"), [2, 1, 0, 1])),
        (pa.array(["a", " ", "b", "a"]), "a label is empty"),
        (pa.array([[0, None], [1], [0], [2]]), "1 entries in the lists of label are empty"),
        (pa.array([[1, 0, 0], [0, 0, 1], [0, 1, 0], [1, 1, 0]]), "the lists of label name a class twice"),
        (pa.array([[1, 0], [0, 1], [0, 1], [1, 0]]), "the lists of label may be classes, and may be no and yes"),
        (pa.array([["1", "0"]] * 4), "the lists of label may be classes, and may be no and yes"),
        (pa.array([0.0, 1.0, 0.0, 1.0]), "column label is double, not a class; .* store whole numbers or names"),
    ],
    ids=[
        "text of Polars",
        "64 bits",
        "decimals",
        "blank",
        "nothing in a list",
        "yes or no to each class",
        "yes or no to two",
        "as text",
        "floating",
    ],
)
def test_labels_of_every_type_are_classes_or_refused(tmp_path: Path, labels: pa.Array, expected: Any):
    table = pa.table({"image": images(), "label": labels})
    with pa.OSFile(str(tmp_path / "set.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            open_images(tmp_path / "set.arrow")
    else:
        source = open_images(tmp_path / "set.arrow")
        assert source.labels is not None
        assert (source.class_names, source.labels.tolist()) == expected


@pytest.mark.parametrize(
    ("columns", "types", "message"),
    [
        (["picture", "label"], [pa.int64()], "b.parquet has no column called image; write all files alike, or name"),
        (["image", "kind"], [pa.int64()], "b.parquet has no column called label"),
        (["image", "label", "label"], [pa.int64()] * 2, "b.parquet has 2 columns called label"),
        (["image", "label"], [pa.string()], "label is int64 in a.parquet and string in b.parquet; write all"),
    ],
)
def test_files_of_other_columns_are_refused(tmp_path: Path, columns: list[str], types: list[pa.DataType], message: str):
    pq.write_table(pa.table({"image": images(), "label": [0, 1, 0, 1]}), tmp_path / "a.parquet")
    arrays = [images(), *(pa.array([0, 1, 0, 1]).cast(kind) for kind in types)]
    pq.write_table(pa.Table.from_arrays(arrays, names=columns), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=message):
        open_images(tmp_path)
