import json
import pickle
from pathlib import Path
from typing import Any

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
    assert source.class_names == ("0", "3")
    assert source.labels is not None
    assert source.labels.tolist() == [1, 0]


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


QUOTED = '"path","caption","label"\r\n"a.jpg","a ""nice"", big\r\nanimal","cat"\r\n\r\n"b, 2.jpg","x","dog"\r\n'


@pytest.mark.parametrize(
    "content",
    [
        QUOTED.encode(),
        QUOTED.replace(",", ";").replace("b; 2", "b, 2").encode(),
        QUOTED.replace('","', '"\t"').encode(),
        ("\ufeff" + QUOTED).encode(),
        QUOTED.encode("utf-16"),
    ],
)
def test_csv_by_its_own_rules(tmp_path: Path, content: bytes):
    source = open_list(tmp_path / "l.csv", content)
    assert [source.name(i) for i in range(len(source))] == ["a.jpg", "b, 2.jpg"]
    assert source.class_names == ("cat", "dog")


def test_columns_are_named_and_never_passed_over(tmp_path: Path):
    path = tmp_path / "l.csv"
    path.write_text("path,crop,label,fine_label\na.jpg,a2.jpg,animal,cat\nb.jpg,b2.jpg,animal,dog\n")
    source = open_source(f"{path}#label=fine_label&image=crop", key="data.train", labels=True)
    assert (source.class_names, source.name(1)) == (("cat", "dog"), "b2.jpg")
    with pytest.raises(DataError, match="has no column kind; there are path, crop, label, fine_label"):
        open_source(f"{path}#label=kind", key="data.train", labels=True)
    rows = [{"path": "a.jpg", "species": 3}, {"path": "b.jpg", "species": 1}]
    (tmp_path / "l.json").write_text(json.dumps(rows))
    source = open_source(f"{tmp_path}/l.json#label=species", key="data.train", labels=True)
    assert (source.class_names, source.labels is not None and source.labels.tolist()) == (("1", "3"), [1, 0])
    (tmp_path / "l.txt").write_text("a.jpg\n")
    with pytest.raises(DataError, match="a list in plain text has no columns"):
        open_source(f"{tmp_path}/l.txt#label=species", key="data.train", labels=False)


def test_encodings_are_named_not_guessed(tmp_path: Path):
    path = tmp_path / "l.csv"
    for encoding, name in (("cp1252", "Käfer"), ("gb18030", "甲虫"), ("latin-1", "Größe")):
        path.write_bytes(f"path,label\na.jpg,{name}\n".encode(encoding))
        source = open_source(f"{path}#encoding={encoding}", key="data.train", labels=True)
        assert source.class_names == (name,)
    path.write_bytes("path,label\na.jpg,Käfer\n".encode("cp1252"))
    with pytest.raises(DataError, match=r"the label K\\xe4fer is not UTF-8; name the encoding .*#encoding=cp1252"):
        open_source(str(path), key="data.train", labels=True)
    with pytest.raises(DataError, match="there is no encoding kp1252"):
        open_source(f"{path}#encoding=kp1252", key="data.train", labels=True)
    with pytest.raises(DataError, match=r"is not utf-8 \(at byte 18\)"):
        open_source(f"{path}#encoding=utf-8", key="data.train", labels=True)


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        (["1", "2"], ("1", "2"), [0, 1]),
        (["47219", "126889", "47219"], ("47219", "126889"), [0, 1, 0]),
        (["10", "-1", "2", "0"], ("-1", "0", "2", "10"), [3, 0, 2, 1]),
        (["007", "8", "x"], ("007", "8", "x"), [0, 1, 2]),
        (["2000000000", "0"], ("0", "2000000000"), [1, 0]),
        (["caf\u00e9", "cafe\u0301", "tea"], ("café", "tea"), [0, 0, 1]),
    ],
)
def test_classes_are_the_distinct_labels(tmp_path: Path, labels: list[str], names: tuple[str, ...], numbers: list[int]):
    content = "path,label\n" + "".join(f"{n}.jpg,{label}\n" for n, label in enumerate(labels))
    source = open_list(tmp_path / "l.csv", content)
    assert source.class_names == names
    assert source.labels is not None
    assert source.labels.tolist() == numbers


