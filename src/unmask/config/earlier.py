"""Names that keys had in earlier versions: recipes and run folders of that time are still read."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from unmask.config.schema import objective_section
from unmask.errors import ConfigError

_MOVED = {
    "model.mask_ratio": "mask_ratio",
    "model.norm_pix_loss": "norm_pix_loss",
    "train.loss": "loss",
    "data.class_weights": "class_weights",
}
"""Keys that are now the objective's, where it has them; before, every run had all of them, used or not."""
TODAY = {earlier: f"objective.{name}" for earlier, name in _MOVED.items()} | {"objective": "objective.name"}
"""What single settings are called now."""
_OF_TASK = {"pretrain": "mae", "finetune": "classify"}


def brought_up_to_date(values: Mapping[str, Any], origins: dict[str, str]) -> dict[str, Any]:
    """Nested values with today's keys; `origins` gains an entry for each that is renamed.

    Raises ConfigError where an earlier key and today's say different things.
    """
    values = deepcopy(dict(values))
    task, probe = values.pop("task", None), _take(values, "train.probe")
    moved = {earlier: _take(values, earlier) for earlier in _MOVED}
    objective = values.get("objective", {})
    objective = {"name": objective} if isinstance(objective, str) else objective
    if not isinstance(objective, dict):
        return values  # which the schema refuses
    if task not in (None, *_OF_TASK):
        raise ConfigError(f"{_where('task', origins)}task={task!r} is neither pretrain nor finetune")
    if "name" not in objective and task is not None:
        objective["name"] = _OF_TASK[task]
        origins.setdefault("objective.name", origins.get("task", ""))
    elif task is not None and _task_of(objective.get("name")) not in (task, None):
        raise ConfigError(f"{_where('task', origins)}objective.name={objective['name']} is not for task={task}")
    name = objective.get("name", "mae")
    if probe is True and name not in ("classify", "linear_probe"):
        raise ConfigError(f"{_where('train.probe', origins)}train.probe is not for objective.name={name}")
    if probe is True:
        objective["name"] = name = "linear_probe"
    fields = _fields(name)
    for earlier, field in _MOVED.items():
        if moved[earlier] is not _ABSENT and field in fields:
            _move(earlier, moved[earlier], field, objective, origins)
    return values | {"objective": objective} if objective else values


_ABSENT = object()


def _move(earlier: str, value: Any, field: str, objective: dict[str, Any], origins: dict[str, str]) -> None:
    """Set a field of the objective to what an earlier key says; single settings win, and have today's names already."""
    key = TODAY[earlier]
    if field not in objective:
        objective[field] = value
        origins[key] = origins.get(earlier, "")
    elif objective[field] != value and origins.get(key) not in ("command line", "settings"):
        raise ConfigError(f"{_where(earlier, origins)}{earlier} is now {key}, which is set to another value; set one")


def _take(values: dict[str, Any], key: str) -> Any:
    """Remove a dotted key; what it had."""
    section, _, name = key.partition(".")
    inner = values.get(section)
    return inner.pop(name, _ABSENT) if isinstance(inner, dict) else _ABSENT


def _fields(name: Any) -> set[str]:
    try:
        return set(objective_section(name).model_fields)
    except ValueError:
        return set()


def _task_of(name: Any) -> str | None:
    try:
        return objective_section(name).task
    except ValueError:
        return None


def _where(key: str, origins: Mapping[str, str]) -> str:
    return f"{origins[key]}: " if origins.get(key) else ""
