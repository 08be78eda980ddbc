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
    if "name" not in objective and task is not None:
        if task not in _OF_TASK:
            raise ConfigError(f"{_where('task', origins)}task={task!r} is neither pretrain nor finetune")
        objective["name"] = _OF_TASK[task]
        origins.setdefault("objective.name", origins.get("task", ""))
    elif task is not None and _task_of(objective.get("name")) not in (task, None):
        raise ConfigError(f"{_where('task', origins)}objective.name={objective['name']} is not for {task}")
    if probe is True and objective.get("name") == "classify":
        objective["name"] = "linear_probe"
    fields = _fields(objective.get("name", "mae"))
    for earlier, name in _MOVED.items():
        if moved[earlier] is not _ABSENT and name in fields:
            objective.setdefault(name, moved[earlier])
            origins.setdefault(f"objective.{name}", origins.get(earlier, ""))
    return values | {"objective": objective} if objective else values


_ABSENT = object()


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
