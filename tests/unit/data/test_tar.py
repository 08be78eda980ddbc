"""Tars of every format, read in place; damaged and hostile ones."""

import io
import multiprocessing
import os
import pickle
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unmask.data.sources import Source, open_source
from unmask.data.sources.tar_headers import members
from unmask.errors import DataError

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
PHOTOS = Path(__file__).parents[4] / "shared/data/photos-1k"


def open_images(path: Path | str, *, labels: bool = False) -> Source:
    return open_source(str(path), key="data.train", labels=labels)


def contents(source: Source) -> list[tuple[str, object, int]]:
    """Name, file and class of each image; -1 without classes."""
    labels = [-1] * len(source) if source.labels is None else source.labels.tolist()
    return [(source.name(i), source.read(i), labels[i]) for i in range(len(source))]


def make_tar(path: Path, files: dict[str, bytes], format: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format, encoding="utf-8", errors="surrogateescape") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def make_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


FILES = {
    "cat/1.jpg": b"one",
    "cat/deep/folder/2.JPEG": b"x" * 513,
    "Zoo/größe é e\u0301.png": b"",
    "dog-b/line\nbreak.jpg": b"y" * 512,
    "dog/\udcff\udcfe.jpg": b"bytes",
    "dog/" + "n" * 95 + ".jpg": b"longer than a header's 100 bytes",
    "dog/" + "/".join(["d" * 50] * 2) + "/3.webp": b"fits into ustar's prefix",
}
LONG = {"dog/" + "/".join(["d" * 60] * 5) + "/3.webp": b"fits into no header", "cat/" + "é" * 100 + ".gif": b"."}


@pytest.mark.parametrize("format", FORMATS)
def test_tar_is_as_the_folder_it_was_made_of(tmp_path: Path, format: int):
    files = FILES if format == tarfile.USTAR_FORMAT else FILES | LONG
    folder = open_images(make_folder(tmp_path / "d", files), labels=True)
    tar = open_images(make_tar(tmp_path / "d.tar", files, format), labels=True)
    assert contents(tar) == contents(folder)
    assert len(tar) == len(files)
    assert tar.class_names == folder.class_names == ("Zoo", "cat", "dog", "dog-b")
    assert tar.labels is not None
    assert folder.labels is not None
    assert tar.labels.tolist() == folder.labels.tolist()
    assert tar.fingerprint() == folder.fingerprint()
    assert open_images(tmp_path / "d.tar").labels is None


@pytest.mark.parametrize("format", ["ustar", "gnu", "posix", "v7"])
def test_tar_of_the_tar_command(tmp_path: Path, format: str):
    if shutil.which("tar") is None:
        pytest.skip("no tar command")
    short = {name: data for name, data in FILES.items() if len(name) < 90}
    root = make_folder(
        tmp_path / "data", (short if format == "v7" else FILES) | {"._cat.jpg": b"", "cat/notes.txt": b""}
    )
    subprocess.run(["tar", f"--format={format}", "-cf", tmp_path / "d.tar", "-C", tmp_path, "./data"], check=True)
    assert contents(open_images(tmp_path / "d.tar", labels=True)) == contents(open_images(root, labels=True))


def test_photographs_from_a_tar(tmp_path: Path):
    if not PHOTOS.is_dir():
        pytest.skip("the 1,000 photographs are not here")
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        for path in sorted(PHOTOS.iterdir(), reverse=True)[:200]:
            tar.add(path, path.name)
    source = open_images(tmp_path / "photos.tar")
    assert len(source) == 200
    for i in range(0, 200, 10):
        assert source.read(i) == (PHOTOS / source.name(i)).read_bytes()


def jpeg(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8), value).save(file, "jpeg")
    return file.getvalue()


