"""What is not taken of what was named is counted, said, recorded, and refused where it is much."""

from __future__ import annotations

import io
import os
import re
import shutil
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from unmask.data.sources import Source, open_source
from unmask.data.sources.left_out import LeftOut
from unmask.errors import DataError


def picture(format: str = "JPEG", shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (shade, 0, 0)).save(buffer, format)
    return buffer.getvalue()


def opened(spec: object, *, labels: bool = False) -> Source:
    return open_source(str(spec), key="data.train", labels=labels)


def names(source: Source) -> list[str]:
    return [source.name(index) for index in range(len(source))]


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """Four class folders of 3 images; two of them are links to folders elsewhere."""
    for place in ("animals/bird", "store/cat", "store/dog", "animals/fish"):
        (tmp_path / place).mkdir(parents=True)
        for number in range(3):
            (tmp_path / place / f"{number}.jpg").write_bytes(picture(shade=number))
    for name in ("cat", "dog"):
        (tmp_path / "animals" / name).symlink_to(tmp_path / "store" / name)
    return tmp_path / "animals"


def test_links_to_folders_are_followed_on_request_and_never_overlooked(animals: Path):
    with pytest.raises(
        DataError, match=r"6 images are taken and 2 .*links to folders \(\w+, …\); follow .*#links=follow"
    ):
        opened(animals, labels=True)
    followed = opened(f"{animals}#links=follow", labels=True)
    assert (len(followed), followed.class_names) == (12, ("bird", "cat", "dog", "fish"))
    assert followed.read(4) == picture(shade=1)
    assert len(opened(f"{animals}#left_out=1", labels=True)) == 6


def test_links_that_lead_in_a_circle_are_refused(animals: Path):
    (animals.parent / "store" / "cat" / "back").symlink_to(animals)
    with pytest.raises(DataError, match="the link cat/back leads back to a folder above it"):
        opened(f"{animals}#links=follow")
    (animals.parent / "store" / "cat" / "back").unlink()
    (animals / "fish" / "itself").symlink_to(animals / "fish")
    with pytest.raises(DataError, match="fish/itself leads back"):
        opened(f"{animals}#links=follow")


def test_links_that_git_wrote_as_text(animals: Path):
    for name in ("cat", "dog"):
        (animals / name).unlink()
        (animals / name).write_text(f"../store/{name}")
    with pytest.raises(DataError, match="2 links to folders that became text files"):
        opened(animals)


