"""The policy notation, and what policies draw."""

from __future__ import annotations

import math
import pickle
from collections import Counter

import numpy as np
import pytest

from unmask.config.policies import Policy, Step, parse_policy
from unmask.data.augment.operations import OPERATIONS

DRAWS = 6000
POLICIES = ["rand-m9-mstd0.5-inc1", "rand-w0", "rand-tweights", "rand-t3aw", "original", "originalr", "v0", "v0r", "3a"]


def drawn(text: str, count: int = DRAWS) -> list[list[tuple[str, float]]]:
    policy, rng = parse_policy(text), np.random.default_rng(0)
    return [policy.draw(rng) for _ in range(count)]


def errors(probability: float, count: int) -> float:
    """Four standard errors of a relative frequency: one draw in 16,000 is further off, and the seed is fixed."""
    return 4 * math.sqrt(probability * (1 - probability) / count)


@pytest.mark.parametrize("text", POLICIES)
def test_policies_hold_known_operations_and_go_to_other_processes(text: str) -> None:
    policy = parse_policy(text)
    assert {step.name for chain in policy.chains for step in chain} <= OPERATIONS.keys()
    assert pickle.loads(pickle.dumps(policy)) == policy


def test_rand_augment_of_the_published_recipes() -> None:
    policy = parse_policy("rand-m9-mstd0.5-inc1")
    assert [chain[0].name for chain in policy.chains] == [
        "AutoContrast", "Equalize", "Invert", "Rotate", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd",
        "ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing", "ShearX", "ShearY",
        "TranslateXRel", "TranslateYRel",
    ]  # fmt: skip
    assert {(len(chain), chain[0].probability, chain[0].magnitude) for chain in policy.chains} == {(1, 0.5, 9)}
    assert (policy.count, policy.weights, policy.magnitude_std, policy.magnitude_max) == (2, None, 0.5, 10)

    samples = drawn("rand-m9-mstd0.5-inc1")
    lengths = Counter(len(steps) for steps in samples)
    for length, probability in enumerate((0.25, 0.5, 0.25)):
        assert lengths[length] / DRAWS == pytest.approx(probability, abs=errors(probability, DRAWS))
    names = Counter(name for steps in samples for name, _ in steps)
    for chain in policy.chains:
        assert names[chain[0].name] / (2 * DRAWS) == pytest.approx(1 / 30, abs=errors(1 / 30, 2 * DRAWS))
    magnitudes = np.array([magnitude for steps in samples for _, magnitude in steps])
    assert magnitudes.max() == 10
    assert np.mean(magnitudes == 10) == pytest.approx(0.0228, abs=errors(0.0228, len(magnitudes)))  # 2 sigma
    assert np.median(magnitudes) == pytest.approx(9, abs=4 * 1.25 * 0.5 / math.sqrt(len(magnitudes)))
    within = np.mean(np.abs(magnitudes - 9) < 0.5)
    assert within == pytest.approx(0.6827, abs=errors(0.6827, len(magnitudes)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rand", {"count": 2, "magnitude_std": 0.0, "magnitude_max": 10.0}),
        ("rand-n3-m5", {"count": 3}),
        ("rand-mstd0.5-m9-mmax20", {"magnitude_std": 0.5, "magnitude_max": 20.0}),
        ("rand-mstd100", {"magnitude_std": 100.0}),
        ("rand-mstd101", {"magnitude_std": math.inf}),
        ("rand-mstdinf", {"magnitude_std": math.inf}),
        ("original-mstd0.5", {"magnitude_std": 0.5, "count": 1}),
        ("3a-mstd.5", {"magnitude_std": 0.5}),
    ],
)
def test_options(text: str, expected: dict[str, float]) -> None:
    policy = parse_policy(text)
    assert {name: getattr(policy, name) for name in expected} == expected


def test_options_of_the_steps() -> None:
    assert {chain[0] for chain in parse_policy("rand-m7-p0.9-t3a").chains} == {
        Step("SolarizeIncreasing", 0.9, 7), Step("Desaturate", 0.9, 7), Step("GaussianBlur", 0.9, 7),
    }  # fmt: skip
    plain, increasing = ([chain[0].name for chain in parse_policy(text).chains] for text in ("rand-inc0", "rand-inc1"))
    assert plain == [name.removesuffix("Increasing") for name in increasing]
    assert parse_policy("rand-inc0") == parse_policy("rand")


