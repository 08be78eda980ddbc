"""What parity tests share: one train step of any engine, seen through the public interface alone.

The gradient is read from the optimizer's state: with beta1 = 0 the first moment after one update is the gradient
itself. So every engine is held against a reference by the same tests.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unmask.config.schema import Config
from unmask.data.batch import Batch
from unmask.engines import create_engine
from unmask.engines.base import Engine, EngineState


@dataclass(frozen=True)
class Measured:
    loss: float
    gradients: dict[str, NDArray[np.float32]]
    engine: Engine
    """Still with the weights it was given: the step had learning rate 0."""


@pytest.fixture(params=["torch", "mindspore"])
def engine_name(request: pytest.FixtureRequest) -> str:
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return request.param


@pytest.fixture
def measure(engine_name: str) -> Callable[..., Measured]:
    """Loss and gradients of `config` (a Config without engine and optimizer) for these weights and this batch."""

    def run(config: dict[str, Any], weights: Mapping[str, NDArray[np.float32]], batch: Batch) -> Measured:
        seen = {"engine": engine_name, "device": "cpu", "optimizer": {"beta1": 0.0}}
        engine = create_engine(Config.model_validate(config | seen))
        engine.load(EngineState(dict(weights)))
        loss = engine.read(engine.train_step([batch], {"lr": 0.0}))["loss"]
        moments = engine.state().optimizer
        gradients = {name.removeprefix("exp_avg."): m for name, m in moments.items() if name.startswith("exp_avg.")}
        return Measured(loss, gradients, engine)

    return run
