"""The probe on features whose best linear classifier is known."""

from __future__ import annotations

import numpy as np
import pytest

from unmask.errors import DataError
from unmask.evaluate import fast_probe as module
from unmask.evaluate.fast_probe import fit_probe
from unmask.evaluate.features import Features


@pytest.fixture(autouse=True)
def _fewer_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_STEPS", 300)


def gaussians(count: int, seed: int, distance: float = 4.0) -> Features:
    """Three classes of unit Gaussians in 8 dimensions, on scales from 0.001 to 1000 and far from zero."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=count)
    values = rng.normal(size=(count, 8))
    values[np.arange(count), labels] += distance
    return Features((values * np.logspace(-3, 3, 8) + 100 * np.logspace(-3, 3, 8)).astype(np.float32), labels)


def test_it_comes_near_the_best_possible_whatever_the_scale_of_the_features() -> None:
    train, val = gaussians(1000, 0), gaussians(3000, 1)
    result = fit_probe(train, val, 3)
    # The Bayes classifier takes the largest of the first three, unscaled.
    bayes = ((val.values[:, :3] / np.logspace(-3, 3, 8)[:3]).argmax(1) == val.labels).mean()
    assert 0.98 < bayes < 1
    assert result.accuracy == pytest.approx(bayes, abs=0.005)
    assert result.accuracy == result.val[result.chosen]
    assert result.held_out[result.chosen] == max(result.held_out)


def test_the_gradient_leads_to_the_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full batches for long: the gradient of the cross entropy vanishes, for each learning rate separately."""
    monkeypatch.setattr(module, "_BATCH", 1000)
    monkeypatch.setattr(module, "MIN_STEPS", 1000)
    features = gaussians(300, 0, distance=1.0)
    rates = np.array([0.3, 0.1], np.float32)
    heads = module._Heads.fit(features, np.arange(300), 3, rates, 0, "fit")
    x = (features.values.astype(np.float64) - heads.mean) * heads.scale
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(x.std(0)[1:], 1, atol=0.05)  # of the first, 1e-6 is half of the variance
    for rate in range(2):
        logits = x @ heads.weight[:, rate] + heads.bias[rate]
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        error = p - np.eye(3)[features.labels]
        assert np.abs(x.T @ error / 300).max() < 1e-3
        assert np.abs(error.mean(0)).max() < 1e-3
    assert not np.array_equal(heads.weight[:, 0], heads.weight[:, 1])


def test_the_learning_rate_is_chosen_without_looking_at_val() -> None:
    train, val = gaussians(600, 0), gaussians(600, 1)
    wrong = Features(val.values, (val.labels + 1) % 3)
    right_choice, wrong_choice = fit_probe(train, val, 3), fit_probe(train, wrong, 3)
    assert wrong_choice.chosen == right_choice.chosen
    assert wrong_choice.held_out == right_choice.held_out
    assert wrong_choice.accuracy < 0.1


def test_images_that_cannot_be_decoded_do_not_count() -> None:
    train, val = gaussians(300, 0), gaussians(300, 1)
    expected = fit_probe(train, val, 3)

    def with_gaps(features: Features) -> Features:
        values = np.insert(features.values, 5, np.nan, axis=0)
        return Features(values, np.insert(features.labels, 5, -1))

    result = fit_probe(with_gaps(train), with_gaps(val), 3)
    assert np.isfinite(result.val).all()
    assert result.accuracy == pytest.approx(expected.accuracy, abs=0.02)


def test_the_same_seed_gives_the_same_bits() -> None:
    train, val = gaussians(200, 0), gaussians(200, 1)
    assert fit_probe(train, val, 3, seed=1) == fit_probe(train, val, 3, seed=1)


def test_a_class_of_one_image_is_refused() -> None:
    train = gaussians(50, 0)
    with pytest.raises(DataError, match="class 3 has 1"):
        fit_probe(Features(train.values, np.where(np.arange(50) == 0, 3, train.labels)), train, 4)