def test_a_uniform_magnitude_lies_between_0_and_m() -> None:
    magnitudes = np.array([magnitude for steps in drawn("rand-m6-mstd101-p1") for _, magnitude in steps])
    assert len(magnitudes) == 2 * DRAWS
    assert 0 <= magnitudes.min() < 0.01
    assert 5.99 < magnitudes.max() <= 6
    assert magnitudes.mean() == pytest.approx(3, abs=4 * 6 / math.sqrt(12 * len(magnitudes)))


def test_magnitudes_stay_within_0_and_mmax() -> None:
    magnitudes = [magnitude for steps in drawn("rand-m14-mstd5-mmax15", 1000) for _, magnitude in steps]
    assert max(magnitudes) == 15
    low = [magnitude for steps in drawn("rand-m1-mstd5", 1000) for _, magnitude in steps]
    assert min(low) == 0


def test_weighted_operations_are_drawn_without_replacement() -> None:
    policy = parse_policy("rand-tweights-p1")
    samples = drawn("rand-tweights-p1")
    assert all(len({name for name, _ in steps}) == 2 for steps in samples)
    first = Counter(steps[0][0] for steps in samples)
    assert policy.weights is not None
    assert sum(policy.weights) == pytest.approx(1)
    for chain, weight in zip(policy.chains, policy.weights, strict=True):
        assert first[chain[0].name] / DRAWS == pytest.approx(weight, abs=errors(weight, DRAWS))
    assert not {"Posterize", "Invert"} & {name for steps in drawn("rand-w0-p1", 1000) for name, _ in steps}


def test_auto_augment_draws_one_of_25_pairs() -> None:
    policy = parse_policy("v0")
    assert (len(policy.chains), {len(chain) for chain in policy.chains}) == (25, {2})
    assert policy.chains[0] == (Step("Equalize", 0.8, 1), Step("ShearY", 0.8, 4))
    expected = Counter[str]()
    for chain in policy.chains:
        for step in chain:
            expected[step.name] += step.probability / 25  # pyright: ignore[reportArgumentType]
    names = Counter(name for steps in drawn("v0") for name, _ in steps)
    for name, rate in expected.items():
        assert names[name] / DRAWS == pytest.approx(rate, abs=4 * math.sqrt(rate / DRAWS)), name


@pytest.mark.parametrize(
    ("plain", "other", "change"),
    [
        ("original", "originalr", ("PosterizeOriginal", "PosterizeIncreasing")),
        ("v0", "v0r", ("Posterize", "PosterizeIncreasing")),
    ],
)
def test_the_r_policies_differ_in_posterize_alone(plain: str, other: str, change: tuple[str, str]) -> None:
    def steps(policy: Policy) -> list[Step]:
        return [step for chain in policy.chains for step in chain]

    pairs = list(zip(steps(parse_policy(plain)), steps(parse_policy(other)), strict=True))
    assert {(a.name, b.name) for a, b in pairs if a != b} == {change}
    assert all((a.probability, a.magnitude) == (b.probability, b.magnitude) for a, b in pairs)


def test_three_augment_does_one_of_three_things() -> None:
    samples = drawn("3a")
    assert {len(steps) for steps in samples} == {1}
    counts = Counter(steps[0] for steps in samples)
    assert counts.keys() == {("Solarize", 5), ("Desaturate", 10), ("GaussianBlurRand", 10)}
    for count in counts.values():
        assert count / DRAWS == pytest.approx(1 / 3, abs=errors(1 / 3, DRAWS))
    assert OPERATIONS["Solarize"].argument(5, np.random.default_rng(0)) == 128


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("augmix-m3", "AugMix is not supported"),
        ("", "'' is no policy; take rand-m9"),
        ("randm9", "'randm9' is no policy"),
        ("rand-x3", "'x3' is no option; there are mstd, mmax, inc, m, n, p, w"),
        ("rand-mstd", "'mstd' is no option"),
        ("rand-m9.5", "m takes a whole number, not 9.5"),
        ("rand-m9-m8", "m is given twice"),
        ("rand-p2", "p is a probability"),
        ("rand-tfoo", "tfoo is no set of operations; take tweights, t3a, t3aw"),
        ("rand-w1", "w0 is the only set of weights"),
        ("rand-w0-tweights", "give one of t and w"),
        ("rand-w0-n14", "n14 is more than the 13 operations"),
        ("original-m9", "'m9' is no option; there are mstd"),
    ],
)
def test_what_is_no_policy_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        parse_policy(text)
    assert message in str(error.value)
