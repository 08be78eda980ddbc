import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unmask.data.sources import open_source, table
from unmask.data.sources.folder import FolderSource
from unmask.errors import DataError


def touch(root: Path, *names: str | bytes, data: bytes = b"x") -> Path:
    """Files of these names; the indexer looks at names only. Modified long ago, so that the cache is trusted."""
    for name in names:
        path = root / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    settle(root)
    return root


def settle(root: Path) -> None:
    for folder in (root, *(p for p in root.rglob("*") if p.is_dir() and not p.is_symlink())):
        modified = folder.stat().st_mtime - 1000
        os.utime(folder, (modified, modified))


def open_folder(root: Path, *, labels: bool = False) -> FolderSource:
    source = open_source(str(root), key="data.train", labels=labels)
    assert isinstance(source, FolderSource)
    return source


def names(source: FolderSource) -> list[str]:
    return [source.name(i) for i in range(len(source))]


def test_images_are_told_by_extension_in_any_case(tmp_path: Path):
    root = touch(tmp_path / "d", "a.JPG", "b.jpeg", "c.Png", "d.webp", "e.bmp", "f.tif", "g.TIFF", "h.gif")
    touch(root, "notes.txt", "jpg", "i.jpg.part", ".hidden.jpg", "._a.JPG", ".cache/j.jpg")
    assert names(open_folder(root)) == ["a.JPG", "b.jpeg", "c.Png", "d.webp", "e.bmp", "f.tif", "g.TIFF", "h.gif"]


def test_order_is_that_of_the_bytes_of_the_paths(tmp_path: Path):
    paths = [
        b"a/z.jpg",
        b"a-b/a.jpg",
        b"a.jpg",
        b"B/c/d.jpg",
        b"a/b/c.jpg",
        b"\xff.jpg",
        b"n\n.jpg",
        "é.jpg",
        "e\u0301.jpg",
    ]
    root = touch(tmp_path / "d", *paths)
    source = open_folder(root)
    encoded = [os.fsencode(name) for name in names(source)]
    assert encoded == sorted(os.fsencode(path) for path in paths)
    assert all(source.read(i) == b"x" for i in range(len(source)))


def test_classes_are_the_first_folders_in_byte_order(tmp_path: Path):
    root = touch(tmp_path / "d", "a/1.jpg", "a/deep/2.jpg", "a-b/3.jpg", "Z/4.jpg")
    source = open_folder(root, labels=True)
    assert source.class_names == ("Z", "a", "a-b")
    assert source.labels is not None
    labels = dict(zip(names(source), source.labels.tolist(), strict=True))
    assert labels == {"a/1.jpg": 1, "a/deep/2.jpg": 1, "a-b/3.jpg": 2, "Z/4.jpg": 0}
    assert open_folder(root).labels is None


@pytest.mark.parametrize(
    ("files", "labels", "message"),
    [
        (["readme.txt"], False, r"holds no images \(\.jpg .*\)"),
        (["a/1.jpg", "2.jpg"], True, r"1 images are in no class folder, such as 2\.jpg"),
        (["a/1.jpg", "b/readme.txt"], True, r"class folder b holds no images"),
    ],
)
def test_unusable_folder_is_refused(tmp_path: Path, files: list[str], labels: bool, message: str):
    root = touch(tmp_path / "d", *files)
    with pytest.raises(DataError, match=message) as caught:
        open_folder(root, labels=labels)
    assert f"data.train={root}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", ["", "\0", "nul\0byte"])
def test_a_name_that_names_nothing_is_not_the_folder_one_is_in(spec: str):
    with pytest.raises(DataError, match=r"images=.* names nothing; give a folder, a file or a URL"):
        open_source(spec, key="images", labels=False)


def test_missing_folder_and_file_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"data\.train=.*nowhere: no such folder"):
        open_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"data\.train=.*a\.jpg is not a folder of images"):
        open_folder(touch(tmp_path, "a.jpg") / "a.jpg")


