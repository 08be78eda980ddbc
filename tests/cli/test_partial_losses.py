"""Where a part would be lost, all of it is taken, or the part is named: complaints about other tools, one of a kind.

Each input goes through the command line as a user would have it; what is expected is the right value, not a message.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from ranks import ENGINES
from runs import TINY_MODEL
from unmask.cli import main
from unmask.data.decode.raster import open_image

BOTH = [ENGINES[0], pytest.param("mindspore", marks=[*ENGINES[1].marks, pytest.mark.campaign])]
TRAIN = [*TINY_MODEL, "train.batch_size=4", "train.epochs=1", "optimizer.warmup_epochs=0", "augment.policy=null"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))


def picture(number: int, kind: str = "PNG", **how: Any) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (28, 28), np.uint8)
    Image.fromarray(pixels).save(file, kind, **how)
    return file.getvalue()


def write(files: dict[str, bytes]) -> None:
    for name, data in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(data)


def tar(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return file.getvalue()


# --- images that are counted ------------------------------------------------------------------------------------------


def joined_tars() -> None:
    parts = [tar({f"{part}{n}.png": picture(4 * part + n) for n in range(4)}) for part in range(2)]
    write({"joined.tar": b"".join(parts)})


def linked_classes() -> None:
    write({f"store/{animal}/{n}.png": picture(n) for n in range(4) for animal in ("cat", "dog")})
    write({f"links/{animal}/{n}.png": picture(9 + n) for n in range(4) for animal in ("bird", "fish")})
    for animal in ("cat", "dog"):
        Path("links", animal).symlink_to(Path("store", animal).absolute(), target_is_directory=True)


def images_and_masks() -> None:
    sample = {
        f"{n}.{kind}": picture(n, "JPEG" if kind == "jpg" else "PNG") for n in range(4) for kind in ("jpg", "seg.png")
    }
    write({"masks.tar": tar(sample)})


def images_and_depths() -> None:
    write({"depths.tar": tar({f"{n}.{kind}.png": picture(n) for n in range(4) for kind in ("rgb", "depth")})})


def two_suffixes() -> None:
    write({"two.tar": tar({f"a/{n}.{kind}": picture(n, kind.upper()) for n in range(4) for kind in ("png", "webp")})})


def long_texts_and_profiles() -> None:
    text, international = PngImagePlugin.PngInfo(), PngImagePlugin.PngInfo()
    text.add_text("prompt", "a" * 2_000_000)
    text.add_text("parameters", "b" * 1_500_000, zip=True)
    international.add_itxt("prompt", "é" * 2_000_000, zip=True)
    profile = {"icc_profile": b"\0" * 2_000_000}
    for number, how in enumerate(({}, {"pnginfo": text}, {"pnginfo": international}, profile)):
        write({f"texts/{number}.png": picture(number, **how)})


def other_suffixes() -> None:
    names = {
        "a.jfif": "JPEG",
        "b": "JPEG",
        "c.jpg": "JPEG",
        "d.jpe": "JPEG",
        "e.PNG": "PNG",
        "f": "WEBP",
        "g.tif.tif": "TIFF",
    }
    write({f"suffixes/{name}": picture(n, kind) for n, (name, kind) in enumerate(names.items())})


COUNTED: dict[str, tuple[Callable[[], None], str, int | str]] = {
    "tars joined by cat": (joined_tars, "joined.tar", 8),
    "links to class folders": (linked_classes, "links", "links=follow"),
    "links that are followed": (linked_classes, "links#links=follow", 16),
    "an image and its mask": (images_and_masks, "masks.tar", "#image=KIND"),
    "the image of the two": (images_and_masks, "masks.tar#image=jpg", 4),
    "an image and its depth": (images_and_depths, "depths.tar", "#image=KIND"),
    "that one": (images_and_depths, "depths.tar#image=rgb.png", 4),
    "an image in two formats": (two_suffixes, "two.tar", "#image=KIND"),
    "each of the two": (two_suffixes, "two.tar#image=*", 8),
    "PNG with much text": (long_texts_and_profiles, "texts", 4),
    "suffixes": (other_suffixes, "suffixes", 7),
}


@pytest.mark.parametrize("case", COUNTED)
def test_all_images_are_taken_or_the_rest_is_named(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    make, spec, expected = COUNTED[case]
    make()
    code = main(["stats", spec])
    said = capsys.readouterr()
    if isinstance(expected, int):
        assert code == 0, said.err
        assert re.search(rf"^{expected} images: ", said.out, re.MULTILINE), said.out
    else:
        assert code == 3
        assert expected in said.err


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_pictures_behind_the_first_are_told(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [Image.fromarray(np.full((40, 40), 50 * n, np.uint8)) for n in range(1, 5)]
    file = io.BytesIO()
    rows[0].save(file, kind, save_all=True, append_images=rows[1:])
    write({f"scans/several.{kind.lower()}": file.getvalue(), "scans/one.png": picture(0)})
    assert main(["stats", "scans", "--set", "model.channels=1"]) == 0
    assert re.search(r"2 images: .*1 \w+ \(the first of several\)", capsys.readouterr().out)


def test_pages_that_are_the_channels_are_all_taken(capsys: pytest.CaptureFixture[str]) -> None:
    tifffile = pytest.importorskip("tifffile", reason="unmask[tiff] is not installed")
    file = io.BytesIO()
    tifffile.imwrite(file, np.random.default_rng(0).integers(0, 9999, (5, 40, 40), np.uint16), photometric="minisblack")
    write({"scans/bands.tif": file.getvalue()})
    assert main(["stats", "scans", "--set", "model.channels=5", "--set", "data.dtype=uint16"]) == 0
    assert "1 images: 1 5 x uint16\n" in capsys.readouterr().out


BROKEN = {"text": b"no picture", "cut": picture(1, "JPEG")[:300], "empty": b""}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("judged", ["data.val", "evaluate.val"])
def test_images_to_be_judged_by_that_cannot_be_decoded(
    kind: str, judged: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are told and refused as those to learn from are; what was learnt stays."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    write({f"{part}/{'ab'[n % 2]}/{n}.png": picture(n) for part in ("train", "val") for n in range(12)})
    write({"val/b/zz.png": BROKEN[kind]})
    words = [*TRAIN[:-1], "data.train=train", "output=run", f"{judged}=val"]
    words += ["evaluate.train=train", "evaluate.every=1"] if judged == "evaluate.val" else []
    assert main(["pretrain", "mae-vit-tiny", *words]) == 3
    err = capsys.readouterr().err
    assert "1 of 13 images (7.69%) cannot be decoded, more than data.max_bad_share=0.001, such as b/zz.png: " in err
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["step-00000003"]
    assert main(["pretrain", "mae-vit-tiny", *words, "data.max_bad_share=0.1"]) == 0
    said = capsys.readouterr().out
    assert "1 of 13 images cannot be decoded and are left out" in said
    assert "resumed after step 3" in said
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["split"] == "val"] == [3]


@pytest.mark.parametrize("engine", BOTH)
@pytest.mark.parametrize("where", ["train", "val"])
def test_what_was_computed_is_kept(where: str, engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Too many broken images end a run, or its validation; allowed, it goes on as if it had never ended."""
    write({f"{part}/{'ab'[n % 2]}/{n:02}.png": picture(n) for part in ("train", "val") for n in range(12)})
    write({f"{where}/b/11.png": b"no picture"})
    words = ["pretrain", "mae-vit-tiny", *TRAIN[:-1], "data.train=train", "data.val=val", f"engine={engine}"]
    words += ["train.epochs=2", "train.log_every=1"]
    assert main([*words, "output=run"]) == 3
    assert "The state is saved; the same command goes on from there" in "".join(capsys.readouterr())
    (kept,) = (path.name for path in Path("run/checkpoints").iterdir())
    assert kept == "step-00000003" if where == "val" else kept in {f"step-0000000{step}" for step in (1, 2, 3)}
    assert main([*words, "output=run", "data.max_bad_share=0.1"]) == 0
    assert main([*words, "output=whole", "data.max_bad_share=0.1"]) == 0
    assert Path("run/metrics.jsonl").read_bytes() == Path("whole/metrics.jsonl").read_bytes()
    of_run, of_whole = (Path(run, "checkpoints/step-00000006/weights.safetensors") for run in ("run", "whole"))
    assert of_run.read_bytes() == of_whole.read_bytes()


