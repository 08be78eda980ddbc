"""Features by hand as a part of a network: the same as those the teacher is fitted to, on both engines."""

from __future__ import annotations

from contextlib import closing
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from unmask.config.load import check_config
from unmask.config.schema import Config
from unmask.data.batch import Batch
from unmask.data.sources.arrays import ArraySource
from unmask.engines import create_engine
from unmask.engines.base import EngineState
from unmask.evaluate.features import Features
from unmask.evaluate.handmade import Handmade
from unmask.metrics import log_softmax
from unmask.models.handmade import handmade_shapes, resampling, shares
from unmask.objectives.base import create_objective
from unmask.objectives.classify import ClassifySection

CASES = {
    "grey, 24 pixels": ((24, 24), 1, 0.0, "uint8"),
    "colour, shrunk, mirrored": ((64, 64), 3, 0.5, "uint8"),
    "wide, shrunk by a broken number": ((40, 72), 3, 0.5, "uint8"),
    "five channels of 16 bits": ((20, 20), 5, 0.0, "uint16"),
    "too small for a dictionary": ((7, 7), 3, 0.5, "uint8"),
}
"""Size, channels, `data.flip` and dtype."""


@cache
def fitted(case: str) -> tuple[Config, NDArray[Any], dict[str, NDArray[Any]], NDArray[Any]]:
    """A configuration, images (B, H, W, C), what the network takes over, and the log-probabilities by NumPy."""
    (height, width), channels, flip, dtype = CASES[case]
    rng = np.random.default_rng(0)
    rough = rng.random((60, height // 4 + 2, width // 4 + 2, channels))
    smooth = rough.repeat(4, 1).repeat(4, 2)[:, :height, :width] + 0.1 * rng.random((60, height, width, channels))
    images = (smooth / smooth.max() * np.iinfo(dtype).max).astype(dtype)
    data = {"dtype": dtype, "flip": flip, "mean": [0.4] * channels, "std": [0.2] * channels, "eval_crop": 1.0}
    model = {"image_size": [height, width], "patch_size": 1, "channels": channels}
    config = check_config({"task": "finetune", "model": model, "data": data})
    source = ArraySource("images", images, labels=np.arange(60) % 3, class_names=("a", "b", "c"))
    handmade = Handmade(source, config)
    features = handmade.features(source, "")
    head = handmade.fit(features, 3)
    logits, _ = next(head.logits(Features(features.values, features.labels), np.arange(60)))
    return config, images, handmade.parameters(head), log_softmax(logits)


@pytest.mark.parametrize("case", CASES)
def test_shapes_are_known_beforehand(case: str) -> None:
    config, _, weights, _ = fitted(case)
    assert {name: tensor.shape for name, tensor in weights.items()} == handmade_shapes(config.model, 3)


QUICK = {"wide, shrunk by a broken number", "five channels of 16 bits"}
"""MindSpore compiles a graph for ten seconds."""


@pytest.mark.parametrize(
    ("engine", "precision", "case"),
    [
        pytest.param(engine, precision, case, marks=() if engine == "torch" or case in QUICK else pytest.mark.campaign)
        for engine, precision in (("torch", "fp32"), ("torch", "bf16"), ("mindspore", "fp32"))
        for case in CASES
    ],
)
def test_an_engine_says_the_same(engine: str, precision: str, case: str) -> None:
    """Of a classifier that is next to nothing but its teacher."""
    pytest.importorskip(engine, reason=f"{engine} is not installed")
    config, images, weights, expected = fitted(case)
    patch_size = int(np.gcd(*images.shape[1:3]))
    small = {"patch_size": patch_size, "width": 4, "depth": 1, "heads": 1, "num_classes": 3}
    config = config.model_copy(
        update={
            "engine": engine,
            "device": "cpu",
            "train": config.train.model_copy(update={"precision": precision}),
            "model": config.model.model_copy(update=small),
            "objective": ClassifySection(teacher=("handmade",), teacher_share=1 - 1e-6),
        }
    )
    objective = create_objective(config)
    with closing(create_engine(config, 1)) as network:
        network.load(EngineState({**objective.initial_weights(0), **weights}))
        found = network.output("logits", Batch(images, np.arange(len(images))))
    np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize(("parts", "size"), [(3, 7), (8, 8), (8, 5), (32, 64), (32, 45)])
def test_shares_of_places(parts: int, size: int) -> None:
    found = shares(parts, size)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(found.sum(0), parts / size, rtol=1e-5)
    assert (found >= 0).all()


@pytest.mark.parametrize(("after", "before"), [(32, 64), (32, 45), (32, 200)])
def test_resampling_is_what_pillow_does(after: int, before: int) -> None:
    row = np.random.default_rng(0).random((1, before)).astype(np.float32)
    expected = np.asarray(Image.fromarray(row).resize((after, 1), Image.Resampling.BICUBIC))[0]
    np.testing.assert_allclose(resampling(after, before) @ row[0], expected, atol=1e-5)
