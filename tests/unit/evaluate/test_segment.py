"""Segmentation by a linear head, on features made for it, and its masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unmask.cli import main
from unmask.config.load import check_config
from unmask.data.sources import open_source
from unmask.errors import DataError
from unmask.evaluate.segment import IGNORED, Dense, _masks, enlarged, fit_segmentation, shares_of
from unmask.metrics import mean_iou

GRID, PATCH, WIDTH = 4, 6, 5


def made(count: int, seed: int, classes: int = 3) -> Dense:
    """Squares of the classes from 1 on, on a background; the features are noisy shares of the pixels."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, GRID * PATCH, GRID * PATCH), np.uint8)
    for number, mask in enumerate(masks):
        top, left = rng.integers(0, 14, 2)
        mask[top : top + 10, left : left + 10] = 1 + number % (classes - 1)
    shares = shares_of(masks, (GRID, GRID), classes)
    mixed = shares @ np.random.default_rng(9).normal(0, 1, (classes, WIDTH))
    return Dense((mixed + rng.normal(0, 0.1, mixed.shape)).astype(np.float32), masks)


def test_mean_iou_is_of_the_classes_that_occur() -> None:
    confusion = np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
    iou, mean = mean_iou(confusion)
    np.testing.assert_allclose(iou, [3 / 4, 2 / 3, np.nan])
    assert mean == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert np.isnan(mean_iou(np.zeros((2, 2)))[1])


def test_enlarging_is_bilinear_as_pillow_does_it() -> None:
    values = np.random.default_rng(0).normal(0, 1, (4, 3, 2))
    ours = enlarged(values, (12, 15))
    for channel in range(2):
        image = Image.fromarray(values[..., channel].astype(np.float32))
        theirs = np.asarray(image.resize((15, 12), Image.Resampling.BILINEAR))
        np.testing.assert_allclose(ours[..., channel], theirs, atol=1e-5)


def test_shares_are_counted_by_hand() -> None:
    mask = np.zeros((1, 4, 4), np.uint8)
    mask[0, 0, :2], mask[0, 3, 3] = 1, IGNORED
    np.testing.assert_allclose(shares_of(mask, (2, 2), 2)[0, :, :, 1], [[0.5, 0], [0, 0]])
    np.testing.assert_allclose(shares_of(mask, (2, 2), 2)[0, 1, 1], [0.75, 0])


def test_a_few_masks_teach_it() -> None:
    found = fit_segmentation(made(6, 0), made(10, 1))
    assert found.miou > 0.7
    assert found.miou == pytest.approx(np.mean(found.iou))
    assert max(one.miou for one in found.tried) > 0.6
    shuffled = made(10, 2)
    without = fit_segmentation(made(6, 0), Dense(shuffled.features[::-1].copy(), shuffled.masks))
    assert without.miou < found.miou - 0.2, "it is the features that tell"


def test_one_image_and_pixels_of_no_class() -> None:
    train, val = made(2, 0, classes=2), made(4, 1, classes=2)
    train = train.rows(np.array([0]))
    found = fit_segmentation(train, val)
    assert not found.tried
    assert found.miou > 0.5
    spoilt = val.masks.copy()
    spoilt[:, :3] = IGNORED
    again = fit_segmentation(train, Dense(val.features, spoilt))
    assert again.miou != found.miou


def test_masks_that_tell_no_classes_apart_are_refused() -> None:
    train, val = made(4, 0), made(4, 1)
    with pytest.raises(DataError, match="the masks of TRAIN hold 1 classes"):
        fit_segmentation(Dense(train.features, np.zeros_like(train.masks)), val)
    with pytest.raises(DataError, match="class 2 is in the masks of VAL and not in those of TRAIN"):
        fit_segmentation(Dense(train.features, np.minimum(train.masks, 1)), val)


def save(folder: Path, name: str, pixels: np.ndarray, mode: str | None = None) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if mode == "P":
        image.putpalette([7, 7, 7, 200, 0, 0, 0, 200, 0])
    image.save(path)


def test_a_mask_is_cut_as_its_image_is(tmp_path: Path) -> None:
    """Its classes are those of the picture's colours: grey levels 0, 100, 200 are the classes 0, 1, 2."""
    classes = np.kron(np.random.default_rng(0).integers(0, 3, (5, 7)), np.ones((8, 8), int)).astype(np.uint8)
    save(tmp_path / "images", "a/1.png", classes * np.uint8(100))
    save(tmp_path / "masks", "a/1.png", classes, "P")
    config = check_config(
        {
            "objective": "mae",
            "model": {"image_size": 40, "patch_size": 8, "channels": 1, "width": 8, "heads": 2},
            "data": {"mean": [0.5], "std": [0.5], "eval_crop": 1.0, "interpolation": "nearest"},
        }
    )
    images, masks = (open_source(str(tmp_path / name), key="x", labels=False) for name in ("images", "masks"))
    (found,) = _masks(images, masks, config, "TRAIN")
    np.testing.assert_array_equal(found, classes[:, 8:48])


@pytest.mark.parametrize(
    ("name", "pixels", "said"),
    [
        ("2.png", np.zeros((40, 56), np.uint8), "1.png has no mask; it must have the same name, suffix aside"),
        ("1.png", np.zeros((40, 40), np.uint8), "the mask 1.png is 40 x 40 pixels, its image 56 x 40"),
        ("1.png", np.zeros((40, 56, 3), np.uint8), "the mask 1.png is of mode RGB; it must have one channel"),
    ],
)
def test_a_mask_that_does_not_fit_is_named(tmp_path: Path, name: str, pixels: np.ndarray, said: str) -> None:
    save(tmp_path / "images", "1.png", np.zeros((40, 56), np.uint8))
    save(tmp_path / "masks", name, pixels)
    config = check_config({"model": {"channels": 1}, "data": {"mean": [0.5], "std": [0.5]}})
    images, masks = (open_source(str(tmp_path / each), key="x", labels=False) for each in ("images", "masks"))
    with pytest.raises(DataError, match=said):
        _masks(images, masks, config, "TRAIN")


def test_damaged_masks_and_masks_of_no_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("1.png", "2.png"):
        save(tmp_path / "images", name, np.zeros((40, 56), np.uint8))
        save(tmp_path / "masks", name, np.zeros((40, 56), np.uint8))
    save(tmp_path / "masks", "3.png", np.zeros((40, 56), np.uint8))
    config = check_config({"model": {"channels": 1}, "data": {"mean": [0.5], "std": [0.5]}})
    images, masks = (open_source(str(tmp_path / each), key="x", labels=False) for each in ("images", "masks"))
    assert len(_masks(images, masks, config, "TRAIN")) == 2
    assert "TRAIN: 1 of 3 masks are of no image" in capsys.readouterr().out
    sound = (tmp_path / "masks" / "2.png").read_bytes()
    for cut in (20, 40):
        (tmp_path / "masks" / "2.png").write_bytes(sound[:cut])
        with pytest.raises(DataError, match=r"the mask 2\.png cannot be decoded"):
            _masks(images, masks, config, "TRAIN")


def test_what_does_not_go_with_it_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for option in (["--attentive"], ["--pool", "cls"], ["--labels-per-class", "2"]):
        assert main(["probe", "run", "a", "b", "--segment", "c", "d", *option]) == 2
        assert f"--segment works on patches; leave out {option[0]}" in capsys.readouterr().err
