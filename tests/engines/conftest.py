"""Every engine that is installed."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import pytest

from engine_cases import start
from fake_engine import FakeEngine
from unmask.config.schema import Config
from unmask.engines import create_engine
from unmask.engines.base import Engine


@pytest.fixture(params=["fake", "torch", "mindspore"])
def build(request: pytest.FixtureRequest) -> Callable[[Config], Engine]:
    """Makes an engine of each kind with the initial weights of seed 0."""
    name: str = request.param
    if name != "fake" and find_spec(name) is None:
        pytest.skip(f"{name} is not installed")

    def make(config: Config) -> Engine:
        engine = FakeEngine(config) if name == "fake" else create_engine(config.model_copy(update={"engine": name}))
        engine.load(start(config))
        request.addfinalizer(engine.close)
        return engine

    return make