def test_a_class_list_gives_all_classes_in_order(tmp_path: Path):
    (tmp_path / "classes.txt").write_text("wolf\ndog\ncat\n")
    (tmp_path / "l.csv").write_text("path,label\na.jpg,cat\nb.jpg,dog\n")
    spec = f"{tmp_path}/l.csv#classes={tmp_path}/classes.txt"
    source = open_source(spec, key="data.train", labels=True)
    assert (source.class_names, source.labels is not None and source.labels.tolist()) == (
        ("wolf", "dog", "cat"),
        [2, 1],
    )
    (tmp_path / "l.csv").write_text("path,label\na.jpg,cat\nb.jpg,fox\n")
    with pytest.raises(DataError, match="the label fox is none of the 3 classes"):
        open_source(spec, key="data.train", labels=True)
    (tmp_path / "classes.txt").write_text("wolf\nwolf\n")
    with pytest.raises(DataError, match="names wolf twice"):
        open_source(spec, key="data.train", labels=True)


COCO = {
    "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 3, "file_name": "b.jpg"}, {"id": 9, "file_name": "c.jpg"}],
    "annotations": [{"image_id": 7, "category_id": 2, "bbox": []}, {"image_id": 7, "category_id": 5}]
    + [{"image_id": 3, "category_id": 5}] * 2,
    "categories": [{"id": 2, "name": "dog"}, {"id": 5, "name": "cat"}],
}
MMPRETRAIN = {
    "metainfo": {"classes": ["dog", "cat"]},
    "data_list": [{"img_path": "a.jpg", "gt_label": 1}, {"img_path": "b.jpg", "gt_label": [0]}],
}


def test_lists_of_other_tools(tmp_path: Path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "b.jpg").write_bytes(b"pixels")
    (tmp_path / "coco.json").write_text(json.dumps(COCO))
    source = open_source(f"{tmp_path}/coco.json#root={tmp_path}/images", key="data.train", labels=True)
    assert [source.name(i) for i in range(3)] == ["a.jpg", "b.jpg", "c.jpg"]
    assert source.read(1) == b"pixels"
    assert (source.class_names, source.labels) == (("cat", "dog"), None)
    assert getattr(source, "label_sets").tolist() == [[True, True], [True, False], [False, False]]  # noqa: B009
    source = open_list(tmp_path / "mm.json", json.dumps(MMPRETRAIN))
    assert (source.class_names, source.labels is not None and source.labels.tolist()) == (("cat", "dog"), [0, 1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            [{"id": 1, "data": {"image": "/data/upload/a.jpg"}, "annotations": []}],
            "is Label Studio's; export it as CSV",
        ),
        ({"_via_img_metadata": {}, "_via_settings": {}}, "is VIA's; export"),
        ({"shapes": [], "imagePath": "a.jpg"}, "is LabelMe's; export"),
        ({"annotations": [], "categories": []}, "annotations without its images"),
        (COCO | {"annotations": [{"image_id": 1, "category_id": 2}]}, "looks like COCO, but 1 is not where it should"),
        ([{"path": "a.jpg", "label": {"name": "cat"}}], "entry 1: its label is dict, not a name"),
        ([{"path": "a.jpg", "label": 0.5}], "entry 1: its label is float"),
        ({"a.jpg": 0.5}, "entry 1: its label is float, not a name or a whole number"),
        ([["a.jpg", ["cat", None]]], "entry 1: one of its labels is NoneType, not"),
        ([{"file_name": "a.jpg", "text": "x"}], "gives no label for a.jpg; .* of file_name, text, with #label=COLUMN"),
        ({"cat": ["a.jpg", "b.jpg"], "dog": ["c.jpg"]}, "lists images by cat, dog; write an entry for each image"),
        ({"train": ["a.jpg"], "test": []}, "lists images by train, test; write"),
        ({"path": ["a.jpg", "b.jpg"], "label": ["cat", "dog"]}, "lists images by path, label; write"),
        ({"names": ["cat", "dog"], "path": "x"}, "has the fields names, path, not a map from paths to labels; write"),
        ({"train": "images/train", "val": "images/val", "nc": 2}, "has the fields train, val, nc, not a map"),
        ({"version": "1.0", "a": 3}, "has the fields version, a, not a map"),
        ({"17": "a.jpg", "18": "b.jpg"}, "maps 17 and others to images; write"),
        ({"a.jpg": [0, 1, 0], "b.jpg": [1, 0, 0]}, "its lists of labels name a class twice, so they are not surely"),
        ([["a.jpg", [0, 1]], ["b.jpg", [1, 0]]], "its lists of labels may be classes, and may be no and yes, so"),
        (
            [{"path": "a.jpg", "labels": [1, 1]}, {"path": "b.jpg", "labels": [1, 1]}],
            "lists of labels name a class twice",
        ),
        ({"a.jpg1": {"filename": "a.jpg", "regions": []}}, "is VIA's; export"),
        ({"images": [], "annotations": [{"caption": "a cat"}]}, "annotations without its categories"),
        (COCO | {"images": COCO["images"] * 2}, "several of its images have one id"),
        (
            COCO | {"categories": [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]},
            "several of its categories have one id",
        ),
        (
            MMPRETRAIN | {"data_list": [{"img_path": "a.jpg", "gt_label": -1}]},
            "gt_label -1 of a.jpg is none of 2 classes",
        ),
        (MMPRETRAIN | {"data_list": [{"img_path": "a.jpg", "gt_label": True}]}, "gt_label True of a.jpg is none of"),
        (MMPRETRAIN | {"data_list": [{"img_path": "a.jpg", "gt_label": [0, 2]}]}, "gt_label 2 of a.jpg is none of"),
    ],
)
def test_json_that_is_no_list_of_images_is_refused_by_name(tmp_path: Path, content: object, message: str):
    with pytest.raises(DataError, match=message):
        open_list(tmp_path / "l.json", json.dumps(content))


