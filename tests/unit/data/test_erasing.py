from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from unmask.data.augment.erasing import RandomErasing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def erasing(prob: float = 1.0, mode: str = "const", count: int = 1) -> RandomErasing:
    return RandomErasing(prob, mode, count, MEAN, STD)  # pyright: ignore[reportArgumentType]


def erased(which: RandomErasing, seed: int = 0, size: tuple[int, int] = (64, 96)) -> NDArray[np.uint8]:
    """A white image after erasing. Noise is white at times, but seldom."""
    image = np.full((*size, 3), 255, np.uint8)
    which(image, np.random.default_rng(seed))
    return image


def test_probability() -> None:
    hits = [not (erased(erasing(0.25), seed) == 255).all() for seed in range(2000)]
    assert np.mean(hits) == pytest.approx(0.25, abs=0.039)  # 4 standard errors
    assert (erased(erasing(0.0)) == 255).all()


def test_areas_and_shapes_are_those_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([box for _ in range(3000) for box in erasing().boxes(rng, 1000, 1000)])
    assert len(boxes) == 3000
    share, aspect = boxes[:, 2] * boxes[:, 3] / 1e6, np.log(boxes[:, 2] / boxes[:, 3])
    assert share.min() > 0.0198  # sides are rounded
    assert share.max() < 1 / 3 + 0.0012
    # Uniform, but that the largest and longest boxes do not fit in 1 of some 300 attempts, and then are drawn anew.
    assert share.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.012)
    assert np.abs(aspect).max() <= -np.log(0.3) + 0.01
    assert aspect.mean() == pytest.approx(0, abs=4 * 1.204 / np.sqrt(3 * 3000))
    assert np.mean(np.abs(aspect) < 0.602) == pytest.approx(0.5, abs=0.05)
    assert (boxes[:, 0] + boxes[:, 2]).max() <= 1000
    assert (boxes[:, 1] + boxes[:, 3]).max() <= 1000
    assert boxes[:, :2].min() <= 2


def test_boxes_share_the_area_of_one() -> None:
    rng = np.random.default_rng(0)
    draws = [list(erasing(count=3).boxes(rng, 1000, 1000)) for _ in range(3000)]
    numbers = np.array([len(boxes) for boxes in draws])
    for count in (1, 2, 3):
        assert np.mean(numbers == count) == pytest.approx(1 / 3, abs=0.035)  # 4 standard errors
        areas = [h * w / 1e6 for boxes in draws if len(boxes) == count for *_, h, w in boxes]
        assert 0.0195 / count < min(areas)
        assert max(areas) < (1 / 3 + 0.002) / count


def test_modes() -> None:
    mean = np.rint(255 * np.array(MEAN)).astype(np.uint8)
    const = erased(erasing())
    assert {tuple(color) for color in const.reshape(-1, 3).tolist()} == {(255, 255, 255), tuple(mean.tolist())}

    colors = [
        {tuple(c) for c in erased(erasing(mode="rand"), seed).reshape(-1, 3).tolist()} - {(255,) * 3}
        for seed in range(400)
    ]
    assert {len(found) for found in colors} == {1}, "one colour a box"
    values = np.array([next(iter(found)) for found in colors])
    # The distribution is clipped at about two standard deviations, which moves its middle little.
    np.testing.assert_allclose(np.median(values, 0), mean, atol=4 * 1.25 * 58 / 20)
    assert 45 < values.std(0).min() < values.std(0).max() < 62

    top, left, height, width = next(erasing().boxes(np.random.default_rng(1), 200, 200))
    image = np.full((200, 200, 3), 255, np.uint8)
    box = image[top : top + height, left : left + width]
    box[:] = erasing(mode="pixel")._colors(np.random.default_rng(0), height, width, box.dtype)  # pyright: ignore
    np.testing.assert_allclose(np.median(box, (0, 1)), mean, atol=4)
    np.testing.assert_allclose(box.std((0, 1)), 255 * np.array(STD), rtol=0.06)
    assert abs(np.corrcoef(box[:, :-1, 0].ravel(), box[:, 1:, 0].ravel())[0, 1]) < 0.1


def test_the_image_is_changed_in_its_boxes_alone() -> None:
    rng = np.random.default_rng(3)
    assert rng.random() < 1
    boxes = list(erasing(count=3).boxes(rng, 64, 96))
    image = erased(erasing(count=3), seed=3)
    outside = np.ones((64, 96), bool)
    for top, left, height, width in boxes:
        outside[top : top + height, left : left + width] = False
    assert_array_equal((image == 255).all(2), outside)


def test_a_grey_image_and_one_of_a_pixel() -> None:
    grey = RandomErasing(1.0, "pixel", 1, (0.1307,), (0.3081,))
    image = np.full((28, 28, 1), 200, np.uint8)
    grey(image, np.random.default_rng(0))
    assert (image != 200).any()
    tiny = np.full((1, 1, 1), 200, np.uint8)
    grey(tiny, np.random.default_rng(0))
    assert tiny.tolist() == [[[200]]]