def test_fingerprint_follows_names_and_sizes(tmp_path: Path):
    prints = [
        open_folder(touch(tmp_path / "1", "a.jpg", "b.jpg")).fingerprint(),
        open_folder(touch(tmp_path / "2", "a.jpg", "b.jpg")).fingerprint(),
        open_folder(touch(tmp_path / "3", "a.jpg", "c.jpg")).fingerprint(),
        open_folder(touch(tmp_path / "4", "a.jpg", "b.jpg", data=b"longer")).fingerprint(),
        open_folder(touch(tmp_path / "5", "a.jp", "ga.jpg", "b.jpg")).fingerprint(),
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 4


def test_second_open_does_not_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = touch(tmp_path / "d", "a/1.jpg", "b/2.jpg")
    first = open_folder(root, labels=True)
    listed: list[object] = []
    listdir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (listed.append(path), listdir(path))[1])
    second = open_folder(root, labels=True)
    assert not listed
    assert names(second) == names(first) == ["a/1.jpg", "b/2.jpg"]
    assert second.fingerprint() == first.fingerprint()
    touch(root, "b/3.jpg")
    listed.clear()
    assert len(open_folder(root)) == 3
    assert len(listed) == 3


def test_change_deep_in_the_folder_is_noticed(tmp_path: Path):
    root = touch(tmp_path / "d", "a/b/c/1.jpg", "a/2.jpg")
    assert len(open_folder(root)) == 2
    (root / "a/b/c/1.jpg").unlink()
    assert names(open_folder(root)) == ["a/2.jpg"]
    (root / "a/b").rename(root / "a/new")
    (root / "a/new/c/3.jpg").touch()
    assert names(open_folder(root)) == ["a/2.jpg", "a/new/c/3.jpg"]


def test_folder_changed_just_now_is_not_trusted_to_the_cache(tmp_path: Path, cache: Path):
    root = touch(tmp_path / "d", "a.jpg")
    now = time.time()
    os.utime(root, (now, now))
    assert open_folder(root).index.cache is None
    assert not list(cache.glob("*"))


@pytest.mark.parametrize("damage", [b"", b"garbage" * 100, b"[]\nabc", b'{"version": 1}\nabc', "half"])
def test_damaged_cache_is_replaced(tmp_path: Path, cache: Path, damage: bytes | str):
    root = touch(tmp_path / "d", "a.jpg", "b.jpg")
    open_folder(root)
    (file,) = cache.iterdir()
    good = file.read_bytes()
    file.write_bytes(good[: len(good) // 2] if isinstance(damage, str) else damage)
    assert names(open_folder(root)) == ["a.jpg", "b.jpg"]
    assert [path.stat().st_size for path in cache.iterdir()] == [len(good)]


def test_unwritable_cache_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "file" / "cache"))
    assert len(open_folder(touch(tmp_path / "d", "a.jpg"))) == 1


def test_loader_process_maps_the_cache(tmp_path: Path, cache: Path):
    source = open_folder(touch(tmp_path / "d", *(f"{i}/{i:040}.jpg" for i in range(500))))
    sent = pickle.dumps(source)
    assert len(sent) < 1000
    assert names(pickle.loads(sent)) == names(source)
    for file in cache.iterdir():  # a later run has replaced or removed the cache: the arrays themselves are sent
        file.unlink()
    assert names(pickle.loads(pickle.dumps(source))) == names(source)


def test_hundred_thousand_images_stay_in_arrays(tmp_path: Path):
    count = 100_000
    paths = [f"class{i % 100:02}/{i:08}.jpg".encode() for i in range(count)]
    paths.sort()
    blob = np.frombuffer(b"".join(paths), np.uint8)
    ends = np.cumsum([len(path) for path in paths])
    folders = {"": 0} | {f"class{i:02}": 0 for i in range(100)}
    index = table.Table(blob, ends, {"size": np.full(count, 7)}, {"folders": folders})
    assert table.store_table(tmp_path / "index", index)
    loaded = table.load_table(tmp_path / "index")
    assert loaded is not None
    arrays = (loaded.names, loaded.ends, loaded.columns["size"])
    assert all(isinstance(values.base.base, np.memmap) and values.flags.aligned for values in arrays)
    assert (tmp_path / "index").stat().st_size < 45 * count
    assert [loaded.name(i) for i in (0, 54_321, count - 1)] == [paths[0], paths[54_321], paths[-1]]
    assert loaded.fingerprint("size") == index.fingerprint("size")


def test_image_outside_the_index_is_an_error(tmp_path: Path):
    source = open_folder(touch(tmp_path / "d", "a.jpg"))
    for index in (-1, 1):
        with pytest.raises(IndexError):
            source.name(index)


def test_real_image_is_read(tmp_path: Path):
    (tmp_path / "d").mkdir()
    Image.new("RGB", (4, 3), "red").save(tmp_path / "d" / "a.png")
    source = open_folder(tmp_path / "d")
    assert source.read(0) == (tmp_path / "d" / "a.png").read_bytes()
    assert source.name(0) == "a.png"