def test_rows_that_do_not_fit_the_header(tmp_path: Path):
    with pytest.raises(DataError, match="line 3 has 3 fields, the header 2"):
        open_list(tmp_path / "l.csv", "path,label\na.jpg,cat\nb,c.jpg,dog\n")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.csv", "path,label\na.jpg,cat\nb.jpg,dog\na.jpg,dog\n", "names a.jpg twice, as cat and as dog; give each"),
        ("l.txt", "a.jpg 1\nb.jpg 0\na.jpg 0\n", "names a.jpg twice, as 1 and as 0"),
        ("l.csv", "path,label\na.jpg,cat;dog\nb.jpg,dog\na.jpg,\n", "names a.jpg twice, as cat;dog and as none"),
        ("l.csv", "path,label\na.jpg,cat\n./a.jpg,dog\n", "names a.jpg twice, as cat and as dog"),
        ("l.csv", "path,label\nx//a.jpg,cat\nx/y/../a.jpg,dog\n", "names x//a.jpg twice, as cat and as dog"),
        ("l.json", '[["b.jpg", 0], ["a.jpg", [1, 2]], ["a.jpg", 2]]', "names a.jpg twice, as 1;2 and as 2"),
        ("l.json", '{"a.jpg": "cat", "b.jpg": "dog", "a.jpg": "dog"}', "has two entries called a.jpg"),
    ],
)
def test_an_image_has_its_classes_in_one_entry(root: Path, name: str, content: str, message: str):
    with pytest.raises(DataError, match=message):
        open_list(root / name, content)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.csv", "path,label\na.jpg,cat;dog\nb.jpg,dog\na.jpg,dog;cat\n"),
        ("l.txt", "a.jpg 1\nb.jpg 0\na.jpg 1\n"),
        ("l.json", '["a.jpg", "b.jpg", "a.jpg"]'),
    ],
)
def test_an_image_that_is_named_again_is_told(root: Path, name: str, content: str, capsys: pytest.CaptureFixture[str]):
    assert len(open_list(root / name, content, labels=name != "l.json")) == 3
    assert "names 1 images again, such as a.jpg; each time counts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.jsonl", '{"file_name": "a.jpg", "label": "cat"}\n{"file_name": "b.jpg", "label": "dog"}\n'),
        ("l.json", '{"path": "a.jpg", "label": "cat"}\r\n\r\n{"path": "b.jpg", "label": "dog"}'),
        ("l.jsonl", '["a.jpg", "cat"]\n["b.jpg", "dog"]\n'),
        ("l.csv", "sep=;\r\npath;label\r\na.jpg;cat\r\nb.jpg;dog\r\n"),
    ],
)
def test_an_entry_a_line_and_a_first_line_for_spreadsheets(root: Path, name: str, content: str):
    source = open_list(root / name, content)
    assert source.labels is not None
    assert ([source.name(i) for i in range(2)], source.class_names) == (["a.jpg", "b.jpg"], ("cat", "dog"))
    assert source.labels.tolist() == [0, 1]
    assert open_list(root / "one.jsonl", '{"path": "a.jpg", "label": "cat"}').name(0) == "a.jpg"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.csv", "", "is empty"),
        ("l.csv", "path,label\na.jpg,é\n".encode("utf-16-le"), "name its #encoding=, such as utf-16-le"),
        (
            "l.csv",
            "image,MEL,NV\na.jpg,1.0,0.0\n",
            "or name the column with them, of image, MEL, NV, with #label=COLUMN",
        ),
        ("l.txt", "a.jpg,0\nb.jpg,1\n", "gives no label for a.jpg,0; .*: a path, a blank or tab, and one label a line"),
        ("l.txt", "a.jpg\t0\t7\nb.jpg\t1\t7\n", "line 1 has more than a path and a label; a table is a .tsv"),
    ],
)
def test_a_list_that_gives_no_labels_is_told_how(root: Path, name: str, content: str | bytes, message: str):
    path = root / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        open_source(str(path), key="data.train", labels=True)


