"""Read-outs of patches and mirror images, as a user types them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import unmask
from ranks import ENGINES
from runs import TINY_MODEL
from unmask.cli import main

BOTH = [ENGINES[0], pytest.param("mindspore", marks=[*ENGINES[1].marks, pytest.mark.campaign])]


@pytest.fixture(scope="module", params=BOTH)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and parts on a belt: grey, those of class `b` with a white scratch somewhere, which the masks show."""
    root = tmp_path_factory.mktemp("place")
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 12)):
        for number in range(count):
            pixels = rng.integers(40, 90, (28, 28)).astype(np.uint8)
            mask = np.zeros((28, 28), np.uint8)
            if number % 2:
                top, left = rng.integers(0, 15, 2)
                mask[top : top + 12, left : left + 12] = 255
            name = f"{'ab'[number % 2]}/{number}.png"
            for folder, image in ((part, np.where(mask > 0, 230, pixels).astype(np.uint8)), (f"{part}-masks", mask)):
                (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(root / folder / name)
    short = [f"data.train={root / 'train'}", "train.batch_size=12", "train.epochs=5", "optimizer.warmup_epochs=0"]
    run = ["pretrain", "mae-vit-tiny", *TINY_MODEL, *short, f"engine={request.param}", f"output={root / 'run'}"]
    assert main(run) == 0
    return root


def test_pixels_are_classified_from_a_few_masks(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["probe", place / "run", place / "train", place / "val", "--segment"]
    masks = [place / "train-masks", place / "val-masks"]
    assert main([str(word) for word in (*words, *masks, "--device", "cpu")]) == 0
    name, value = capsys.readouterr().out.splitlines()[-1].split("=")
    assert name == "mIoU"
    assert 0.6 < float(value) <= 1


def test_it_learns_where_to_look(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["probe", place / "run", place / "train", place / "val", "--attentive", "--device", "cpu"]
    assert main([str(word) for word in words]) == 0
    out = capsys.readouterr().out
    assert out.count("chosen") == 1
    assert float(out.splitlines()[-1].removeprefix("accuracy=")) > 0.7
    assert main([*map(str, words), "--pool", "mean"]) == 2
    assert "--attentive pools the patches itself; leave out --pool" in capsys.readouterr().err


def test_all_patches_are_written(place: Path, tmp_path: Path) -> None:
    words = ["embed", place / "run", place / "val", "--pool", "patches", "--out", tmp_path / "e.npy", "--device", "cpu"]
    assert main([str(word) for word in words]) == 0
    with unmask.load(place / "run", device="cpu") as model:
        expected = model.patch_features(place / "val")
    np.testing.assert_array_equal(np.load(tmp_path / "e.npy").reshape(expected.shape), expected)


def test_a_mirror_image_counts_as_much(place: Path) -> None:
    images = [np.asarray(Image.open(path)) for path in sorted((place / "val").rglob("*.png"))]
    mirrored = [image[:, ::-1].copy() for image in images]
    with unmask.load(place / "run", device="cpu") as plain, unmask.load(place / "run", device="cpu", flip=True) as both:
        assert both.fingerprint() != plain.fingerprint()
        expected = (plain.embed(images) + plain.embed(mirrored)) / 2
        assert np.abs(expected - plain.embed(images)).max() > 1e-4
        np.testing.assert_allclose(both.embed(images), expected, atol=1e-5)
        patches = (plain.patch_features(images) + plain.patch_features(mirrored)[:, :, ::-1]) / 2
        np.testing.assert_allclose(both.patch_features(images), patches, atol=1e-5)
