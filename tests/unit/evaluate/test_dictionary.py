"""The dictionary of patches, against what it is said to be."""

from __future__ import annotations

import numpy as np
import pytest

from unmask.evaluate.dictionary import Dictionary, means
from unmask.models.handmade import PARTS, PATCH, WORDS


def images(count: int, side: int, channels: int, seed: int = 0) -> np.ndarray:
    """Noise that is smoothed a little, so that neighbours are alike as in photographs."""
    noise = np.random.default_rng(seed).random((count, side + 2, side + 2, channels), np.float32)
    return (noise[:, 2:, 2:] + noise[:, 1:-1, 1:-1] + noise[:, :-2, :-2]) / 3


def learned(pictures: np.ndarray) -> Dictionary:
    found = Dictionary.learn(pictures, np.random.default_rng(0))
    assert found is not None
    return found


@pytest.mark.parametrize("channels", [1, 3, 12])
def test_shapes_and_that_it_is_the_same_each_time(channels: int) -> None:
    pictures = images(60, 20, channels)
    one, other = learned(pictures), learned(pictures)
    assert one.filters.shape == (PATCH * PATCH * channels, WORDS)
    assert np.array_equal(one.filters, other.filters)
    answers = one.describe(pictures[:5])
    assert answers.shape == (5, PARTS, PARTS, WORDS)
    assert (answers >= 0).all()
    assert np.array_equal(answers[3:], one.describe(pictures[3:5])), "an image is described alone"


def test_a_field_is_described_by_what_is_in_it() -> None:
    dictionary, picture = learned(images(60, 32, 1)), images(1, 32, 1, seed=9)
    changed = picture.copy()
    changed[:, :8, :8] = 1 - changed[:, :8, :8]
    different = np.abs(dictionary.describe(picture) - dictionary.describe(changed)).sum(-1)[0] > 0
    assert different.tolist() == [[True, False, False], [False, False, False], [False, False, False]]


def test_brightness_and_contrast_of_an_image_hardly_count() -> None:
    dictionary, pictures = learned(images(60, 24, 3)), images(4, 24, 3, seed=5)
    for other in (pictures + np.float32(0.2), pictures * np.float32(0.7)):
        np.testing.assert_allclose(dictionary.describe(other), dictionary.describe(pictures), atol=0.02)


def test_flat_ground_says_nothing_and_images_may_be_too_small() -> None:
    flat = np.full((3, 16, 16, 1), 0.5, np.float32)
    answers = learned(images(60, 16, 1)).describe(flat)
    assert np.isfinite(answers).all()
    assert np.array_equal(answers[0], answers[1])
    assert np.isfinite(learned(flat).describe(flat)).all(), "nothing but flat ground to learn from"
    assert Dictionary.learn(images(4, PATCH + PARTS - 2, 1), np.random.default_rng(0)) is None


def test_means_over_fields_whose_edges_are_within_pixels() -> None:
    values = np.arange(49, dtype=np.float32).reshape(1, 7, 7, 1)
    found = means(values, 3)[0, :, :, 0]
    whole = np.kron(values[0, :, :, 0], np.ones((3, 3)))  # each pixel as 3 x 3, of which a field has 7 x 7
    np.testing.assert_allclose(found, whole.reshape(3, 7, 3, 7).mean((1, 3)), rtol=1e-5)