def band(dtype: str) -> bytes:
    import tifffile

    file, values = io.BytesIO(), np.random.default_rng(0).integers(-100, 100, (40, 40))
    tifffile.imwrite(file, np.abs(values).astype(dtype) if dtype[0] == "u" else values.astype(dtype))
    return file.getvalue()


WHOLE = {
    "without its end mark": ("jpg", picture(0, "JPEG")[:-2], "L"),
    "with something behind": ("jpg", picture(0, "JPEG") + b"something" * 9, "L"),
    "half floats": ("tif", band("f2"), "1 x float16"),
    "doubles": ("tif", band("f8"), "1 x float64"),
    "signed bytes": ("tif", band("i1"), "1 x int8"),
    "large numbers": ("tif", band("u4"), "1 x uint32"),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_what_a_viewer_shows_is_read(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As the first image, from which channels and dtype are taken, and as another."""
    suffix, data, stored = WHOLE[kind]
    write({f"scans/a.{suffix}": data})
    assert main(["stats", "scans"]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert f"1 images: 1 {stored}\n" in said, said
    assert main(["check", "scans", "--smallest", "1", "--out", "out"]) == 0
    assert Path("out/exclude.txt").read_text() == ""


# --- text -------------------------------------------------------------------------------------------------------------

LISTS: dict[str, tuple[str, bytes, str]] = {
    "quotes": (
        "list.csv",
        b'"path","caption","label"\n'
        + b"".join(b'"img/%d.png","a ""nice"", big one","%s"\n' % (n, b"cat dog".split()[n % 2]) for n in range(8)),
        "",
    ),
    "line breaks and semicolons": (
        "list.csv",
        b"path;caption;label\r\n"
        + b"".join(
            b'img/%d.png;"two\r\nlines; and ""this""";%s\r\n' % (n, b"cat dog".split()[n % 2]) for n in range(8)
        ),
        "",
    ),
    "a mark and tabs": (
        "list.tsv",
        b"\xef\xbb\xbfpath\tlabel\n" + b"".join(b"img/%d.png\t%s\n" % (n, b"cat dog".split()[n % 2]) for n in range(8)),
        "",
    ),
    "the column that is named": (
        "list.csv",
        b"path,coarse,fine\n" + b"".join(b"img/%d.png,animal,%s\n" % (n, b"cat dog".split()[n % 2]) for n in range(8)),
        "#label=fine",
    ),
}


