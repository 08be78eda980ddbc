"""Classes of two sets of images are brought together by name, or refused with the difference."""

import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unmask.data.sources import Source, open_source
from unmask.data.sources.same_classes import with_classes_of
from unmask.errors import DataError


def opened(path: Path) -> Source:
    return open_source(str(path), key="data.train", labels=True)


def listed(path: Path, labels: list[str]) -> Source:
    path.write_text("path,label\n" + "".join(f"{n}.jpg,{label}\n" for n, label in enumerate(labels)))
    return opened(path)


def test_numbers_that_do_not_occur_in_val(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train, val = listed(tmp_path / "a.csv", ["3", "1", "12"]), listed(tmp_path / "b.csv", ["12", "3", "12"])
    found = with_classes_of(val, train.class_names or (), "data.val", "data.train")
    assert found.class_names == ("1", "3", "12")
    assert found.labels is not None
    assert found.labels.tolist() == [2, 1, 2]
    assert "data.val has 2 of the 3 classes of data.train" in capsys.readouterr().out
    several = listed(tmp_path / "c.csv", ["12;1", "", "1"])
    sets = getattr(with_classes_of(several, train.class_names or (), "data.val", "data.train"), "label_sets")  # noqa: B009
    assert sets.tolist() == [[True, False, True], [False, False, False], [True, False, False]]


@pytest.mark.parametrize(("train", "val"), [(["1", "2"], ["2", "3"]), (["cat", "dog"], ["cat"]), (["a", "1"], ["2"])])
def test_other_classes_are_refused(tmp_path: Path, train: list[str], val: list[str]):
    names = listed(tmp_path / "a.csv", train).class_names or ()
    with pytest.raises(DataError, match=r"data\.val and data\.train have different classes"):
        with_classes_of(listed(tmp_path / "b.csv", val), names, "data.val", "data.train")


def test_accents_written_in_two_ways_are_one_class(tmp_path: Path):
    for root, form in (("linux", "NFC"), ("mac", "NFD")):
        for name in ("épicéa", "zebra"):
            folder = tmp_path / root / unicodedata.normalize(form, name)
            folder.mkdir(parents=True)
            (folder / "1.jpg").write_bytes(b"")
    linux, mac = opened(tmp_path / "linux"), opened(tmp_path / "mac")
    assert linux.class_names == mac.class_names == ("zebra", "épicéa")
    (tmp_path / "linux" / unicodedata.normalize("NFD", "épicéa")).mkdir()
    (tmp_path / "linux" / unicodedata.normalize("NFD", "épicéa") / "2.jpg").write_bytes(b"")
    both = opened(tmp_path / "linux")
    assert both.class_names == ("zebra", "épicéa")
    assert both.labels is not None
    assert sorted(both.labels.tolist()) == [0, 1, 1]


def test_columns_of_any_type_of_class(tmp_path: Path):
    columns = {
        "category": (pa.array(["dog", "cat", "dog"]).dictionary_encode(), ("cat", "dog"), [1, 0, 1]),
        "bool": (pa.array([True, False, True]), ("false", "true"), [1, 0, 1]),
        "sparse": (pa.array([47219, 126889, 47219]), ("47219", "126889"), [0, 1, 0]),
        "large": (pa.array(["b", "a", "b"], pa.large_string()), ("a", "b"), [1, 0, 1]),
    }
    for name, (values, names, numbers) in columns.items():
        pq.write_table(pa.table({"image": [b"1", b"2", b"3"], "label": values}), tmp_path / f"{name}.parquet")
        source = opened(tmp_path / f"{name}.parquet")
        assert source.class_names == names
        assert source.labels is not None
        assert source.labels.tolist() == numbers
    values = pa.array([["dog", "cat"], [], ["cat"]])
    pq.write_table(pa.table({"image": [b"1", b"2", b"3"], "labels": values}), tmp_path / "several.parquet")
    source = opened(tmp_path / "several.parquet")
    assert (source.class_names, source.labels) == (("cat", "dog"), None)
    assert getattr(source, "label_sets").tolist() == [[True, True], [False, False], [True, False]]  # noqa: B009


def test_arrays_of_other_names_and_several_classes(tmp_path: Path):
    images = np.zeros((4, 8, 8), np.uint8)
    arrays = {"train_images": images, "train_labels": np.array([[3], [1], [3], [1]]), "val_images": images[:2]}
    np.savez(tmp_path / "medical.npz", **arrays)
    with pytest.raises(DataError, match="name one of train_images, train_labels, val_images with #image=NAME"):
        opened(tmp_path / "medical.npz")
    source = opened(Path(f"{tmp_path}/medical.npz#image=train_images&label=train_labels"))
    assert (len(source), source.class_names) == (4, ("1", "3"))
    np.savez(tmp_path / "chest.npz", images=images, labels=np.array([[0, 1], [0, 0], [1, 1], [1, 0]], np.uint8))
    several = opened(tmp_path / "chest.npz")
    assert (several.class_names, several.labels) == (("0", "1"), None)
    assert getattr(several, "label_sets").sum() == 4  # noqa: B009


@pytest.mark.parametrize(
    ("labels", "alike"),
    [
        (["Cat", "dog", "cat"], "'Cat' and 'cat'"),
        (["01", "1", "2"], "'01' and '1'"),
        (["0", "1", "0.0"], "'0' and '0.0'"),
        (["true", "False", "True"], "'True' and 'true'"),
        (["sea_lion", "sea lion", "seal"], "'sea lion' and 'sea_lion'"),
    ],
)
def test_classes_that_may_be_one_are_told(
    labels: list[str], alike: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert listed(tmp_path / "a.csv", labels).class_names == tuple(sorted(labels))
    assert f"the classes {alike} are kept apart" in capsys.readouterr().out


@pytest.mark.parametrize("labels", [["1", "-1", "10"], ["n01440764", "n01443537"], ["1e3", "1000"], ["a", "b", "ab"]])
def test_classes_that_are_others_are_not(labels: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    listed(tmp_path / "a.csv", labels)
    assert "kept apart" not in capsys.readouterr().out