def test_imagenet_as_shipped(tmp_path: Path):
    """A tar of class tars, and a flat one with labels in the development kit's own order."""
    savemat = pytest.importorskip("scipy.io", reason="scipy writes the kit's meta.mat").savemat
    wnids = ["n02119789", "n01440764", "n02100735"]  # as in the kit: not in byte order
    inner = {
        f"{wnid}.tar": make_tar(
            tmp_path / "i.tar", {f"{wnid}_{i}.JPEG": jpeg(80 * c + i) for i in range(3)}
        ).read_bytes()
        for c, wnid in enumerate(wnids)
    }
    make_tar(tmp_path / "ILSVRC2012_img_train.tar", inner)
    train = open_images(tmp_path / "ILSVRC2012_img_train.tar", labels=True)
    assert train.class_names == tuple(sorted(wnids))
    assert train.name(0) == "n01440764/n01440764_0.JPEG"
    assert contents(train)[3] == ("n02100735/n02100735_0.JPEG", jpeg(160), 1)

    ids = [2, 1, 3, 2]
    val = {f"ILSVRC2012_val_{i:08}.JPEG": jpeg(80 * (number - 1)) for i, number in enumerate(ids, 1)}
    make_tar(tmp_path / "ILSVRC2012_img_val.tar", dict(reversed(val.items())))
    assert len(open_images(tmp_path / "ILSVRC2012_img_val.tar")) == 4
    with pytest.raises(DataError, match="in no class folder"):
        open_images(tmp_path / "ILSVRC2012_img_val.tar", labels=True)
    truth = tmp_path / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("".join(f"{number}\n" for number in ids))
    with pytest.raises(DataError, match=r"meta\.mat"):
        open_images(tmp_path / "ILSVRC2012_img_val.tar", labels=True)
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")]
    rows = [(i, wnid, "words") for i, wnid in enumerate([*wnids, "n00001740"], 1)]
    savemat(tmp_path / "meta.mat", {"synsets": np.array(rows, kind)[:, None]})
    source = open_images(tmp_path / "ILSVRC2012_img_val.tar", labels=True)
    assert source.class_names == train.class_names
    assert [item[2] for item in contents(source)] == [0, 2, 1, 0]
    assert contents(source)[1][1] == jpeg(0)

    (tmp_path / "names.txt").write_text("".join(f"{wnids[number - 1]}\n" for number in ids))
    named = open_images(f"{tmp_path}/ILSVRC2012_img_val.tar#labels={tmp_path}/names.txt", labels=True)
    assert contents(named) == contents(source)
    (tmp_path / "names.txt").write_text("n02119789\n")
    with pytest.raises(DataError, match=r"holds 4 images and .* 1 labels"):
        open_images(f"{tmp_path}/ILSVRC2012_img_val.tar#labels={tmp_path}/names.txt", labels=True)


def test_of_two_members_of_one_name_the_last_counts(tmp_path: Path):
    with tarfile.open(tmp_path / "d.tar", "w") as tar:
        for data in (b"old", b"newer"):
            info = tarfile.TarInfo("a/1.jpg")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert contents(open_images(f"{tmp_path}/d.tar#left_out=1")) == [("a/1.jpg", b"newer", -1)]
    with pytest.raises(DataError, match=r"1 that may be some are not: 1 replaced by later ones .*\(a/1\.jpg\)"):
        open_images(tmp_path / "d.tar")


def test_index_is_kept_until_the_tar_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = make_tar(tmp_path / "d.tar", {"1.jpg": b"1"})
    first = open_images(path)
    walked: list[object] = []
    monkeypatch.setattr("unmask.data.sources.tar.members", lambda *a: (walked.append(a), members(*a))[1])
    assert contents(open_images(path)) == contents(first)
    assert not walked
    make_tar(path, {"2.jpg": b"22"})
    assert contents(open_images(path)) == [("2.jpg", b"22", -1)]
    assert walked


def test_fingerprint_follows_names_and_sizes(tmp_path: Path):
    sets = [{"a.jpg": b"1"}, {"b.jpg": b"1"}, {"a.jpg": b"12"}, {"a.jpg": b"1", "b.jpg": b"1"}]
    prints = [open_images(make_tar(tmp_path / f"{i}.tar", files)).fingerprint() for i, files in enumerate(sets)]
    assert len(set(prints)) == 4
    assert open_images(make_tar(tmp_path / "again.tar", sets[0], tarfile.PAX_FORMAT)).fingerprint() == prints[0]


