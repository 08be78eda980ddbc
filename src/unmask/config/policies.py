"""Augmentation policies, which choose operations: RandAugment, AutoAugment and 3-Augment in timm's notation.

A policy string is a name and options joined by dashes. RandAugment (Cubuk et al. 2019) is `rand`, with

    m9        magnitude of every operation (10)
    n2        operations per image (2)
    p0.5      probability that a chosen operation is applied (0.5)
    mstd0.5   standard deviation of the magnitude (0); above 100 or `inf`: uniform between 0 and m
    mmax10    largest magnitude after that (10)
    inc1      operations whose effect grows with the magnitude (0)
    tNAME     other operations: `weights` (timm's weighted choice), `3a` (3-Augment's), `3aw` (those preferred)
    w0        the weighted choice of timm before 0.8, without posterize and invert

`original`, `originalr`, `v0` and `v0r` are AutoAugment (Cubuk et al. 2018; the TPU code), `r` with posterize growing
with the magnitude; `3a` is 3-Augment (DeiT III): solarize, grey or blur. These take mstd alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

_MAGNITUDE = 10.0
_MOST_OPERATIONS = 100
_UNIFORM_FROM = 100.0
"""A larger standard deviation asks for a uniform magnitude."""


@dataclass(frozen=True)
class Step:
    """One operation of a policy."""

    name: str
    probability: float
    magnitude: float


@dataclass(frozen=True)
class Policy:
    """Draws `count` of its chains of operations for each image: evenly with replacement, or by `weights` without."""

    chains: tuple[tuple[Step, ...], ...]
    count: int = 1
    weights: tuple[float, ...] | None = None
    """Probability of each chain."""
    magnitude_std: float = 0.0
    """Of the normal distribution around a step's magnitude; infinite: uniform between 0 and it."""
    magnitude_max: float = _MAGNITUDE

    def draw(self, rng: np.random.Generator) -> list[tuple[str, float]]:
        """The operations for one image, in order, each with its magnitude."""
        steps = [step for chain in self._chosen(rng) for step in self.chains[chain]]
        return [(s.name, self._magnitude(s.magnitude, rng)) for s in steps if rng.random() < s.probability]

    def _chosen(self, rng: np.random.Generator) -> list[int]:
        if self.weights is None:
            return rng.integers(len(self.chains), size=self.count).tolist()
        return rng.choice(len(self.chains), self.count, replace=False, p=self.weights).tolist()

    def _magnitude(self, mean: float, rng: np.random.Generator) -> float:
        if math.isinf(self.magnitude_std):
            mean = rng.uniform(0, mean)
        elif self.magnitude_std > 0:
            mean = rng.normal(mean, self.magnitude_std)
        return min(max(mean, 0.0), self.magnitude_max)


def parse_policy(text: str) -> Policy:
    """The policy of a string as above. Raises ValueError, in one line, when it is none."""
    name, *options = text.split("-")
    if name == "rand":
        return _rand_augment(text, options)
    if name in _FIXED:
        values = _numbers(text, options, {"mstd": float})
        return Policy(_FIXED[name], magnitude_std=_spread(values.get("mstd", 0.0)))
    hint = "AugMix is not supported" if name == "augmix" else f"{name!r} is no policy"
    raise ValueError(f"{text!r}: {hint}; take rand-m9-mstd0.5-inc1, {', '.join(_FIXED)}")