def test_single_links_out_of_the_folder_count_by_share(tmp_path: Path):
    root = tmp_path / "photos"
    root.mkdir()
    for number in range(40):
        (root / f"{number}.jpg").write_bytes(picture())
    (tmp_path / "elsewhere.jpg").write_bytes(picture())
    (root / "linked.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    assert LeftOut.of(opened(root)).counts() == {"links out of the folder": 1}
    assert len(opened(f"{root}#links=follow")) == 41
    for number in range(4):
        (root / f"gone{number}.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(DataError, match=r"40 images are taken and 5 .*4 broken links"):
        opened(root)
    with pytest.raises(DataError, match=r"41 images are taken and 4 "):
        opened(f"{root}#links=follow")


KINDS = {"a.jfif": "JPEG", "b.JPE": "JPEG", "c": "PNG", "d.2020": "JPEG", "e.img": "WEBP", "f.tif": "TIFF", "g": "BMP"}


def test_images_are_known_by_their_content_where_the_name_does_not_tell(tmp_path: Path):
    root = tmp_path / "kinds"
    root.mkdir()
    with tarfile.open(tmp_path / "kinds.tar", "w") as tar:
        for name, kind in KINDS.items():
            (root / name).write_bytes(picture(kind))
            tar.add(root / name, name)
        for name in ("LICENSE", "notes.txt", ".DS_Store", "x.xmp"):
            (root / name).write_bytes(b"text")
            tar.add(root / name, name)
    for spec in (root, tmp_path / "kinds.tar"):
        source = opened(spec)
        assert names(source) == sorted(KINDS, key=os.fsencode)
        found = LeftOut.of(source)
        assert found.counts() == {".txt": 1, ".xmp": 1, "files that begin like no image": 1, "hidden": 1}
        assert "1 .xmp (x.xmp)" in str(found)


@pytest.mark.parametrize("name", ["photo.heic", "scan.nii", "slide.svs", "clip.mp4", "raw.NEF"])
def test_kinds_that_are_not_read_count_as_images(tmp_path: Path, name: str):
    (tmp_path / "a.jpg").write_bytes(picture())
    (tmp_path / name).write_bytes(b"something")
    with pytest.raises(DataError, match=rf"1 images are taken and 1 .*\({name}\).*#left_out=1"):
        opened(tmp_path)
    with pytest.raises(DataError, match=r"left_out=2 is not a share"):
        opened(f"{tmp_path}#left_out=2")


def test_it_is_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "a.jpg").write_bytes(picture())
    for name in ("a.xml", "b.xml", "c.json"):
        (tmp_path / name).write_bytes(b"")
    for _ in range(2):  # the second time from the cache
        opened(tmp_path)
        assert f"data.train={tmp_path}: 1 images; left out: 2 .xml (" in capsys.readouterr().out


def make_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_tars_joined_end_to_end_are_read_to_the_last(tmp_path: Path):
    parts = [make_tar(tmp_path / f"{n}.tar", {f"{n}{i}.jpg": picture(shade=n) for i in range(4)}) for n in range(3)]
    joined = tmp_path / "joined.tar"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    source = opened(joined)
    assert names(source) == [f"{n}{i}.jpg" for n in range(3) for i in range(4)]
    assert source.read(9) == picture(shade=2)
    joined.write_bytes(parts[0].read_bytes() + b"what every reader of tars ignores")
    assert len(opened(joined)) == 4
    joined.write_bytes(parts[0].read_bytes() + parts[1].read_bytes()[:1000])
    with pytest.raises(DataError, match="truncated"):
        opened(joined)


def test_folder_of_tars(tmp_path: Path):
    for n in range(2):
        make_tar(tmp_path / f"0000{n}.tar", {f"{n}{i}.jpg": picture(shade=n) for i in range(4)})
    assert len(opened(tmp_path)) == 8
    table = pa.table({"url": ["https://example.org/1.jpg"], "caption": ["a"]})  # as img2dataset leaves it
    pq.write_table(table, tmp_path / "00000.parquet")
    (tmp_path / "00000_stats.json").write_text("{}")
    assert len(opened(tmp_path)) == 8


SAMPLES = {f"{k:04}.{kind}": picture("PNG") for k in range(6) for kind in ("jpg", "seg.png", "depth.png")}


def test_several_files_of_a_sample_need_to_be_told_apart(tmp_path: Path):
    root = tmp_path / "samples"
    root.mkdir()
    for name, data in SAMPLES.items():
        (root / name).write_bytes(data)
    for spec in (root, make_tar(tmp_path / "samples.tar", SAMPLES)):
        with pytest.raises(DataError, match=r"such as 0000\.depth\.png and 0000\.jpg; .*#image=KIND .*jpg"):
            opened(spec)
        source = opened(f"{spec}#image=jpg")
        assert names(source) == [f"{k:04}.jpg" for k in range(6)]
        assert LeftOut.of(source).counts() == {"other files of a sample": 12}
        assert len(opened(f"{spec}#image=seg.png")) == 6
        assert len(opened(f"{spec}#image=*")) == 18
        with pytest.raises(DataError, match=r"no image is a \.bmp; there are"):
            opened(f"{spec}#image=bmp")


@pytest.mark.parametrize(
    "files",
    [
        [f"{animal}.{n}.jpg" for animal in ("cat", "dog") for n in range(20)],
        [f"IMG_2020.{month:02}.{day:02}.jpg" for month in (1, 2) for day in range(1, 20)],
        [f"{n}.jpg" for n in range(40)] + ["7.png"],
        [f"photo.{chr(97 + n)}.jpg" for n in range(20)],
        ["a/1.jpg", "b/1.png", "c/1.jpg"],
    ],
)
def test_dots_in_names_are_no_samples(tmp_path: Path, files: list[str]):
    root = tmp_path / "photos"
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture())
    assert len(opened(root)) == len(files)
    assert len(opened(make_tar(tmp_path / "photos.tar", {name: picture() for name in files}))) == len(files)