def test_a_column_that_is_there_twice(capsys: pytest.CaptureFixture[str]) -> None:
    write({f"img/{n}.png": picture(n) for n in range(2)})
    write({"list.csv": b"path,label,Label\nimg/0.png,a,x\nimg/1.png,b,y\n"})
    assert main(["stats", "list.csv"]) == 3
    assert "has two columns called label" in capsys.readouterr().err


@pytest.mark.parametrize("case", LISTS)
def test_lists_are_read_by_their_own_rules(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, text, option = LISTS[case]
    write({f"img/{n}.png": picture(n) for n in range(8)} | {name: text})
    assert main(["check", f"{name}{option}", "--json", "--smallest", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == {"cat": 4, "dog": 4}


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.dtype(">u2")])
def test_white_that_is_zero_is_shown_as_viewers_do(dtype: Any) -> None:
    """Pillow turns 8 bits over itself, and no viewer that we know of leaves 16 as they are."""
    pixels = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    pixels = (pixels // 257).astype(np.uint8) if dtype == np.uint8 else pixels.astype(dtype)
    tifffile = pytest.importorskip("tifffile", reason="unmask[tiff] is not installed")
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, photometric="miniswhite", byteorder=">" if dtype == np.dtype(">u2") else "<")
    kind = "uint8" if dtype == np.uint8 else "uint16"
    shown = open_image(file.getvalue(), 1, kind, 10**8).pixels()[:, :, 0]
    try:
        with Image.open(io.BytesIO(file.getvalue())) as image:
            assert image.tag_v2[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] == 0
            theirs = np.asarray(image)
    except UnidentifiedImageError:  # big-endian ones of 16 bits
        theirs = tifffile.imread(io.BytesIO(file.getvalue()))
    np.testing.assert_array_equal(shown, theirs)


# --- what strangers made ----------------------------------------------------------------------------------------------


def encrypted_npz() -> None:
    file = io.BytesIO()
    np.savez(file, images=np.zeros((4, 28, 28), np.uint8))
    raw = bytearray(file.getvalue())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flag of encryption, in both headers
        raw[raw.index(mark) + at] |= 1
    write({"enc.npz": bytes(raw)})


def a_column_of_numbers() -> None:
    import pyarrow as arrow
    from pyarrow import parquet

    parquet.write_table(arrow.table({"image": [1, 2, 3], "label": [0, 1, 0]}), "int.parquet")


def a_wild_offset() -> None:
    import pyarrow as arrow

    table = arrow.table({"image": [picture(n) for n in range(4)]})
    with arrow.OSFile("wild.arrow", "wb") as file, arrow.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    raw = bytearray(Path("wild.arrow").read_bytes())
    offsets = np.cumsum([0, *(len(picture(n)) for n in range(4))]).astype("<i4").tobytes()
    at = raw.index(offsets)
    raw[at + 8 : at + 12] = (2**31 - 1).to_bytes(4, "little")
    write({"wild.arrow": bytes(raw)})


def a_small_bomb() -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "WEBP", quality=1)
    raw = bytearray(file.getvalue())
    at = raw.index(b"\x9d\x01\x2a") + 3  # before width and height
    raw[at : at + 4] = (12_000).to_bytes(2, "little") * 2
    write({"bombs/w.webp": bytes(raw)})