def _rand_augment(text: str, options: list[str]) -> Policy:
    named = [option[1:] for option in options if option.startswith("t")]
    numeric = [option for option in options if not option.startswith("t")]
    kinds = {"mstd": float, "mmax": int, "inc": int, "m": int, "n": int, "p": float, "w": int}
    values = _numbers(text, numeric, kinds)
    if len(named) > 1 or (named and "w" in values):
        raise ValueError(f"{text!r}: the operations are chosen twice; give one of t and w")
    if named and named[0] not in _SETS:
        raise ValueError(f"{text!r}: t{named[0]} is no set of operations; take t{', t'.join(_SETS)}")
    if values.get("w", 0) != 0:
        raise ValueError(f"{text!r}: w0 is the only set of weights")
    if not 0 <= values.get("p", 0.5) <= 1:
        raise ValueError(f"{text!r}: p is a probability, 0 to 1")
    weighted = _SETS[named[0]] if named else _operations(increasing=values.get("inc", 0) != 0, weighted="w" in values)
    magnitude, count = values.get("m", _MAGNITUDE), int(values.get("n", 2))
    weights = None if any(w is None for w in weighted.values()) else _shares(weighted)
    if not 0 <= count <= _MOST_OPERATIONS:
        raise ValueError(f"{text!r}: n{count} is no number of operations an image; take n0 to n{_MOST_OPERATIONS}")
    if weights is not None and count > np.count_nonzero(weights):
        raise ValueError(f"{text!r}: n{count} is more than the {np.count_nonzero(weights)} operations of the set")
    return Policy(
        tuple((Step(name, values.get("p", 0.5), magnitude),) for name in weighted),
        count=count,
        weights=weights,
        magnitude_std=_spread(values.get("mstd", 0.0)),
        magnitude_max=values.get("mmax", _MAGNITUDE),
    )


def _numbers(text: str, options: list[str], kinds: Mapping[str, type[int] | type[float]]) -> dict[str, float]:
    """Options such as m9 by their letters."""
    values: dict[str, float] = {}
    for option in options:
        match = re.fullmatch(r"([a-z]+?)(inf|\d*\.?\d+)", option)
        if match is None or match[1] not in kinds:
            raise ValueError(f"{text!r}: {option!r} is no option; there are {', '.join(kinds)}, each with a number")
        key, number = match[1], match[2]
        if key in values:
            raise ValueError(f"{text!r}: {key} is given twice")
        if kinds[key] is int and not number.isdecimal():
            raise ValueError(f"{text!r}: {key} takes a whole number, not {number}")
        values[key] = float(number)
    return values


def _spread(mstd: float) -> float:
    return math.inf if mstd > _UNIFORM_FROM else mstd


def _shares(weights: Mapping[str, float | None]) -> tuple[float, ...]:
    total = sum(weight or 0.0 for weight in weights.values())
    return tuple((weight or 0.0) / total for weight in weights.values())


_BOTH = ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")
"""Operations that also come growing with the magnitude."""
_W0: dict[str, float] = {
    "AutoContrast": 0.025, "Equalize": 0.005, "Invert": 0, "Rotate": 0.3, "Posterize": 0, "Solarize": 0.005,
    "SolarizeAdd": 0.005, "Color": 0.025, "Contrast": 0.005, "Brightness": 0.005, "Sharpness": 0.025, "ShearX": 0.2,
    "ShearY": 0.2, "TranslateXRel": 0.1, "TranslateYRel": 0.1,
}  # fmt: skip


def _operations(*, increasing: bool, weighted: bool) -> dict[str, float | None]:
    """RandAugment's own 15 operations."""
    names = {name: f"{name}Increasing" if increasing and name in _BOTH else name for name in _W0}
    return {names[name]: weight if weighted else None for name, weight in _W0.items()}


_SETS: dict[str, Mapping[str, float | None]] = {
    "weights": {
        "Rotate": 3, "ShearX": 2, "ShearY": 2, "TranslateXRel": 1, "TranslateYRel": 1, "ColorIncreasing": 0.25,
        "SharpnessIncreasing": 0.25, "AutoContrast": 0.25, "SolarizeIncreasing": 0.05, "SolarizeAdd": 0.05,
        "ContrastIncreasing": 0.05, "BrightnessIncreasing": 0.05, "Equalize": 0.05, "PosterizeIncreasing": 0.05,
        "Invert": 0.05,
    },
    "3a": dict.fromkeys(("SolarizeIncreasing", "Desaturate", "GaussianBlur")),
    "3aw": {
        "SolarizeIncreasing": 6, "Desaturate": 6, "GaussianBlur": 6, "Rotate": 3, "ShearX": 2, "ShearY": 2,
        "PosterizeIncreasing": 1, "AutoContrast": 1, "ColorIncreasing": 1, "SharpnessIncreasing": 1,
        "ContrastIncreasing": 1, "BrightnessIncreasing": 1, "Equalize": 1, "Invert": 1,
    },
}  # fmt: skip