def test_loader_process_reads_the_same(tmp_path: Path):
    many = {f"class{i % 7}/{i:040}.jpg": b"%d" % i for i in range(700)}
    source = open_images(make_tar(tmp_path / "d.tar", many), labels=True)
    assert len(pickle.dumps(source)) < 1000
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        data = pool.map(source.read, range(len(source)), chunksize=350)
    assert data == [file for _, file, _ in contents(source)]


def damaged(tmp_path: Path, data: bytes) -> str:
    (tmp_path / "bad.tar").write_bytes(data)
    with pytest.raises(DataError) as caught:
        open_images(tmp_path / "bad.tar")
    assert "\n" not in str(caught.value)
    assert "bad.tar" in str(caught.value)
    return str(caught.value)


def test_truncated_tar_is_refused(tmp_path: Path):
    data = make_tar(tmp_path / "d.tar", {f"{i}.jpg": b"x" * 700 for i in range(3)}).read_bytes()
    end = 3 * (512 + 1024)
    for length in (0, 100, 511, 512, 600, 1535, 1536, 2000, end - 1, end):
        assert "truncated" in damaged(tmp_path, data[:length])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x1f\x8b\x08" + bytes(2000), r"compressed \(gzip\)"),
        (b"hello" * 500, "not a tar"),
        (b"\xff" * 2000, "not a tar"),
    ],
)
def test_what_is_no_tar_is_refused(tmp_path: Path, data: bytes, message: str):
    (tmp_path / "bad.tar").write_bytes(data)
    with pytest.raises(DataError, match=message):
        open_images(tmp_path / "bad.tar")


@pytest.mark.parametrize("name", ["d.tar.gz", "d.tgz", "d.tar.zst", "d.zip"])
def test_compressed_archive_is_refused_with_advice(tmp_path: Path, name: str):
    with pytest.raises(DataError, match=r"compressed .* plain \.tar"):
        open_images(tmp_path / name)


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_image_that_is_a_link_is_refused(tmp_path: Path, kind: bytes):
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        info = tarfile.TarInfo("a/2.jpg")
        info.type, info.linkname = kind, "a/1.jpg"
        tar.addfile(info)
        info = tarfile.TarInfo("a/latest")  # no image: of no interest
        info.type, info.linkname = kind, "a/1.jpg"
        tar.addfile(info)
    message = damaged(tmp_path, (tmp_path / "bad.tar").read_bytes())
    assert "a/2.jpg is a" in message
    assert "--hard-dereference" in message


@pytest.mark.parametrize("format", ["gnu", "posix"])
def test_sparse_image_is_refused(tmp_path: Path, format: str):
    if shutil.which("tar") is None:
        pytest.skip("no tar command")
    with (tmp_path / "a.jpg").open("wb") as file:
        for i in range(30):  # more pieces than one header names
            file.seek(i * 100_000)
            file.write(b"x")
    (tmp_path / "z.jpg").write_bytes(b"whole")
    command = ["tar", f"--format={format}", "--sparse", "-cf", tmp_path / "bad.tar", "-C", tmp_path]
    subprocess.run([*command, "a.jpg", "z.jpg"], check=True)
    assert "a.jpg is a sparse file" in damaged(tmp_path, (tmp_path / "bad.tar").read_bytes())
    (tmp_path / "a.jpg").rename(tmp_path / "a.bin")  # what is no image is passed over, map and all
    subprocess.run([*command, "a.bin", "z.jpg"], check=True)
    assert contents(open_images(tmp_path / "bad.tar")) == [("z.jpg", b"whole", -1)]


@pytest.mark.parametrize("name", ["../1.jpg", "a/../../1.jpg", "/etc/1.jpg"])
def test_name_outside_the_tar_is_refused(tmp_path: Path, name: str):
    assert "lies outside" in damaged(tmp_path, make_tar(tmp_path / "bad.tar", {name: b"x"}).read_bytes())