@pytest.mark.parametrize(
    "make", [encrypted_npz, a_column_of_numbers, a_wild_offset, a_small_bomb], ids=lambda f: f.__name__
)
def test_what_cannot_be_read_is_one_line(make: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> None:
    make()
    (name,) = (path.name for path in Path().iterdir() if path.name != "cache")
    assert main(["stats", name]) == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    assert said.startswith("unmask: "), said


# --- the models of others ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A state dict as the official code has it."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    root = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        write({f"photos/{n}.png": picture(n) for n in range(8)})
        assert main(["pretrain", "mae-vit-tiny", *TRAIN[:-1], "data.train=photos", "output=mae"]) == 0
        assert main(["convert", "mae", "plain.pth", "--to", "facebook"]) == 0
        return torch.load("plain.pth", weights_only=True)["model"]


def tuned(weights: Any, name: str) -> tuple[list[float], set[str]]:
    """The losses of a fine-tuning that begins as these weights, and the names of its own."""
    import torch
    from safetensors import safe_open

    write({f"photos/{'ab'[n % 2]}/{n}.png": picture(n) for n in range(8)})
    torch.save(weights, f"{name}.pth")
    words = [
        *TRAIN,
        "data.train=photos",
        f"init={name}.pth",
        f"output={name}",
        "objective.head=drawn",
        "train.log_every=1",
    ]
    assert main(["finetune", "finetune-vit-tiny", *words]) == 0
    rows = [json.loads(line) for line in Path(name, "metrics.jsonl").read_text().splitlines()]
    (last,) = sorted(Path(name, "checkpoints").glob("step-*"))[-1:]
    with safe_open(last / "weights.safetensors", "np") as file:
        return [row["loss"] for row in rows if row["split"] == "train"], set(file.keys())


def test_no_tensor_of_a_file_is_dropped_in_silence(plain: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    losses, names = tuned({"model": plain}, "plain")
    prefixed = {"model": {f"module.{key}": tensor for key, tensor in plain.items()}}
    assert tuned(prefixed, "parallel") == (losses, names)
    with_path = {"model": plain, "args": argparse.Namespace(output_dir=Path("/x"))}
    assert tuned(with_path, "path") == (losses, names), "tensors are read, and nothing is executed"
    scales = {f"blocks.{n}.ls{k}.gamma": torch.full((32,), 0.1) for n in range(2) for k in (1, 2)}
    scaled, more = tuned({**plain, **scales}, "scaled")
    assert {*scales} <= more - names
    assert scaled != losses


# --- the inputs themselves --------------------------------------------------------------------------------------------

SHARED = Path(__file__).parents[3] / "shared" / "cases"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the inputs of the issue are not beside the repository")
@pytest.mark.parametrize(
    ("spec", "code", "said"),
    [
        ("joined.tar", 0, "8 images: "),
        ("masks.tar", 3, "#image=KIND"),
        ("masks.tar#image=jpg", 0, "4 images: "),
        ("png-text", 0, "6 images: "),
        ("suffixes", 0, "4 images: "),
        ("links", 3, "links to folders"),
        ("lists/quotes.csv", 0, "images: "),
        ("attack/fuzz-snappy-parquet-2.parquet", 3, "its row group cannot be read"),
        ("attack/int.parquet", 3, "not images with their bytes"),
        ("attack/enc.npz", 3, "is encrypted"),
        ("attack/arrow-offset-2147483647.arrow", 3, "arrow-offset-2147483647.arrow"),
    ],
)
def test_the_inputs_of_the_issue(spec: str, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", f"{SHARED}/{spec}"]) == code
    out = capsys.readouterr()
    assert said in (out.err if code else out.out)
    assert not code or out.err.strip().count("\n") <= 1
