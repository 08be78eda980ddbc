from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from unmask.errors import UnmaskError
from unmask.report.log import RunLog, read_log
from unmask.report.pictures import _draw_loss, _title, contact_sheet, curves, reconstruction_grid


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


def test_the_title_tells_run_epochs_and_accuracy(tmp_path: Path) -> None:
    folder = run_with(tmp_path, 120, evaluated=True)
    rows = read_log(folder / "metrics.jsonl")
    train, val = ([row for row in rows if row["split"] == split] for split in ("train", "val"))
    name = tmp_path.name
    assert _title(folder, train, val) == f"{name}  ·  120 steps  ·  accuracy 100.0%"
    (folder / "run.yaml").write_text("config: {train: {epochs: 2.5}}")
    assert _title(folder, train, val) == f"{name}  ·  2.5 epochs  ·  120 steps  ·  accuracy 100.0%"


def test_the_start_of_a_run_does_not_squash_the_rest() -> None:
    steps = np.arange(1, 1001)
    falling = 0.5 + 0.1 * np.exp(-steps / 300) + 5 * np.exp(-steps / 5)
    for loss, low, high in ((falling, 0.4, 0.7), (falling[:30], 0, 6), (falling[100:], 0.4, 0.7)):
        axis = Figure().subplots()
        _draw_loss(axis, [{"step": step, "loss": float(value)} for step, value in enumerate(loss, 1)], [])
        bottom, top = axis.get_ylim()
        assert low < bottom < loss.min() < top < high
        assert top > loss[len(loss) // 20 :].max()


def test_of_a_name_too_wide_the_middle_is_left_out(tmp_path: Path) -> None:
    black = np.zeros((1, 160, 160, 1), np.uint8)
    sheets = [
        np.asarray(Image.open(contact_sheet(black, tmp_path / "sheet.png", captions=[text]))).copy()
        for text in ("a" * 200, "a" * 400, "a" * 200 + "b", "a")
    ]
    assert np.array_equal(sheets[0], sheets[1])
    assert not np.array_equal(sheets[0], sheets[2])
    assert (sheets[0][168:, 168:] == 255).all(), "nothing beside the picture"


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
