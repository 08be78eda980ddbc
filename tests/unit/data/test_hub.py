"""Data sets of the Hugging Face hub: from a server on loopback that speaks its protocol."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hub_server import Hub, serving
from unmask.data.sources import open_source
from unmask.errors import DataError

pytest.importorskip("huggingface_hub", reason="hf:// needs huggingface_hub")
from fsspec.config import conf

REPO = "datasets/someone/photos"
IMAGES = [b"%d" % i * (100_000 + i) for i in range(12)]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(tmp_path / "hub") as hub:
        monkeypatch.setitem(conf, "hf", {"endpoint": hub.url})
        yield hub


@pytest.fixture
def root(hub: Hub) -> Path:
    """The files of the data set."""
    return hub.create(REPO).folder


def write(path: Path, images: list[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"image": {"bytes": image, "path": None}, "label": index % 3} for index, image in enumerate(images)]
    features = {"label": {"_type": "ClassLabel", "names": ["a", "b", "c"]}, "image": {"_type": "Image"}}
    table = pa.Table.from_pylist(rows)
    info = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(info), path, row_group_size=2, compression="none")


def open_hub(path: str) -> Any:
    return open_source(f"hf://{REPO}{path}", key="data.train", labels=True)


def test_only_split_of_a_data_set_is_found_by_its_name(root: Path):
    (root / "README.md").write_text("---\n---\n")
    for part, images in enumerate((IMAGES[:5], IMAGES[5:])):
        write(root / "data" / f"train-0000{part}-of-00002.parquet", images)
    source = open_hub("")
    assert [source.read(index) for index in range(12)] == IMAGES
    assert source.class_names == ("a", "b", "c")
    assert source.labels.tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 0, 1, 2, 0]


def test_several_splits_are_asked_for(root: Path):
    for split in ("train", "test"):
        write(root / "mnist" / f"{split}-00000-of-00001.parquet", IMAGES)
    with pytest.raises(DataError, match=rf"hf://{REPO}/mnist holds test, train; name one of them, such as hf://"):
        open_hub("")
    assert len(open_hub("/mnist/train-*.parquet")) == 12


def test_several_configurations_are_asked_for(root: Path):
    for name in ("large", "small"):
        write(root / name / "train-00000-of-00001.parquet", IMAGES)
    with pytest.raises(DataError, match=rf"photos has Parquet or Arrow files in large, small; name one .*{REPO}/large"):
        open_hub("")
    assert len(open_hub("/small")) == 12


def test_image_files_are_read_one_by_one(hub: Hub, root: Path):
    for index, image in enumerate(IMAGES):
        (root / "abc"[index % 3]).mkdir(exist_ok=True)
        (root / "abc"[index % 3] / f"{index}.jpg").write_bytes(image)
    source = open_hub("")
    assert source.class_names == ("a", "b", "c")
    assert source.read(2) == IMAGES[6]
    assert hub.sent == len(IMAGES[6])


def test_reading_brings_no_more_than_what_is_asked_for(hub: Hub, root: Path):
    write(root / "train.parquet", IMAGES)
    source = open_hub("/train.parquet")
    hub.sent = 0
    source.read(5)
    assert hub.sent < 3 * len(IMAGES[5]), "one group of two images, of a file of twelve"


def test_data_set_that_is_not_there(hub: Hub):
    with pytest.raises(DataError, match=r"hf://datasets/someone/else/? cannot be read: no such file or folder"):
        open_source("hf://datasets/someone/else", key="data.train", labels=False)
