from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unmask.errors import UnmaskError
from unmask.report.log import RunLog
from unmask.report.pictures import curves, reconstruction_grid


def run_with(folder: Path, steps: int, *, evaluated: bool) -> Path:
    log = RunLog(folder, resume_step=0)
    for step in range(1, steps + 1):
        log.train(step, {"loss": float("nan") if step == 5 else 1 / step, "lr": 1e-4 * step})
        if evaluated and step % 10 == 0:
            log.val(step, {"loss": 1 / step, "top1": step / steps})
    log.close()
    return folder


def test_accuracy_gets_its_own_panel_only_when_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    plain = curves(run_with(tmp_path, 20, evaluated=False))
    evaluated = curves(run_with(tmp_path / "other", 120, evaluated=True), tmp_path / "accuracy.png")
    assert plain == tmp_path / "curves.png"
    assert evaluated == tmp_path / "accuracy.png"
    with Image.open(plain) as two, Image.open(evaluated) as three:
        assert two.format == "PNG"
        assert three.width == two.width * 3 // 2
        assert three.convert("L").getextrema() == (0, 255)


def test_a_run_of_one_step_can_be_drawn(tmp_path: Path) -> None:
    assert curves(run_with(tmp_path, 1, evaluated=False)).exists()


def test_a_run_without_a_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnmaskError, match="holds no training step"):
        curves(tmp_path)


def test_small_images_are_scaled_up_pixel_by_pixel(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    out = reconstruction_grid(images, images, images / 255, images, tmp_path / "grid.png")
    sheet = np.array(Image.open(out))
    expected = images[0].repeat(5, axis=0).repeat(5, axis=1)
    for column in range(4):
        left = 8 + column * 168
        assert np.array_equal(sheet[26:186, left : left + 160], expected)
    assert np.array_equal(sheet[194:354, 8:168], images[1].repeat(5, axis=0).repeat(5, axis=1))


def test_grey_many_channel_and_overshooting_images_are_drawn(tmp_path: Path) -> None:
    grey = np.full((1, 160, 160, 1), 77, np.uint8)
    many = np.full((1, 160, 160, 12), 0.5)
    bright = np.full((1, 160, 160, 3), 1.7)
    dark = np.full((1, 160, 160, 3), np.nan)
    sheet = np.array(Image.open(reconstruction_grid(grey, many, bright, dark, tmp_path / "grid.png")))
    centres = [sheet[100, 88 + 168 * column].tolist() for column in range(4)]
    assert centres == [[77] * 3, [128] * 3, [255] * 3, [0] * 3]


def test_captions_and_note_add_room_below(tmp_path: Path) -> None:
    images = np.zeros((2, 160, 200, 3), np.uint8)
    arrays = (images, images, images, images)
    plain = reconstruction_grid(*arrays, tmp_path / "plain.png")
    told = reconstruction_grid(*arrays, tmp_path / "told.png", captions=["one", "two"], note="why")
    with Image.open(plain) as before, Image.open(told) as after:
        assert after.width == before.width
        assert after.height == before.height + 3 * 26