def test_damage_in_an_inner_tar_is_named(tmp_path: Path):
    inner = make_tar(tmp_path / "i.tar", {"1.jpg": b"x" * 600}).read_bytes()
    bad = make_tar(tmp_path / "bad.tar", {"n01.tar": inner, "n02.tar": inner[:1100]})
    assert "n02.tar in it" in damaged(tmp_path, bad.read_bytes())


def test_empty_and_missing_tars_are_refused(tmp_path: Path):
    assert "holds no images" in damaged(tmp_path, make_tar(tmp_path / "bad.tar", {"a.txt": b""}).read_bytes())
    with pytest.raises(DataError, match=r"none\.tar cannot be read: No such file"):
        open_images(tmp_path / "none.tar")


def test_big_sizes_in_binary_and_in_pax_records(tmp_path: Path):
    """Sparse on disk: 9 GiB, more than eleven octal digits can say, between two images."""
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / f"{format}.tar"
        big = tarfile.TarInfo("big.bin")
        big.size = 9 << 30
        with path.open("wb") as file:
            file.write(big.tobuf(format))
            file.seek(9 << 30, os.SEEK_CUR)
            after = tarfile.TarInfo("z.jpg")
            after.size = 5
            file.write(after.tobuf(format) + b"after".ljust(512, b"\0") + bytes(1024))
        assert contents(open_images(path)) == [("z.jpg", b"after", -1)]


# Fuzz: whatever bytes stand in the headers, there is an index or a DataError; and what is indexed lies in the file.

SEEDS: list[bytes] = []
for _format in FORMATS:
    _file = io.BytesIO()
    with tarfile.open(fileobj=_file, mode="w", format=_format) as _tar:
        for _name, _data in {
            "a/1.jpg": b"1",
            "b/" + "n" * 98 + "/2.jpg": b"2" * 600,
            "b/" + "é" * 40 + ".png": b"3",
        }.items():
            _info = tarfile.TarInfo(_name)
            _info.size = len(_data)
            _tar.addfile(_info, io.BytesIO(_data))
    SEEDS.append(_file.getvalue()[: 16 * 512] + bytes(1024))

OFFSETS = st.one_of(
    st.integers(0, 17 * 512), st.builds(lambda b, o: b * 512 + o, st.integers(0, 16), st.integers(100, 160))
)
EDITS = st.lists(st.tuples(OFFSETS, st.binary(min_size=1, max_size=24)), max_size=4)


def repaired(data: bytearray) -> bytes:
    """With right checksums, so that what was changed is believed."""
    for start in range(0, len(data) - 511, 512):
        block = data[start : start + 512]
        if block[257:262] == b"ustar":
            total = sum(block[:148]) + 8 * 32 + sum(block[156:])
            data[start + 148 : start + 156] = b"%06o\0 " % total
    return bytes(data)


def check_mutated(seed: bytes, edits: list[tuple[int, bytes]], length: int, repair: bool) -> int:
    data = bytearray(seed)
    for offset, values in edits:
        data[offset : offset + len(values)] = values[: max(0, len(data) - offset)]
    whole = (repaired(data) if repair else bytes(data))[:length]
    asked = 0

    def read(start: int, count: int) -> bytes:
        nonlocal asked
        assert 0 <= start <= start + count <= len(whole)
        asked += count
        return whole[start : start + count]

    count = 0
    try:
        for member in members(read, 0, len(whole), "t"):
            count += 1
            if member.kind is None:
                assert 512 <= member.start <= member.start + member.size <= len(whole)
    except DataError:
        pass
    assert asked <= 4 * len(whole) + 1024  # behind an end mark, blocks are read twice
    return count


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SEEDS), EDITS, st.integers(0, 20 * 512), st.booleans())
def test_mutated_headers(seed: bytes, edits: list[tuple[int, bytes]], length: int, repair: bool):
    check_mutated(seed, edits, length, repair)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=4096))
def test_arbitrary_bytes(data: bytes):
    check_mutated(data, [], len(data), repair=False)
