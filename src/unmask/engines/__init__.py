"""Engines, loaded only when one is asked for."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from unmask.config.schema import Config
from unmask.engines.base import Engine
from unmask.engines.linear_probe import ProbeEngine
from unmask.environment import launched
from unmask.errors import EngineError


def create_engine(config: Config, world: int = 1) -> Engine:
    """The engine the config names, its weights not yet set; one of `world` processes that are `joined`.

    Raises EngineError if its package or device is missing.
    """
    with _missing_package(config.engine):
        if config.engine == "torch":
            from unmask.engines.torch_engine.engine import TorchEngine

            engine = TorchEngine(config, world=world)
        else:
            from unmask.engines.mindspore_engine.engine import MindSporeEngine

            engine = MindSporeEngine(config, world=world)
    return ProbeEngine(engine, config) if config.train.probe else engine


@contextmanager
def joined(config: Config) -> Generator[tuple[int, int]]:
    """Connect the processes that were launched together; gives the rank of this one and how many they are.

    Waits until all are there. Alone (0, 1), and nothing happens. Raises as `create_engine`.
    """
    rank, world = launched()
    if world == 1:
        yield 0, 1
        return
    with _missing_package(config.engine):
        if config.engine == "torch":
            from unmask.engines.torch_engine.parallel import connect
        else:
            from unmask.engines.mindspore_engine.parallel import connect
    with connect(config.device):
        yield rank, world


@contextmanager
def _missing_package(engine: str) -> Generator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != engine:
            raise
        raise EngineError(f"engine={engine} needs the package {engine}: pip install 'unmask[{engine}]'") from None
