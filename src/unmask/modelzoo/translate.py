"""The flat YAML files of the MindSpore model zoo's MAE, run as they are: `--config_path FILE [--key value ...]`.

`TABLE` says of each of their keys which of ours it sets, or why it sets none. Our own dotted keys may stand beside
them, for what those files have no word for: `--train.precision bf16`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.config.load import Origins, check_config, flatten, known_keys, nearest, parse_value, read_yaml
from unmask.config.schema import Config
from unmask.errors import ConfigError
from unmask.modelzoo.keys import GROUPS, NOT_TRAINED, SAME, TABLE, Command, Entry, Flat


@dataclass(frozen=True)
class Translation:
    """What a model-zoo file says in our terms."""

    config: Config
    settings: Mapping[str, Any]
    """The dotted keys of ours that were set; the others of `config` are defaults."""
    rows: Sequence[tuple[str, str, str]]
    """Each key as it was written, its value, and what became of it."""


def load_modelzoo(path: str | Path, options: Sequence[str], command: Command) -> Translation:
    """The file with `--key value` or `--key=value` options applied, for one of our commands.

    Raises ConfigError naming the file and line (or the command line) of every wrong key.
    """
    flat = Flat(_read(Path(path), options), command, Path(path).stem)
    settings: dict[str, Any] = {"engine": flat.engine}
    origins: Origins = {}
    outcomes: list[tuple[Entry, dict[str, Any] | str]] = []
    # Our own keys come last: they win over what the model zoo's keys were turned into.
    for name, entry in sorted(flat.entries.items(), key=lambda item: item[0] not in TABLE):
        outcome = _outcome(name, entry, flat)
        outcomes.append((entry, outcome))
        if isinstance(outcome, dict):
            settings |= outcome
            where = f"{entry.origin}: {entry.spelled}" if name in TABLE else entry.origin
            origins |= dict.fromkeys(outcome, where)
    config = check_config(
        _nested({**settings, "objective.name": "mae" if command == "pretrain" else "classify"}), origins
    )
    rows = [(entry.spelled, str(entry.value), _describe(outcome, settings)) for entry, outcome in outcomes]
    if "engine" not in flat.entries:
        rows.insert(0, ("engine", "", f"-> engine={flat.engine}, {flat.engine_reason}"))
    return Translation(config, settings, rows)


_OURS = tuple(key for key in known_keys() if key != "objective.name")


def _read(path: Path, options: Sequence[str]) -> dict[str, Entry]:
    values, lines = read_yaml(path)
    entries: dict[str, Entry] = {}
    for spelled, value in flatten(values).items():
        if spelled in GROUPS and value is None:  # a group whose keys are all commented out
            continue
        entry = Entry(spelled, value, lines.get(spelled, str(path)))
        first = entries.setdefault(_name(spelled), entry)
        if first is not entry:
            raise ConfigError(f"{entry.origin}: {spelled} is set a second time, after {first.spelled}")
    entries |= {_name(key): Entry(key, value, "command line") for key, value in _pairs(options)}
    unknown = [entry for name, entry in entries.items() if name not in TABLE and name not in _OURS]
    if unknown:
        choices = [*TABLE, *SAME, *_OURS]
        problems = [f"{e.origin}: {e.spelled}: unknown key{nearest(_ungrouped(e.spelled), choices)}" for e in unknown]
        raise ConfigError("; ".join(problems))
    return entries


def _name(spelled: str) -> str:
    name = _ungrouped(spelled)
    return SAME.get(name, name)


def _ungrouped(spelled: str) -> str:
    group, _, rest = spelled.partition(".")
    return rest if group in GROUPS and rest else spelled


def _pairs(options: Sequence[str]) -> Iterator[tuple[str, Any]]:
    rest = iter(options)
    for option in rest:
        key, equals, text = option.partition("=")
        if not key.startswith("--") or key == "--":
            raise ConfigError(f"command line: {option!r} is not of the form --key value")
        if not equals and (text := next(rest, "--")).startswith("--"):
            raise ConfigError(f"command line: {key} has no value; write {key} VALUE")
        yield key[2:], parse_value(text)


def _outcome(name: str, entry: Entry, flat: Flat) -> dict[str, Any] | str:
    if name not in TABLE:
        return {name: entry.value}
    if entry.value in (None, ""):
        return "not set"
    try:
        outcome = TABLE[name](entry.value, flat)
    except ValueError as error:
        raise ConfigError(f"{entry.origin}: {entry.spelled}: {error}") from None
    trained_only = isinstance(outcome, dict) and not any(_matters_to_evaluation(key) for key in outcome)
    return NOT_TRAINED if flat.command == "evaluate" and trained_only else outcome


def _matters_to_evaluation(key: str) -> bool:
    return key in ("engine", "device", "init", "train.batch_size", "train.compile") or (
        key.startswith(("model.", "data.")) and key != "data.train"
    )


def _describe(outcome: dict[str, Any] | str, settings: Mapping[str, Any]) -> str:
    if isinstance(outcome, str):
        return outcome
    replaced = {key: f" (replaced: {settings[key]})" for key, value in outcome.items() if settings[key] != value}
    return "-> " + ", ".join(f"{key}={value}{replaced.get(key, '')}" for key, value in outcome.items())


def _nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in dotted.items():
        section, _, name = key.rpartition(".")
        (values.setdefault(section, {}) if section else values)[name] = value
    return values
