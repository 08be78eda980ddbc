"""Engines, loaded only when one is asked for."""

from __future__ import annotations

from unmask.config.schema import Config
from unmask.engines.base import Engine
from unmask.errors import EngineError


def create_engine(config: Config) -> Engine:
    """The engine the config names, its weights not yet set. Raises EngineError if its package or device is missing."""
    try:
        if config.engine == "torch":
            from unmask.engines.torch_engine.engine import TorchEngine

            return TorchEngine(config)
        from unmask.engines.mindspore_engine.engine import MindSporeEngine

        return MindSporeEngine(config)
    except ModuleNotFoundError as error:
        if error.name != config.engine:
            raise
        raise EngineError(
            f"engine={config.engine} needs the package {config.engine}: pip install 'unmask[{config.engine}]'"
        ) from None
