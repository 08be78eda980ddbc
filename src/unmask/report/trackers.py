"""Services that keep the figures of runs, beside the files in the run's folder: `train.loggers`.

Each works on a thread of its own, behind a queue: a service that fails or does not answer costs a run nothing. It is
said once, and that service gets no more. The files in the run folder have everything all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from queue import Full, Queue
from threading import Event, Thread
from typing import Any

from unmask.errors import ConfigError
from unmask.report.progress import say

_WAITING = 10_000
"""Most lines that wait for a service."""
_SECONDS = 20.0
"""How long the end of a run waits for a service to take what is left."""
Log = Callable[[int, Mapping[str, float]], None]
Finish = Callable[[], None]


def _like_wandb(name: str, folder: Path, identity: str, config: Mapping[str, Any]) -> tuple[Log, Finish]:
    """W&B, and the packages that have its functions."""
    service: Any = import_module(name)
    more: dict[str, Any] = {"name": folder.name, "resume": "allow"}
    if name == "wandb":  # our own output is no matter of its
        more |= {"dir": str(folder), "id": identity, "settings": service.Settings(console="off", silent=True)}
    elif name == "swanlab":
        more |= {"log_dir": str(folder / "swanlog"), "id": identity}
        more["settings"] = service.Settings(terminal={"proxy_type": "none"})
    else:  # it knows a run by its name alone, which another folder may have too
        more["name"] += f"-{identity[:6]}"
    service.init(project="unmask", config=dict(config), **more)
    return lambda step, values: service.log(dict(values), step=step), service.finish


def _mlflow(name: str, folder: Path, identity: str, config: Mapping[str, Any]) -> tuple[Log, Finish]:
    """MLflow gives a run its id, so ours is a tag by which it is found again."""
    service: Any = import_module(name)
    experiment = service.set_experiment("unmask").experiment_id
    found = service.search_runs([experiment], f"tags.unmask_id = '{identity}'", output_format="list")
    if found:
        service.start_run(run_id=found[0].info.run_id)
    else:
        service.start_run(run_name=folder.name, tags={"unmask_id": identity})
        service.log_params({key: str(value)[:500] for key, value in config.items()})  # they cannot change later
    return lambda step, values: service.log_metrics(dict(values), step=step), service.end_run


_KINDS = {"wandb": _like_wandb, "swanlab": _like_wandb, "trackio": _like_wandb, "mlflow": _mlflow}


def _id(folder: Path) -> str:
    """The same whenever the run goes on, and of no other run."""
    path = folder / "tracking.id"
    if not path.exists():
        import uuid

        path.write_text(uuid.uuid4().hex + "\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


class Trackers:
    """The services `names`, told about the run in `folder`; `config` has dotted keys.

    Raises ConfigError where the package of one is not installed.
    """

    def __init__(self, names: tuple[str, ...], folder: Path, config: Mapping[str, Any]) -> None:
        for name in names:
            if find_spec(name) is None:
                raise ConfigError(f"train.loggers={name} needs a package: pip install 'unmask[{name}]'")
        self._services = [_Service(name, folder, _id(folder), config) for name in names]

    def log(self, step: int, group: str, metrics: Mapping[str, float]) -> None:
        """Never waits."""
        values = {f"{group}/{name}": float(value) for name, value in metrics.items()}
        for service in self._services:
            service.put(step, values)

    def close(self) -> None:
        for service in self._services:
            service.close()


class _Service:
    def __init__(self, name: str, folder: Path, identity: str, config: Mapping[str, Any]) -> None:
        self._name = name
        self._queue: Queue[tuple[int, Mapping[str, float]] | None] = Queue(_WAITING)
        self._failed = Event()
        self._thread = Thread(target=self._work, args=(folder, identity, config), daemon=True)
        self._thread.start()

    def put(self, step: int, values: Mapping[str, float]) -> None:
        if not self._failed.is_set():
            try:
                self._queue.put_nowait((step, values))
            except Full:
                self._fail("it takes too long")

    def close(self) -> None:
        if not self._failed.is_set():
            try:
                self._queue.put_nowait(None)
            except Full:
                self._fail("it takes too long")
                return
            self._thread.join(_SECONDS)
            if self._thread.is_alive():
                self._fail(f"it did not take what was left within {_SECONDS:g} seconds")

    def _work(self, folder: Path, identity: str, config: Mapping[str, Any]) -> None:
        try:
            log, finish = _KINDS[self._name](self._name, folder, identity, config)
            while (item := self._queue.get()) is not None and not self._failed.is_set():
                log(*item)
            finish()
        except BaseException as error:  # whatever a service of someone else's may raise, SystemExit too
            self._fail(f"{type(error).__name__}: {' '.join(str(error).split())}")

    def _fail(self, why: str) -> None:
        if not self._failed.is_set():
            self._failed.set()
            say(f"train.loggers: {self._name} failed and is left aside, the run goes on ({why})")