@pytest.mark.parametrize(
    ("files", "asked", "image"),
    [
        (
            [f"{n:03}{word}.png" for n in range(9) for word in ("", "_mask")],
            "such as 000.png and 000_mask.png; ",
            "png",
        ),
        (
            [f"ISIC_{n}{word}" for n in range(9) for word in (".jpg", "_Segmentation.png", "_superpixels.png")],
            "such as ISIC_0.jpg and ISIC_0_Segmentation.png; .*(one of jpg, _segmentation.png, _superpixels.png)",
            "jpg",
        ),
        (  # most have one mask, and a few two
            [f"{c}/{c} ({n}){word}.png" for c in ("benign", "sound") for n in range(9) for word in ("", "_mask")]
            + ["benign/benign (1)_mask_1.png"],
            "such as benign/benign (0).png and benign/benign (0)_mask.png; ",
            "png",
        ),
        ([f"{n}{word}.jpg" for n in range(12) for word in ("", "-depth")], "such as 0.jpg and 0-depth.jpg; ", "jpg"),
        (
            [f"{word}_{n:03}.png" for n in range(9) for word in ("img", "mask")],
            "such as img_000.png and mask_000.png; .*(one of png, mask_.png)",
            "png",
        ),
        ([f"{word}{n}.jpg" for n in range(12) for word in ("", "depth-")], "such as 0.jpg and depth-0.jpg; ", "jpg"),
        (
            [f"s/{word}{n:04}.{kind}" for n in range(9) for word, kind in (("Image", "jpg"), ("Mask", "png"))],
            "such as s/Image0000.jpg and s/Mask0000.png; ",
            "jpg",
        ),
        (
            [f"frame_{n}_{word}.png" for n in range(9) for word in ("rgb", "depth")],
            "such as frame_0_rgb.png and frame_0_depth.png; ",
            "png",
        ),
        (  # some masks have lost their image
            [f"{n}{word}.png" for n in range(12) for word in (["", "_mask"] if n < 9 else ["_mask"])],
            "such as 0.png and 0_mask.png; ",
            "png",
        ),
    ],
)
def test_a_word_behind_the_name_is_another_file_of_the_sample(tmp_path: Path, files: list[str], asked: str, image: str):
    root = tmp_path / "photos"
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture())
    sound = sorted(name for name in files if not re.search("(?i)mask|_seg|_super|depth", name))
    for spec in (root, make_tar(tmp_path / "photos.tar", {name: picture() for name in files})):
        with pytest.raises(DataError, match=asked.replace("(", r"\(").replace(")", r"\)")):
            opened(spec)
        source = opened(f"{spec}#image={image}")
        assert sorted(names(source)) == sound
        assert LeftOut.of(source).counts() == {"other files of a sample": len(files) - len(sound)}
        assert len(opened(f"{spec}#image=*")) == len(files)


@pytest.mark.parametrize(
    "files",
    [
        [f"IMG_{n}{word}.jpg" for n in range(40) for word in ([""] if n else ["", "-edited"])],
        [f"frame_{n}_left.jpg" for n in range(9)] + ["frame.jpg"],
        [f"{n}_{m}.jpg" for n in range(9) for m in range(3)] + [f"{n}.jpg" for n in range(9)],
        [f"{colour} cat.jpg" for colour in ("black", "white")] + ["cat.jpg"],
        [f"{animal}_{n}.jpg" for n in range(9) for animal in ("cat", "dog")],
        [
            f"{thing}_{n}.jpg"
            for thing, first in (("mask", 0), ("hat", 20), ("depth_gauge", 40))
            for n in range(first, first + 9)
        ],
        [f"{word}_mask_{n}.jpg" for n in range(9) for word in ("with", "without")],
    ],
)
def test_words_behind_names_that_are_no_samples(tmp_path: Path, files: list[str]):
    assert len(opened(make_tar(tmp_path / "photos.tar", {name: picture() for name in files}))) == len(files)


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images/{}.jpg", "masks/{}.png"),
        ("JPEGImages/{}.jpg", "SegmentationClass/{}.png"),
        ("img/train/{}.png", "GT/train/{}.png"),
        ("town/rgb/{}.jpg", "town/depth/{}.depth.png"),
        ("images/Abyssinian_{}.jpg", "annotations/trimaps/Abyssinian_{}.png"),
        ("{}.jpg", "masks/{}.png"),
        ("images/{}_training.tif", "mask/{}_training_mask.gif"),
        ("leftImg8bit/train/ulm/ulm_{}_leftImg8bit.png", "gtFine/train/ulm/ulm_{}_gtFine_labelIds.png"),
    ],
)
def test_folders_of_masks_are_no_images(tmp_path: Path, images: str, masks: str):
    root = tmp_path / "set"
    files = [form.format(n) for form in (images, masks) for n in range(8)]
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture())
    for spec in (root, make_tar(tmp_path / "set.tar", {name: picture() for name in files})):
        with pytest.raises(
            DataError, match=r"another what belongs to them, such as .* name a folder that holds images alone, or"
        ):
            opened(spec)
        assert len(opened(f"{spec}#image=*")) == 16
    if (alone := (root / images).parent) != root:
        assert len(opened(alone)) == 8


