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
from unmask.modelzoo.keys import GROUPS, MEANT, NOT_TRAINED, SAME, TABLE, Command, Entry, Flat
from unmask.modelzoo.modelarts import Places


@dataclass(frozen=True)
class Translation:
    """What a model-zoo file says in our terms."""

    config: Config
    settings: Mapping[str, Any]
    """The dotted keys of ours that were set; the others of `config` are defaults."""
    rows: Sequence[tuple[str, str, str]]
    """Each key as it was written, its value, and what became of it."""
    alone: bool
    """use_parallel is off: this run is of one process, whatever else was started."""
    places: Places | None
    """Of ModelArts, where it is on."""


def find_config(path: str | Path) -> Path:
    """`path` or, if there is no such file, the one of the model zoo that has its name.

    By name: `eval`, `eval.yaml`, `config/eval.yaml`. Raises ConfigError.
    """
    path = Path(path)
    if path.exists() or path.parent.name not in ("", "config") or path.is_absolute():
        return path
    named = {file.stem: file for file in sorted((Path(__file__).parent / "config").glob("*.yaml"))}
    name = path.stem if path.suffix in (".yaml", ".yml") else path.name
    if name not in named:
        raise ConfigError(f"there is no {path}{nearest(name, named)}; found by name are {', '.join(named)}")
    return named[name]


def load_modelzoo(path: str | Path, options: Sequence[str], command: Command) -> Translation:
    """The file that `find_config` finds with `--key value` or `--key=value` options applied, for one of our commands.

    Raises ConfigError naming the file and line (or the command line) of every wrong key.
    """
    path = find_config(path)
    flat = Flat(_read(path, options), command, path.stem)
    settings: dict[str, Any] = {"engine": flat.engine}
    origins: Origins = {}
    outcomes: list[tuple[Entry, dict[str, Any], str]] = []
    # Our own keys come last: they win over what the model zoo's keys were turned into.
    for name, entry in sorted(flat.entries.items(), key=lambda item: item[0] not in TABLE):
        set_here, words = _outcome(name, entry, flat)
        outcomes.append((entry, set_here, words))
        settings |= set_here
        where = f"{entry.origin}: {entry.spelled}" if name in TABLE else entry.origin
        origins |= dict.fromkeys(set_here, where)
    # There the head is drawn, whatever the number of images.
    classify = {"objective.name": "classify", "objective.head": "drawn"}
    task = {"objective.name": "mae"} if command == "pretrain" else classify
    config = check_config(_nested({**task, **settings}), origins)
    rows = [(entry.spelled, str(entry.value), _describe(values, words, settings)) for entry, values, words in outcomes]
    if "engine" not in flat.entries:
        rows.insert(0, ("engine", "", f"-> engine={flat.engine}, {flat.engine_reason}"))
    return Translation(config, settings, rows, alone=not flat.on("use_parallel"), places=_places(flat))


def _places(flat: Flat) -> Places | None:
    if not flat.modelarts:
        return None
    urls = {name: flat.of_platform(name) for name in ("data_url", "checkpoint_url", "load_path")}
    return Places(**urls, folder=flat.folder)


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
        raise ConfigError("; ".join(f"{e.origin}: {e.spelled}: unknown key{_meant(e.spelled)}" for e in unknown))
    return entries


def _meant(spelled: str) -> str:
    key = _ungrouped(spelled)
    return f", did you mean {MEANT[key]}?" if key in MEANT else nearest(key, [*TABLE, *SAME, *_OURS])


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


def _outcome(name: str, entry: Entry, flat: Flat) -> tuple[dict[str, Any], str]:
    """What a key sets, and the words about it."""
    if name not in TABLE:
        return {name: entry.value}, ""
    if entry.value in (None, ""):
        return {}, "not set"
    try:
        outcome = TABLE[name](entry.value, flat)
    except ValueError as error:
        raise ConfigError(f"{entry.origin}: {entry.spelled}: {error}") from None
    if isinstance(outcome, str):
        return {}, outcome
    set_here, words = outcome if isinstance(outcome, tuple) else (outcome, "")
    if flat.command == "evaluate" and not any(_matters_to_evaluation(key) for key in set_here):
        return {}, NOT_TRAINED
    return set_here, words


def _matters_to_evaluation(key: str) -> bool:
    return key in ("engine", "device", "init", "train.batch_size", "train.compile") or (
        key.startswith(("model.", "data.")) and key not in ("data.train", "model.drop_path")
    )


def _describe(set_here: dict[str, Any], words: str, settings: Mapping[str, Any]) -> str:
    replaced = {key: f" (replaced: {settings[key]})" for key, value in set_here.items() if settings[key] != value}
    becomes = ", ".join(f"{key}={value}{replaced.get(key, '')}" for key, value in set_here.items())
    return "; ".join(part for part in (f"-> {becomes}" if becomes else "", words) if part)


def _nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in dotted.items():
        section, _, name = key.rpartition(".")
        (values.setdefault(section, {}) if section else values)[name] = value
    return values
