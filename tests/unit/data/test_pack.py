"""Packs hold what their source holds: the same images under the same names, classes and order."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unmask.data.decode.picture import Picture
from unmask.data.packs.verify import verify_pack
from unmask.data.packs.write import pack as write_pack
from unmask.data.sources import Source, open_source
from unmask.errors import ConfigError, DataError

PHOTOS = Path(__file__).parents[4] / "shared" / "data" / "photos-1k"
SMALL = 15_000
"""Bytes of a shard, so that there are several."""


def opened(spec: Path | str, *, labels: bool = True) -> Source:
    return open_source(str(spec), key="data.train", labels=labels)


def pack(source: Path, out: Path, **options: Any) -> Path:
    write_pack(source, out, **options)
    return out


def rows(source: Source) -> list[tuple[str, Any, int]]:
    """Name, what is stored, and class of each image; -1 without classes."""
    labels = [-1] * len(source) if source.labels is None else source.labels.tolist()
    return [(source.name(index), source.read(index), labels[index]) for index in range(len(source))]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def pixels(data: Any) -> np.ndarray[Any, Any]:
    return Picture(data, 3, 10**7).pixels()


def only_member(folder: Path) -> tuple[str, Image.Image]:
    """The one image of a pack: its name in the tar, and it."""
    with tarfile.open(folder / "000000.tar") as tar:
        (name,) = tar.getnames()
        file = tar.extractfile(name)
        assert file is not None
        return name, Image.open(io.BytesIO(file.read()))


def test_class_folders_keep_all_and_may_be_read_as_plain_tars(colours: Path, tmp_path: Path) -> None:
    out = pack(colours, tmp_path / "pack", shard_size=SMALL)
    shards = sorted(out.glob("*.tar"))
    assert len(shards) > 2
    assert max(shard.stat().st_size for shard in shards) <= SMALL
    before = opened(colours)
    for after in opened(out), opened(out / "*.tar"), opened(f"file://{out}"):
        assert rows(after) == rows(before)
        assert after.class_names == before.class_names == ("even", "odd")
        assert after.fingerprint() == before.fingerprint()
    assert opened(out, labels=False).labels is None
    with tarfile.open(shards[0]) as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in tar} == {(0, 0, 0, "", 0o644)}


def test_threads_do_not_change_a_byte(colours: Path, tmp_path: Path) -> None:
    packs = [
        pack(colours, tmp_path / f"{n}", short_side=20, shard_size=SMALL, workers=n, max_bad_share=0) for n in (1, 3)
    ]
    assert contents(packs[0]) == contents(packs[1])


def test_lists_keep_their_order_and_classes(colours: Path, tmp_path: Path) -> None:
    paths = sorted(colours.rglob("*.jpg"), key=lambda path: path.name, reverse=True)
    lines = [f"{path},{('dog', 'cat', 'ant')[i % 3]}" for i, path in enumerate(paths)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *lines]))
    out = pack(tmp_path / "list.csv", tmp_path / "pack", shard_size=SMALL)
    before, after, tars = opened(tmp_path / "list.csv"), opened(out), opened(out / "*.tar")
    assert rows(after) == rows(before)
    assert after.class_names == before.class_names == ("ant", "cat", "dog")
    assert [row[1:] for row in rows(tars)] == [row[1:] for row in rows(before)]


def test_several_classes_an_image(colours: Path, tmp_path: Path) -> None:
    names = [f"colours/even/{number:02}.jpg" for number in (4, 2, 0)]
    (tmp_path / "list.json").write_text(json.dumps(dict(zip(names, [["a"], [], ["c"]], strict=True))))
    with pytest.raises(DataError, match="no label"):
        opened(tmp_path / "list.json")
    (tmp_path / "list.json").write_text(json.dumps(dict(zip(names, [["a", "b"], [], ["c"]], strict=True))))
    before, after = opened(tmp_path / "list.json"), opened(pack(tmp_path / "list.json", tmp_path / "pack"))
    assert after.labels is None
    sets: Any = [getattr(source, "label_sets", None) for source in (before, after)]
    assert sets[0].tolist() == sets[1].tolist() == [[True, True, False], [False, False, False], [False, False, True]]
    assert [name for name, _, _ in rows(after)] == names


def test_arrays_become_lossless_files(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 9, 7, 3), np.uint8)
    np.savez(tmp_path / "all.npz", images=images, labels=np.arange(12)[::-1] // 5)
    before = opened(tmp_path / "all.npz")
    after = opened(pack(tmp_path / "all.npz", tmp_path / "pack"))
    found = rows(after)
    assert [name for name, _, _ in found] == [f"all.npz/{index}" for index in range(12)]
    assert [label for _, _, label in found] == [label for _, _, label in rows(before)]
    assert after.class_names == before.class_names
    assert np.array_equal(np.stack([pixels(data) for _, data, _ in found]), images)


def test_images_without_labels_say_so_when_they_are_asked_for(
    colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = pack(colours / "even", tmp_path / "pack")
    assert "no labels are packed. A classifier would need them: SOURCE=" in capsys.readouterr().out
    assert rows(opened(out, labels=False)) == rows(opened(colours / "even", labels=False))
    with pytest.raises(DataError, match="packed from images without labels"):
        opened(out)


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the photographs of ../shared/data are not here")
def test_photographs_round_trip(tmp_path: Path) -> None:
    out = pack(PHOTOS, tmp_path / "pack", shard_size=32 << 20)
    before, after = opened(PHOTOS, labels=False), opened(out, labels=False)
    assert len(after) == 1000
    assert len(list(out.glob("*.tar"))) == 4
    assert after.fingerprint() == before.fingerprint()
    assert all(after.read(index) == before.read(index) for index in range(1000))


def one_image(root: Path, name: str, image: Image.Image, **options: Any) -> Path:
    root.mkdir()
    image.save(root / name, **options)
    return root


def test_resized_images_are_upright(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 255, 120, dtype=np.uint8), (80, 1))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    root = one_image(tmp_path / "in", "a.jpg", Image.fromarray(np.stack([ramp] * 3, 2)), exif=exif, quality=95)
    name, image = only_member(pack(root, tmp_path / "pack", short_side=40))
    assert (name, image.format, image.mode, image.size) == ("a.jpg", "JPEG", "RGB", (40, 60))
    upright = Image.fromarray(pixels(opened(root, labels=False).read(0))).resize((40, 60), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(image, int) - np.asarray(upright, int)).mean() < 1
    assert not image.getexif()


def test_small_images_stay_as_they_are(tmp_path: Path) -> None:
    root = one_image(tmp_path / "in", "a.jpg", Image.new("RGB", (90, 40)))
    out = pack(root, tmp_path / "pack", short_side=40)
    assert rows(opened(out, labels=False)) == rows(opened(root, labels=False))


@pytest.mark.parametrize(
    ("name", "mode", "member"), [("a.png", "L", "a.png"), ("a.gif", "RGB", "a.gif.png"), ("a.bmp", "L", "a.bmp.png")]
)
def test_what_has_no_loss_gets_none_and_the_name_tells_the_format(
    tmp_path: Path, name: str, mode: str, member: str
) -> None:
    root = one_image(tmp_path / "in", name, Image.new(mode, (90, 60), "#4d4d4d"))
    out = pack(root, tmp_path / "pack", short_side=30)
    found, image = only_member(out)
    assert (found, image.format, image.mode, image.size) == (member, "PNG", mode, (45, 30))
    assert np.unique(np.asarray(image)).tolist() == [77]
    assert opened(out, labels=False).name(0) == name


def test_transparency_is_laid_over_white_and_16_bits_stay(tmp_path: Path) -> None:
    clear = one_image(tmp_path / "clear", "a.png", Image.new("RGBA", (60, 60), (0, 0, 0, 0)))
    _, image = only_member(pack(clear, tmp_path / "pack", short_side=30))
    assert (image.mode, image.getextrema()) == ("RGB", ((255, 255),) * 3)
    deep = one_image(tmp_path / "deep", "a.png", Image.fromarray(np.full((60, 60), 12345, np.uint16)))
    _, image = only_member(pack(deep, tmp_path / "deep-pack", short_side=30))
    assert np.unique(np.asarray(image)).tolist() == [12345]


def test_bad_images_are_left_out_and_listed(colours: Path, tmp_path: Path) -> None:
    whole = (colours / "odd" / "07.jpg").read_bytes()
    (colours / "odd" / "07.jpg").write_bytes(whole[: len(whole) // 2])
    (colours / "even" / "00.jpg").write_bytes(b"")
    out = pack(colours, tmp_path / "pack", shard_size=SMALL, max_bad_share=0.05)
    before = [row for row in rows(opened(colours)) if row[0] not in ("odd/07.jpg", "even/00.jpg")]
    assert rows(opened(out)) == before
    listed = (out / "bad_images.txt").read_text().splitlines()
    assert [line.partition(":")[0] for line in listed] == ["even/00.jpg", "odd/07.jpg"]
    assert "truncated" in listed[1].lower()
    verify_pack(out)


def test_too_many_bad_images_stop(colours: Path, tmp_path: Path) -> None:
    (colours / "odd" / "07.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 of 40 images cannot be decoded.*odd/07\.jpg.*not a JPEG"):
        pack(colours, tmp_path / "pack", shard_size=SMALL)
    assert (tmp_path / "pack" / "bad_images.txt").read_text().startswith("odd/07.jpg: ")
    with pytest.raises(DataError, match="a pack that was not finished"):
        opened(tmp_path / "pack")
    pack(colours, tmp_path / "pack", shard_size=SMALL, max_bad_share=0.03)  # goes on with the shards there are
    assert len(opened(tmp_path / "pack")) == 39


def test_another_pack_is_refused_with_the_difference(colours: Path, tmp_path: Path) -> None:
    out = pack(colours, tmp_path / "pack", short_side=20)
    before = contents(out)
    with pytest.raises(ConfigError, match=r"\(short-side 20, not 24\)"):
        pack(colours, out, short_side=24)
    (colours / "odd" / "07.jpg").unlink()
    with pytest.raises(ConfigError, match=r"images 40, not 39; fingerprint"):
        pack(colours, out, short_side=20)
    assert contents(out) == before
    with pytest.raises(ConfigError, match="not empty and holds no pack"):
        pack(colours, colours / "even")


def test_what_is_complete_is_left_alone(colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = pack(colours, tmp_path / "pack")
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    pack(colours, out)
    assert "is complete" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_damage_is_named_file_by_file(colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = pack(colours, tmp_path / "pack", shard_size=SMALL)
    verify_pack(f"file://{out}")
    capsys.readouterr()
    flipped = bytearray((out / "000001.tar").read_bytes())
    flipped[5000] ^= 1
    (out / "000001.tar").write_bytes(flipped)
    (out / "000002.tar").unlink()
    with pytest.raises(DataError, match=r"2 of \d+ files of .* are damaged"):
        verify_pack(out)
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("verify ")]
    assert len(lines) == 2
    assert "000001.tar is damaged: its checksum" in lines[0]
    assert "000002.tar cannot be read" in lines[1]
    with pytest.raises(DataError, match=r"000002\.tar cannot be read"):
        opened(out)
    (out / "index.parquet").write_bytes(b"")
    with pytest.raises(DataError, match="3 of"):
        verify_pack(out)
    with pytest.raises(DataError, match="holds no complete pack"):
        verify_pack(colours)


def test_a_manifest_of_something_else_is_no_pack(colours: Path) -> None:
    (colours / "manifest.json").write_text('{"name": "photos"}')
    assert len(opened(colours)) == 40