@pytest.mark.parametrize("folders", [("mask", "no_mask"), ("masks", "images"), ("labels", "photos")])
def test_a_folder_called_as_masks_are_may_hold_images(tmp_path: Path, folders: tuple[str, str]):
    files = {f"{folder}/{folder}{n}.jpg": picture() for folder in folders for n in range(8)}
    assert len(opened(make_tar(tmp_path / "set.tar", files))) == 16


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["train/cat/{}.jpg", "train/dog/{}.jpg", "val/cat/{}.jpg", "val/dog/{}.jpg"],
            "its folders, train, val, are parts",
        ),
        (["Training/{}.jpg", "test/{}.jpg", "validation/{}.jpg"], "its folders, Training, test, validation, are parts"),
        (
            ["seg_train/{}.jpg", "seg_test/{}.jpg"],
            "its folders, seg_test, seg_train, are parts of a data set, not classes",
        ),
    ],
)
def test_parts_of_a_data_set_are_no_classes(
    tmp_path: Path, files: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    root = tmp_path / "set"
    for name in [form.format(n) for form in files for n in range(3)]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture())
    tar = make_tar(tmp_path / "set.tar", {form.format(n): picture() for form in files for n in range(3)})
    for spec in (root, tar):
        with pytest.raises(DataError, match=message):
            open_source(str(spec), key="data.train", labels=True)
        assert len(opened(spec)) == 3 * len(files)
        assert "are parts of a data set, and the images of all are taken" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("files", "one"),
    [
        (
            [f"imagenet1k-{part}-{n:04}.tar" for part in ("train", "validation") for n in range(2)],
            "imagenet1k-train-*.tar",
        ),
        (["train.tar", "val.tar", "test.tar"], "train.tar"),
        (["cats_test.tar", "cats_val.tar"], "cats_test.tar"),
        ([f"{part}-00000-of-00001.tar" for part in ("train", "extra", "test")], "train-*.tar"),
    ],
)
def test_tars_of_several_parts_are_not_mixed(tmp_path: Path, files: list[str], one: str):
    for place, name in enumerate(files):
        make_tar(tmp_path / name, {f"{place}-{n}.jpg": picture(shade=place) for n in range(3)})
    with pytest.raises(DataError, match=f"; name one of them, such as .*/{re.escape(one)}$"):
        opened(tmp_path)
    with pytest.raises(DataError, match=f"; name one of them, such as .*/{re.escape(one)}$"):
        opened(tmp_path / "*.tar")
    assert len(opened(tmp_path / one)) == 3 * len(list(tmp_path.glob(one)))
    every = ",".join(name.removesuffix(".tar") for name in files)
    assert len(opened(tmp_path / f"{{{every}}}.tar")) == 3 * len(files)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("photos#label=fine_label", "a folder has no option label; its options are: image, links, left_out"),
        ("list.csv#links=follow", "a list has no option links"),
        ("a.tar#label=x", "a tar has no option label"),
        ("a.npz#labels=x", "arrays has no option labels"),
        ("photos#links=maybe", "links=maybe is unknown"),
    ],
)
def test_options_that_a_source_does_not_know(tmp_path: Path, spec: str, message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(picture())
    (tmp_path / "list.csv").write_text("path,label\nphotos/a.jpg,a\n")
    make_tar(tmp_path / "a.tar", {"a.jpg": picture()})
    with pytest.raises(DataError, match=message):
        opened(spec)


def test_names_with_a_hash(tmp_path: Path):
    for name in ("set #1", "a#image=b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").write_bytes(picture())
        assert len(opened(tmp_path / name)) == 1


def test_patterns_and_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for n in range(12):
        make_tar(tmp_path / f"part-{n}.tar", {f"{n:02}.jpg": picture()})
    assert len(opened("~/part-*.tar")) == 12
    assert len(opened("~/part-?.tar")) == 10
    assert len(opened("~/part-[0-2].tar")) == 3
    (tmp_path / "photos").mkdir()
    shutil.copy(tmp_path / "part-0.tar", tmp_path / "photos" / "x.tar")
    assert len(opened("~/photos")) == 1


@pytest.mark.parametrize(
    "folder", ["@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", ".ipynb_checkpoints", "cat/@eaDir"]
)
def test_what_systems_make_beside_the_images_is_none_of_them(tmp_path: Path, folder: str):
    names_ = [f"{place}/{n}.jpg" for place in ("cat", "dog", folder) for n in range(3)]
    for name in names_:
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(picture())
    for spec in (tmp_path / "set", make_tar(tmp_path / "set.tar", {name: picture() for name in names_})):
        source = opened(spec, labels=True)
        assert (len(source), source.class_names) == (6, ("cat", "dog"))
        assert set(LeftOut.of(source).counts()) == {"hidden"}


@pytest.mark.parametrize("above", ["", "images/", "set/of/images/"])
def test_parts_of_a_data_set_that_are_taken_together_are_told(
    tmp_path: Path, above: str, capsys: pytest.CaptureFixture[str]
):
    files = {f"{above}{part}/{n}.jpg": picture() for part in ("trainData", "val") for n in range(3)}
    assert len(opened(make_tar(tmp_path / "set.tar", files))) == 6
    assert "the folders trainData, val are parts of a data set, and the images of all" in capsys.readouterr().out
