import math
from io import BytesIO

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from unmask.config.schema import DataConfig
from unmask.data.augment.crop import center_crop, random_resized_crop_box
from unmask.data.decode.picture import Picture
from unmask.data.rng import Op, generator

SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)


def boxes(size: tuple[int, int], count: int = 2000) -> np.ndarray:
    return np.array([random_resized_crop_box(generator(0, 0, i, Op.CROP), size, SCALE, RATIO) for i in range(count)])


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (224, 224)])
def test_crops_are_inside_and_within_the_ranges(size: tuple[int, int]):
    left, top, width, height = boxes(size).T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left + width <= size[1]).all()
    assert (top + height <= size[0]).all()
    area, ratio = width * height / (size[0] * size[1]), width / height
    assert 0.195 < area.min() < 0.21  # rounding to whole pixels
    assert 0.97 < area.max() <= 1.005
    assert 0.74 < ratio.min() < 0.76
    assert 1.32 < ratio.max() < 1.345


def test_area_is_uniform_and_ratio_log_uniform():
    """On an image large enough for every shape to fit."""
    rng = np.random.default_rng(0)
    drawn = np.array([random_resized_crop_box(rng, (1000, 1000), (0.1, 0.5), RATIO) for _ in range(4000)])
    _, _, width, height = drawn.T
    area, ratio = width * height / 1e6, np.log(width / height) / math.log(4 / 3)
    assert abs(area.mean() - 0.3) < 0.01
    assert abs(area.std() - 0.4 / math.sqrt(12)) < 0.005
    assert abs(ratio.mean()) < 0.04
    assert abs(ratio.std() - 2 / math.sqrt(12)) < 0.02


def test_places_are_uniform():
    left, _, width, _ = boxes((375, 500)).T
    free = 500 - width
    assert abs((left[free > 50] / free[free > 50]).mean() - 0.5) < 0.02


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1000, 10), (0, 493, 10, 13)),  # height 10 / (3/4)
        ((10, 1000), (493, 0, 13, 10)),  # width 10 * 4/3
        ((1, 1), (0, 0, 1, 1)),
    ],
)
def test_shape_that_never_fits_falls_back_to_the_centre(size: tuple[int, int], expected: tuple[int, ...]):
    assert random_resized_crop_box(np.random.default_rng(0), size, (0.9, 1.0), RATIO) == expected


def picture(height: int, width: int) -> tuple[Picture, Image.Image]:
    y, x = np.mgrid[:height, :width]
    image = Image.fromarray(np.stack([x % 256, y % 256, (x * y) % 256], -1).astype(np.uint8))
    file = BytesIO()
    image.save(file, "PNG")
    return Picture(file.getvalue(), 3, 10**8), image


@pytest.mark.parametrize(
    ("height", "width", "resized"), [(375, 500, (341, 256)), (500, 375, (256, 341)), (64, 64, (256, 256))]
)
def test_center_crop_is_the_usual_evaluation(height: int, width: int, resized: tuple[int, int]):
    source, image = picture(height, width)
    whole = np.asarray(image.resize(resized, Image.Resampling.BICUBIC))
    top, left = round((whole.shape[0] - 224) / 2), round((whole.shape[1] - 224) / 2)
    cropped = center_crop(source, (224, 224), DataConfig(eval_crop=224 / 256))
    difference = np.abs(cropped.astype(int) - whole[top : top + 224, left : left + 224])
    assert difference.mean() <= 0.3
    assert difference[..., :2].max() <= 2  # the last channel is noise


def test_center_crop_without_margin_is_the_whole_image():
    source, image = picture(28, 28)
    assert_array_equal(center_crop(source, (28, 28), DataConfig(eval_crop=1)), np.asarray(image))


@pytest.mark.parametrize("size", [(96, 224), (224, 96), (100, 300)])
@pytest.mark.parametrize("image", [(375, 500), (500, 120), (30, 31)])
def test_center_crop_of_another_shape_covers_it(size: tuple[int, int], image: tuple[int, int]):
    source, _ = picture(*image)
    assert center_crop(source, size, DataConfig(eval_crop=0.875)).shape == (*size, 3)
