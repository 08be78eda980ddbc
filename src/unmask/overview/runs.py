"""What a run folder tells without its model: configuration, curves, versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from unmask.config.load import apply_settings, check_config, flatten, to_dict
from unmask.config.schema import Config
from unmask.data.sources.base import printable
from unmask.errors import ConfigError, UnmaskError
from unmask.report.log import METRICS_FILE, SPEED_FILE, read_log

POINTS = 1_500
"""Most points of a curve in a page; longer ones are shown by their mean, least and most in as many parts."""
_HIDDEN = {"step", "split", "time"}


@dataclass(frozen=True)
class RunFolder:
    """A run folder that was read."""

    path: Path
    name: str
    """Told apart from the other runs of the page."""
    record: Mapping[str, Any]
    """`run.yaml`."""
    config: Config

    def facts(self) -> dict[str, Any]:
        """What the page shows of it: texts, numbers, curves."""
        rows = read_log(self.path / METRICS_FILE)
        train = [row for row in rows if row["split"] == "train"]
        val = [row for row in rows if row["split"] == "val"]
        speed = read_log(self.path / SPEED_FILE)
        images = int(self.record.get("data", {}).get("images", 0) or 0)
        git: Mapping[str, Any] = self.record.get("git") or {}
        last = {**({"loss": train[-1].get("loss")} if train else {}), **{f"val {k}": v for k, v in _last(val).items()}}
        return {
            "name": self.name,
            "folder": printable(str(self.path)),
            "task": self.config.objective.task or "",
            "objective": self.config.objective.name,
            "engine": self.config.engine,
            "command": printable(" ".join(map(str, self.record.get("command", [])))),
            "commit": f"{git.get('commit', '')}{' and changes' if git.get('modified') else ''}" if git else "",
            "versions": {str(name): str(version) for name, version in (self.record.get("versions") or {}).items()},
            "trainImages": images,
            "steps": int(train[-1]["step"]) if train else 0,
            "stepsPerEpoch": images / self.config.train.batch_size if images else 0,
            "last": {name: _number(value) for name, value in last.items()},
            "curves": {"train": _curves(train), "val": _curves(val), "speed": _curves(speed)},
        }


def read_runs(paths: Sequence[Path], settings: Sequence[str] = ()) -> list[RunFolder]:
    """The run folders at `paths`; `settings` (`data.val=FOLDER`) say where the images of all of them are today.

    Raises ConfigError for a folder that holds no run.
    """
    names = _names(paths)
    return [_read(path, name, settings) for path, name in zip(paths, names, strict=True)]


def config_table(runs: Sequence[RunFolder]) -> list[dict[str, Any]]:
    """Every key with its value in each run, and whether it is another than the schema's default."""
    defaults = _texts(Config(objective="mae"))  # pyright: ignore[reportArgumentType]
    found = [_texts(run.config) for run in runs]
    keys = sorted({key for texts in found for key in texts}, key=_order)
    rows: list[dict[str, Any]] = []
    for key in keys:
        values = [texts.get(key, "") for texts in found]
        rows.append({"key": key, "values": values, "set": any(value != defaults.get(key) for value in values)})
    return rows


def _read(path: Path, name: str, settings: Sequence[str]) -> RunFolder:
    try:
        record: Any = yaml.safe_load((path / "run.yaml").read_text(encoding="utf-8"))
        values = dict(record["config"])
    except OSError as error:
        raise ConfigError(f"{path} is no run folder: run.yaml: {error.strerror or error}") from None
    except (ValueError, LookupError, TypeError, yaml.YAMLError) as error:
        raise UnmaskError(f"{path / 'run.yaml'} is damaged: {' '.join(str(error).split())[:200]}") from None
    return RunFolder(path, name, record, check_config(values, apply_settings(values, settings)))


def _names(paths: Sequence[Path]) -> list[str]:
    """The last part of each path, with the parts before it where that does not tell them apart."""
    resolved = [_resolved(path) for path in paths]
    if len(set(resolved)) < len(resolved):
        raise ConfigError("a run is named twice; name each once")
    length = 1
    while len({path.parts[-length:] for path in resolved}) < len(resolved):
        length += 1
    return [printable("/".join(path.parts[-length:])) for path in resolved]


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a NUL, links in a circle
        raise ConfigError(f"{printable(str(path))} is no run folder: {error}") from None


def _texts(config: Config) -> dict[str, str]:
    return {key: _text(value) for key, value in flatten(to_dict(config)).items()}


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: ""}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(_text(part) for part in value)}]"
    return f"{value:g}" if isinstance(value, float) else printable(str(value))


def _order(key: str) -> tuple[bool, str]:
    return "." in key, key


def _last(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for row in rows:  # evaluations of two kinds may be due at different steps
        found |= {name: value for name, value in row.items() if name not in _HIDDEN}
    return found


def _curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[float | None]]]:
    names = {name: None for row in rows for name, value in row.items() if isinstance(value, int | float)}
    return {name: _curve(rows, name) for name in names if name not in _HIDDEN}


def _curve(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, list[float | None]]:
    """Steps and values; of many points the mean of each part of them, with the least and the most."""
    pairs = np.array([(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)], np.float64)
    steps, values = pairs.reshape(-1, 2).T
    if len(steps) <= POINTS:
        return {"x": _list(steps), "y": _list(values)}
    parts = np.array_split(np.arange(len(steps)), POINTS)
    with np.errstate(invalid="ignore"):
        means, least, most = (np.array([how(values[part]) for part in parts]) for how in (np.mean, np.min, np.max))
    middle = np.array([steps[part].mean() for part in parts])
    return {"x": _list(np.round(middle)), "y": _list(means), "low": _list(least), "high": _list(most)}


def _list(values: NDArray[Any]) -> list[float | None]:
    """For JSON, six digits; None where a value is not finite."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and np.isfinite(value) else None