@pytest.mark.parametrize("missing", ["nan", "N/A", "None"])
def test_what_may_stand_for_a_missing_label_is_told(root: Path, missing: str, capsys: pytest.CaptureFixture[str]):
    source = open_list(root / "l.csv", f"path,label\na.jpg,cat\nb.jpg,{missing}\n")
    assert missing in (source.class_names or ())
    assert f"of the classes, {missing} may stand for a label that is missing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "classes"),
    [
        ({"path": "a.jpg", "label": "cat"}, [["cat"]]),
        ({"file_name": "a.jpg", "labels": ["cat", "dog"]}, [["cat", "dog"]]),
        ([["a.jpg", [0, 1]], ["b.jpg", [0]], ["c.jpg", []]], [["0", "1"], ["0"], []]),
        ([["a.jpg", [0, 1]], ["b.jpg", [1, 2]]], [["0", "1"], ["1", "2"]]),
        ({"a.jpg": 0, "b.jpg": 1}, [["0"], ["1"]]),
        ({"0001": 0, "0002": 1}, [["0"], ["1"]]),
    ],
)
def test_json_that_could_be_taken_for_something_else(tmp_path: Path, content: Any, classes: list[list[str]]):
    source = open_list(tmp_path / "list.json", json.dumps(content))
    names = source.class_names or ()
    sets = getattr(source, "label_sets")  # noqa: B009
    if sets is None:
        sets = np.eye(len(names), dtype=bool)[source.labels]
    assert [[names[place] for place in np.flatnonzero(row)] for row in sets] == classes


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (
            ["Mass|Nodule", "No Finding", "Mass"],
            "Mass|Nodule may be several classes of an image, which are written cat",
        ),
        (["cat, dog", "dog", "cat", "cat, dog"], "cat, dog may be several classes of an image"),
        (["0.13", "5.27", "7.5", "2.25"], "0.13, 2.25, 5.27, … may be measured, which no class is"),
        (["unlabeled", "cat"], "unlabeled may stand for a label that is missing"),
        (["maillot, tank suit", "crane, bird"], ""),
        (["1.0", "2.0"], ""),
    ],
)
def test_what_may_be_no_class_is_told(tmp_path: Path, labels: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    rows = [f'{n}.jpg,"{label}"\n' for n, label in enumerate(labels)]
    (tmp_path / "l.csv").write_text("path,label\n" + "".join(rows))
    source = open_source(str(tmp_path / "l.csv"), key="data.train", labels=True)
    assert set(source.class_names or ()) == set(labels)
    assert (f"of the classes, {said}" in capsys.readouterr().out) == bool(said)


def test_paths_of_windows_are_told(tmp_path: Path):
    (tmp_path / "l.csv").write_text("path,label\nimg\\0.png,cat\n")
    source = open_list(tmp_path / "l.csv", (tmp_path / "l.csv").read_text())
    with pytest.raises(DataError, match=r"No such file or directory; the list has .* in paths, as on Windows"):
        source.read(0)