def _chains(table: str) -> tuple[tuple[Step, ...], ...]:
    """One chain a line: operation, probability and magnitude, the steps separated by commas."""
    return tuple(
        tuple(Step(name, float(p), float(m)) for name, p, m in (step.split() for step in line.split(",")))
        for line in table.strip().splitlines()
    )


_ORIGINAL = """
PosterizeOriginal 0.4 8, Rotate 0.6 9
Solarize 0.6 5, AutoContrast 0.6 5
Equalize 0.8 8, Equalize 0.6 3
PosterizeOriginal 0.6 7, PosterizeOriginal 0.6 6
Equalize 0.4 7, Solarize 0.2 4
Equalize 0.4 4, Rotate 0.8 8
Solarize 0.6 3, Equalize 0.6 7
PosterizeOriginal 0.8 5, Equalize 1.0 2
Rotate 0.2 3, Solarize 0.6 8
Equalize 0.6 8, PosterizeOriginal 0.4 6
Rotate 0.8 8, Color 0.4 0
Rotate 0.4 9, Equalize 0.6 2
Equalize 0.0 7, Equalize 0.8 8
Invert 0.6 4, Equalize 1.0 8
Color 0.6 4, Contrast 1.0 8
Rotate 0.8 8, Color 1.0 2
Color 0.8 8, Solarize 0.8 7
Sharpness 0.4 7, Invert 0.6 8
ShearX 0.6 5, Equalize 1.0 9
Color 0.4 0, Equalize 0.6 3
Equalize 0.4 7, Solarize 0.2 4
Solarize 0.6 5, AutoContrast 0.6 5
Invert 0.6 4, Equalize 1.0 8
Color 0.6 4, Contrast 1.0 8
Equalize 0.8 8, Equalize 0.6 3
"""
_V0 = """
Equalize 0.8 1, ShearY 0.8 4
Color 0.4 9, Equalize 0.6 3
Color 0.4 1, Rotate 0.6 8
Solarize 0.8 3, Equalize 0.4 7
Solarize 0.4 2, Solarize 0.6 2
Color 0.2 0, Equalize 0.8 8
Equalize 0.4 8, SolarizeAdd 0.8 3
ShearX 0.2 9, Rotate 0.6 8
Color 0.6 1, Equalize 1.0 2
Invert 0.4 9, Rotate 0.6 0
Equalize 1.0 9, ShearY 0.6 3
Color 0.4 7, Equalize 0.6 0
Posterize 0.4 6, AutoContrast 0.4 7
Solarize 0.6 8, Color 0.6 9
Solarize 0.2 4, Rotate 0.8 9
Rotate 1.0 7, TranslateYRel 0.8 9
ShearX 0.0 0, Solarize 0.8 4
ShearY 0.8 0, Color 0.6 4
Color 1.0 0, Rotate 0.6 2
Equalize 0.8 4, Equalize 0.0 8
Equalize 1.0 4, AutoContrast 0.6 2
ShearY 0.4 7, SolarizeAdd 0.6 7
Posterize 0.8 2, Solarize 0.6 10
Solarize 0.6 8, Equalize 0.6 1
Color 0.8 6, Rotate 0.4 5
"""
_FIXED: dict[str, tuple[tuple[Step, ...], ...]] = {
    "original": _chains(_ORIGINAL),
    "originalr": _chains(_ORIGINAL.replace("PosterizeOriginal", "PosterizeIncreasing")),
    "v0": _chains(_V0),
    "v0r": _chains(_V0.replace("Posterize", "PosterizeIncreasing")),
    "3a": _chains("Solarize 1 5\nDesaturate 1 10\nGaussianBlurRand 1 10"),
}
