import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from unmask.data.sources import open_source
from unmask.data.sources.list_file import ListFileSource
from unmask.errors import DataError


def open_list(path: Path, content: str | bytes, *, labels: bool = True) -> ListFileSource:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    source = open_source(str(path), key="data.train", labels=labels)
    assert isinstance(source, ListFileSource)
    return source


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("train/cat/1.jpg", "train/dog/my photo 2.JPG", "größe.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


NAMES = ["train/dog/my photo 2.JPG", "train/cat/1.jpg", "größe.png"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.txt", "train/dog/my photo 2.JPG dog\ntrain/cat/1.jpg cat\r\n\ngröße.png cat\n"),
        ("l.lst", "train/dog/my photo 2.JPG\tdog\ntrain/cat/1.jpg\tcat\ngröße.png\tcat"),
        ("l.csv", "path,label\ntrain/dog/my photo 2.JPG,dog\ntrain/cat/1.jpg,cat\ngröße.png,cat\n"),
        ("l.csv", '\ufeffLabel;Width;File\ndog;1;"train/dog/my photo 2.JPG"\ncat;2;train/cat/1.jpg\ncat;3;größe.png\n'),
        ("l.tsv", "file\tclass\ntrain/dog/my photo 2.JPG\tdog\ntrain/cat/1.jpg\tcat\ngröße.png\tcat\n"),
        ("tot_ids.json", json.dumps({NAMES[0]: "dog", NAMES[1]: "cat", NAMES[2]: "cat"})),
        ("l.json", json.dumps([[NAMES[0], "dog"], [NAMES[1], "cat"], [NAMES[2], "cat"]])),
        ("l.json", json.dumps([{"file": n, "label": c} for n, c in zip(NAMES, ["dog", "cat", "cat"], strict=True)])),
    ],
)
def test_every_layout_says_the_same(root: Path, name: str, content: str):
    source = open_list(root / name, content)
    assert [source.name(i) for i in range(len(source))] == NAMES
    assert [source.read(i) for i in range(len(source))] == [name.encode() for name in NAMES]
    assert source.labels is not None
    assert source.labels.tolist() == [1, 0, 0]
    assert source.class_names == ("cat", "dog")
    again = pickle.loads(pickle.dumps(source))
    assert [again.name(i) for i in range(3)] == NAMES
    assert len(pickle.dumps(source)) < 1000
    assert open_source(str(root / name), key="k", labels=False).labels is None


@pytest.mark.parametrize("place", ["lists/l.json", "lists/deep/l.txt"])
def test_paths_may_be_relative_to_another_folder(root: Path, place: str):
    list_file = root / place
    list_file.parent.mkdir(parents=True)
    names = [*NAMES[:2], str(root / NAMES[2])]
    list_file.write_text(json.dumps(names) if place.endswith("json") else "\n".join(names))
    source = open_source(f"{list_file}#root={root}", key="data.train", labels=False)
    assert [source.read(i) for i in range(len(source))] == [name.encode() for name in NAMES]
    with pytest.raises(DataError, match=r"my photo 2\.JPG cannot be read"):
        open_source(str(list_file), key="data.train", labels=False).read(0)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.txt", "\n".join(NAMES)),
        ("l.csv", "path\n" + "\n".join(NAMES)),
        ("l.json", json.dumps(NAMES)),
        ("l.json", json.dumps([[name, None] for name in NAMES])),
    ],
)
def test_paths_alone(root: Path, name: str, content: str):
    source = open_list(root / name, content, labels=False)
    assert [source.name(i) for i in range(len(source))] == NAMES
    assert source.labels is None
    with pytest.raises(DataError, match=r"gives no label for train/dog/my photo 2\.JPG"):
        open_source(str(root / name), key="data.train", labels=True)


def test_numbers_are_classes(root: Path):
    source = open_list(root / "l.json", json.dumps({NAMES[0]: 3, NAMES[1]: 0}))
    assert source.class_names == ("0", "1", "2", "3")
    assert source.labels is not None
    assert source.labels.tolist() == [3, 0]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.csv", "path,label\na.jpg,cat;dog\nb.jpg,ant\nc.jpg,dog\n"),
        ("l.json", '{"a.jpg": ["cat", "dog"], "b.jpg": "ant", "c.jpg": "dog"}'),
    ],
)
def test_several_classes_of_one_image(tmp_path: Path, name: str, content: str):
    source = open_list(tmp_path / name, content)
    assert source.labels is None
    assert source.class_names == ("ant", "cat", "dog")
    assert source.label_sets is not None
    assert source.label_sets.astype(int).tolist() == [[0, 1, 1], [1, 0, 0], [0, 0, 1]]
    assert open_list(tmp_path / "single.txt", "a.jpg cat").label_sets is None


def test_absolute_and_undecodable_paths(root: Path):
    (root / "far").mkdir()
    source = open_list(root / "far" / "l.txt", f"{root}/train/cat/1.jpg\n../gr".encode() + b"\xff.jpg\n", labels=False)
    assert source.read(0) == b"train/cat/1.jpg"
    (root / "gr\udcff.jpg").write_bytes(b"bytes")
    assert source.read(1) == b"bytes"


def test_missing_image_is_an_error_of_its_own(root: Path):
    source = open_list(root / "l.txt", "nowhere.jpg", labels=False)
    with pytest.raises(DataError, match=r"nowhere\.jpg cannot be read: No such file"):
        source.read(0)


def test_fingerprint_follows_names_order_and_labels(root: Path):
    contents = ["a.jpg x\nb.jpg y", "a.jpg y\nb.jpg x", "b.jpg y\na.jpg x", "a.jpg x\nc.jpg y", "a.jpg x"]
    prints = [open_list(root / f"{i}.txt", content).fingerprint() for i, content in enumerate(contents)]
    assert len(set(prints)) == 5
    assert open_list(root / "again.csv", "path,label\na.jpg,x\nb.jpg,y").fingerprint() == prints[0]


def test_changed_list_is_read_anew(root: Path):
    assert len(open_list(root / "l.txt", "a.jpg", labels=False)) == 1
    assert len(open_list(root / "l.txt", "a.jpg\nb.jpg", labels=False)) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.txt", "", "names no images"),
        ("l.csv", "name,label\na.jpg,1\n", "no column path or file"),
        ("l.json", "{", "is not JSON"),
        ("l.json", "[" * 100_000, "is not JSON"),
        ("l.json", "3", "must be a map"),
        ("l.json", "[3]", "entry 1 is neither"),
        ("l.json", '[{"label": 1}]', "entry 1 has no field path"),
        ("l.json", '[""]', "entry 1 has no path"),
        ("l.txt", "a\0.jpg", "entry 1 has no path"),
    ],
)
def test_unusable_lists_are_refused(root: Path, name: str, content: str, message: str):
    with pytest.raises(DataError, match=message) as caught:
        open_list(root / name, content, labels=False)
    assert "\n" not in str(caught.value)
    assert f"data.train={root / name}" in str(caught.value)


def test_hundred_thousand_entries_stay_in_arrays(root: Path):
    source = open_list(root / "l.txt", "".join(f"c{i % 10}/{i}.jpg\t{i % 10}\n" for i in range(100_000)))
    assert isinstance(source.index.names.base.base, np.memmap)
    assert source.labels is not None
    assert (len(source), source.name(99_999), int(source.labels[99_999])) == (100_000, "c9/99999.jpg", 9)
