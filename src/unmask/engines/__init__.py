"""Engines, loaded only when one is asked for."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager

from unmask import interrupts, plugins
from unmask.config.schema import Config
from unmask.engines.base import Engine, EngineKind
from unmask.environment import launched
from unmask.errors import EngineError
from unmask.objectives.base import create_objective


def engine_kind(name: str) -> EngineKind:
    """What is known of an engine before its framework is loaded."""
    return plugins.find(plugins.ENGINES, name)


def create_engine(config: Config, world: int = 1) -> Engine:
    """The engine the config names, its weights not yet set; one of `world` processes that are `joined`.

    Raises EngineError if its package or device is missing, or the objective has no network for it.
    """
    config = with_precision(config)
    kind, objective = engine_kind(config.engine), create_objective(config)
    with _missing_package(config.engine, kind):
        engine = plugins.resolve(kind.create)(
            objective,
            data=config.data,
            optimizer=config.optimizer,
            train=config.train,
            device=config.device,
            world=world,
        )
    if objective.engine_around is not None:
        return plugins.resolve(objective.engine_around)(engine, objective, optimizer=config.optimizer)
    return engine


def with_precision(config: Config, before: str | None = None) -> Config:
    """`train.precision=auto` decided: as it was `before`, in the run that goes on, else by the device.

    Raises EngineError if package or device is missing.
    """
    if config.train.precision != "auto":
        return config
    precision = before or fast_precision(config.engine, config.device)
    return config.model_copy(update={"train": config.train.model_copy(update={"precision": precision})})


def fast_precision(engine: str, device: str) -> str:
    """What `train.precision=auto` is on this device. Raises EngineError if package or device is missing."""
    kind = engine_kind(engine)
    with _missing_package(engine, kind):
        return "fp32" if kind.precision is None else plugins.resolve(kind.precision)(device)


@contextmanager
def joined(engine: str, device: str, timeout: float) -> Generator[tuple[int, int]]:
    """Connect the processes that were launched together; gives the rank of this one and how many they are.

    Waits until all are there. Alone (0, 1), and nothing happens. Raises as `create_engine`; ProcessError when another
    is lost, which is when it has ended, or is not heard of for `timeout` seconds.
    """
    rank, world = launched()
    if world == 1:
        yield 0, 1
        return
    kind = engine_kind(engine)
    with _missing_package(engine, kind):
        connect = plugins.resolve(kind.connect)
    is_scheduler = rank < 0
    if not is_scheduler:
        interrupts.heed_launcher()
    with ExitStack() as stack:
        # The wait for the others. msrun's scheduler stays in it until they have ended, who may have something to save.
        with interrupts.ignored() if is_scheduler else interrupts.immediate():
            stack.enter_context(connect(device, timeout))
        yield rank, world


@contextmanager
def _missing_package(engine: str, kind: EngineKind) -> Generator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != kind.package:
            raise
        raise EngineError(f"engine={engine} needs the package {kind.package}: pip install '{kind.install}'") from None
