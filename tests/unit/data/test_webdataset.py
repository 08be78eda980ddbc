"""WebDataset shards: samples are members of one key, labels lie beside the images."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from unmask.data.sources import Source, open_source
from unmask.errors import DataError


def open_shards(spec: Path | str, *, labels: bool = True) -> Source:
    return open_source(str(spec), key="data.train", labels=labels)


def make_shard(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def rows(source: Source) -> list[tuple[str, object, int]]:
    labels = [-1] * len(source) if source.labels is None else source.labels.tolist()
    return [(source.name(i), source.read(i), labels[i]) for i in range(len(source))]


def make_shards(root: Path, label: str = "cls") -> None:
    """Twelve samples in three shards; the label stands before its image or behind it."""
    for shard in range(3):
        members: dict[str, bytes] = {}
        for i in range(4 * shard, 4 * shard + 4):
            told = str(i % 3) if label == "cls" else json.dumps({"label": i % 3, "caption": "a photo"})
            pairs = [(f"{i:04}.jpg", b"%d" % i), (f"{i:04}.{label}", told.encode()), (f"{i:04}.txt", b"text")]
            members |= dict(pairs if i % 2 else reversed(pairs))
        make_shard(root / f"{shard:06}.tar", members)


@pytest.mark.parametrize("label", ["cls", "json"])
def test_labels_lie_beside_the_images(tmp_path: Path, label: str):
    make_shards(tmp_path, label)
    source = open_shards(tmp_path / "{000000..000002}.tar")
    assert rows(source) == [(f"{i:04}.jpg", b"%d" % i, i % 3) for i in range(12)]
    assert source.class_names == ("0", "1", "2")
    assert source.labels is not None
    assert source.labels.tolist() == [i % 3 for i in range(12)]
    assert open_shards(tmp_path / "{000000..000002}.tar", labels=False).labels is None
    assert len(open_shards(tmp_path / "00000{0,2}.tar")) == 8
    assert rows(open_shards(tmp_path / "*.tar")) == rows(source)


def test_how_images_are_spread_over_shards_does_not_matter(tmp_path: Path):
    make_shards(tmp_path)
    together: dict[str, bytes] = {}
    for shard in sorted(tmp_path.glob("*.tar"), reverse=True):
        with tarfile.open(shard) as tar:
            together |= {member.name: file.read() for member in tar if (file := tar.extractfile(member)) is not None}
    make_shard(tmp_path / "all.tar", together)
    one, three = open_shards(tmp_path / "all.tar"), open_shards(tmp_path / "{000000..000002}.tar")
    assert rows(one) == rows(three)
    assert one.fingerprint() == three.fingerprint()


def test_names_as_labels_and_cls_before_json(tmp_path: Path):
    members = {
        "a.jpg": b"1",
        "a.json": b'{"cls": "no"}',
        "a.cls": b"zebra\n",
        "b.cls": b"ant",
        "b.json": b"[",
        "b.png": b"",
    }
    make_shard(tmp_path / "s.tar", members)
    source = open_shards(tmp_path / "s.tar")
    assert source.class_names == ("ant", "zebra")
    assert [label for _, _, label in rows(source)] == [1, 0]


def test_labels_are_part_of_the_fingerprint(tmp_path: Path):
    prints: set[str] = set()
    for label in (b"0", b"1"):
        make_shard(tmp_path / "s.tar", {"a.jpg": b"1", "a.cls": label, "b.jpg": b"1", "b.cls": b"1"})
        prints.add(open_shards(tmp_path / "s.tar").fingerprint())
    assert len(prints) == 2


def test_shards_that_count_from_zero_are_told_apart(tmp_path: Path):
    for shard in range(2):
        members = {f"dog/{i}.jpg": b"%d" % i * (shard + 1) for i in range(3)} | {"cat/9.jpg": b"9" * (shard + 1)}
        make_shard(tmp_path / f"s{shard}.tar", members)
    source = open_shards(tmp_path / "s{0..1}.tar")
    assert [source.name(i) for i in (0, 1, 7)] == ["s0/cat/9.jpg", "s0/dog/0.jpg", "s1/dog/2.jpg"]
    assert source.class_names == ("cat", "dog")
    assert [item[2] for item in rows(source)] == [0, 1, 1, 1] * 2
    assert source.read(7) == b"22"


def test_shards_of_like_images_are_no_copies(tmp_path: Path):
    for shard in range(2):
        make_shard(tmp_path / f"s{shard}.tar", {f"{i}.bmp": b"%d%d" % (shard, i) for i in range(3)})
    source = open_shards(tmp_path / "s{0..1}.tar", labels=False)
    assert [item[:2] for item in rows(source)] == [
        (f"s{s}/{i}.bmp", b"%d%d" % (s, i)) for s in range(2) for i in range(3)
    ]


def test_duplicate_missing_and_unlabelled_are_refused(tmp_path: Path):
    make_shards(tmp_path)
    (tmp_path / "copy.tar").write_bytes((tmp_path / "000001.tar").read_bytes())
    with pytest.raises(DataError, match=r"copy\.tar holds the same images as .*000001\.tar"):
        open_shards(tmp_path / "{000000,000001,copy}.tar")
    with pytest.raises(DataError, match="names the same tar twice"):
        open_shards(tmp_path / "{000000,000000}.tar")
    with pytest.raises(DataError, match=r"000003\.tar cannot be read: No such file"):
        open_shards(tmp_path / "{000000..000003}.tar")
    with pytest.raises(DataError, match="no file has such a name"):
        open_shards(tmp_path / "x*.tar")
    make_shard(tmp_path / "half.tar", {"a.jpg": b"1", "a.cls": b"0", "b.jpg": b"2"})
    with pytest.raises(DataError, match=r"1 images have no label .* such as b\.jpg"):
        open_shards(tmp_path / "half.tar")
    assert len(open_shards(tmp_path / "half.tar", labels=False)) == 2


def test_absurd_patterns_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match="more than 100,000 files"):
        open_shards(tmp_path / "{0..999999999999}.tar")


@pytest.mark.parametrize(
    "names",
    [
        [f"frame.{n:04}" for n in range(7)],
        [f"photo.of.{n}.and.more" for n in range(7)],
        [f"v1.2/{n}.0" for n in range(7)],
    ],
)
@pytest.mark.parametrize("kind", ["cls", "json"])
@pytest.mark.parametrize("order", [1, -1])
def test_keys_with_several_dots_have_their_own_labels(tmp_path: Path, names: list[str], kind: str, order: int):
    members: dict[str, bytes] = {}
    for n, name in enumerate(names):
        told = str(n % 3) if kind == "cls" else json.dumps({"label": n % 3})
        members |= dict([(f"{name}.jpg", b"%d" % n), (f"{name}.{kind}", told.encode())][::order])
    make_shard(tmp_path / "s.tar", members)
    assert [label for _, _, label in rows(open_shards(f"{tmp_path}/s.tar#image=*"))] == [n % 3 for n in range(7)]


@pytest.mark.parametrize("order", [1, -1])
def test_the_nearest_label_counts(tmp_path: Path, order: int):
    members = {
        "a.cls": b"0",
        "a.0.jpg": b"x",
        "a.1.cls": b"1",
        "a.1.jpg": b"y",
        "a.json": b'{"label": 2}',
        "a.2.jpg": b"z",
    }
    make_shard(tmp_path / "s.tar", dict(list(members.items())[::order]))
    source = open_shards(tmp_path / "s.tar")
    assert [(name, label) for name, _, label in rows(source)] == [("a.0.jpg", 0), ("a.1.jpg", 1), ("a.2.jpg", 0)]
    make_shard(tmp_path / "s.tar", {"a.0.jpg": b"x", "a.1.jpg": b"y", "a.1.cls": b"1"})
    with pytest.raises(DataError, match=r"1 images have no label .* such as a\.0\.jpg"):
        open_shards(tmp_path / "s.tar")
