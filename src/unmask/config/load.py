"""Recipes and settings to a checked configuration.

A recipe may start from the values of others, `base: NAME` or `base: [NAME, NAME]`: later ones win over earlier ones,
and its own keys win over all. NAME is a recipe, one of the parts in `recipes/bases`, or the path of a YAML file,
relative to the file that names it.

Every mistake is reported in one line: where it stands (file and line, the command line, or the settings of a Python
call), which key, what is wrong and, for a misspelt key, the nearest one that exists.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from itertools import takewhile
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

import numpy as np
import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from unmask import plugins
from unmask.config.earlier import TODAY, brought_up_to_date
from unmask.config.schema import Config, ObjectiveSection
from unmask.errors import ConfigError

Origins = dict[str, str]
"""Where each dotted key was set: `recipe.yaml:12`, `command line` or `settings`."""

_MOST_CHANNELS = 4096
Settings = Mapping[str, Any] | Sequence[str]
"""Dotted keys with their values; or `key=value` of the command line, the value written as in YAML, but never empty."""


def load_config(recipe: str | os.PathLike[str], settings: Settings = ()) -> Config:
    """The recipe (a name such as `mae-vit-base`, or a YAML file) with the settings applied, checked.

    A mapping may hold NumPy's numbers and arrays, paths and tuples. Raises ConfigError naming every wrong key.
    """
    values, origins = _read_recipe(recipe_path(recipe))
    return check_config(values, origins | apply_settings(values, settings))


def task_of(config: Config) -> str:
    """The command that trains it: pretrain or finetune. Raises ConfigError if none does."""
    if config.objective.task is None:
        raise ConfigError(f"objective.name={config.objective.name} is not trained; it is for models that are read")
    return config.objective.task


def apply_settings(values: dict[str, Any], settings: Settings) -> Origins:
    """Put the settings into nested `values`; returns where they come from. Raises ConfigError for an impossible key."""
    if isinstance(settings, Mapping):
        origin, pairs = "settings", flatten(settings).items()
    else:
        origin, pairs = "command line", [_parse(text) for text in settings]
    origins: Origins = {}
    for key, value in pairs:
        key = TODAY.get(key, key)
        *sections, last = key.split(".")
        section: dict[str, Any] = values
        for name in sections:
            inner: Any = section.setdefault(name, {})
            if key == f"objective.{last}" and isinstance(inner, str):
                inner = section[name] = {"name": inner}
            if not isinstance(inner, dict):
                raise ConfigError(f"{origin}: {key}: unknown key{nearest(key, known_keys())}")
            section = inner
        section[last] = _plain(value)
        origins[key] = origin
    return origins


def check_config(values: Mapping[str, Any], origins: Origins | None = None) -> Config:
    """A configuration from nested values. Raises ConfigError naming every wrong key."""
    origins = dict(origins or {})
    values = brought_up_to_date(values, origins)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(problem, origins) for problem in error.errors())) from None


def read_settings(settings: Sequence[str], known: Sequence[str], command: str) -> tuple[Config, set[str]]:
    """What `--set KEY=VALUE` says to a command that takes the keys `known` alone, and which of them are set.

    Raises ConfigError.
    """
    values: dict[str, Any] = {}
    origins = apply_settings(values, settings)
    for key in origins:
        if key not in known:
            raise ConfigError(f"command line: {key}: `{command}` takes {', '.join(known)}")
    channels = values.get("model", {}).get("channels", 3)
    if isinstance(channels, int) and 0 < channels <= _MOST_CHANNELS:  # as many as `data` must have means
        values["data"] = {**values.get("data", {}), "mean": [0.5] * channels, "std": [1.0] * channels}
    return check_config(values, origins), set(origins)


def recipe_path(recipe: str | os.PathLike[str]) -> Path:
    """The file of a recipe given by path or by name. Raises ConfigError, with the nearest name, if there is none."""
    if Path(recipe).suffix in (".yaml", ".yml"):
        if not Path(recipe).is_file():
            raise ConfigError(f"recipe {recipe} does not exist")
        return Path(recipe)
    return _by_name(os.fspath(recipe), _packaged())


def recipe_names() -> list[str]:
    return list(_packaged())


def recipe_header(name: str) -> dict[str, str]:
    """What a packaged recipe says of itself: `what`, and `command`, `hardware`, `expected`, `source`."""
    lines = takewhile(lambda line: line.startswith("#"), _packaged()[name].read_text(encoding="utf-8").splitlines())
    what, *rest = (line[1:] for line in lines)
    said, key = {"what": what.strip()}, None
    for line in rest:
        if found := re.match(r" (Command|Hardware|Expected|Source) +(.+)", line):
            key, said[found[1].lower()] = found[1].lower(), found[2]
        elif key is not None and line.startswith("  "):
            said[key] = said[key].removesuffix("\\").strip() + " " + line.strip()
        else:
            key = None
    return said


def _packaged(*, parts: bool = False) -> dict[str, Path]:
    """The recipes of the package by name; with `parts` also those of `bases`, which are not whole recipes."""
    folder = Path(str(resources.files("unmask") / "recipes"))
    files = [*folder.glob("*.yaml"), *(folder.glob("bases/*.yaml") if parts else ())]
    return {file.stem: file for file in sorted(files)}


def _by_name(name: str, named: Mapping[str, Path], where: str = "") -> Path:
    if name not in named:
        near = nearest(name, named) or f"; the recipes: {', '.join(named)}"
        raise ConfigError(f"{where}there is no recipe {name}{near}")
    return named[name]


def to_dict(config: Config) -> dict[str, Any]:
    """Plain values, as they are written to YAML and JSON; `check_config` takes them back."""
    return config.model_dump(mode="json")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _read_recipe(path: Path, derived: tuple[Path, ...] = ()) -> tuple[dict[str, Any], Origins]:
    """The values of a recipe over those of its bases, and where each dotted key was set last.

    `derived` are the files that start from this one. Raises ConfigError, also where a base is missing or a recipe
    starts from itself.
    """
    own, lines = read_yaml(path)
    values: dict[str, Any] = {}
    origins: Origins = {}
    chain = (*derived, path.resolve())
    if "base" in own:
        where = f"{lines.pop('base')}: base: "
        for name, base in _bases(own.pop("base"), path, where):
            if base.resolve() in chain:
                raise ConfigError(f"{where}{name} starts from this file itself; take it out of one of the two")
            inherited, their_lines = _read_recipe(base, chain)
            values, origins = _merge(values, inherited), origins | their_lines
    return _merge(values, own), origins | lines


def _bases(names: Any, path: Path, where: str) -> Iterator[tuple[str, Path]]:
    for name in names if isinstance(names, list) else [names]:
        if not isinstance(name, str):
            raise ConfigError(f"{where}{name!r} is not the name of a recipe or the path of a YAML file")
        if Path(name).suffix not in (".yaml", ".yml"):
            yield name, _by_name(name, _packaged(parts=True), where)
        elif (path.parent / name).is_file():
            yield name, path.parent / name
        else:
            raise ConfigError(f"{where}{path.parent / name} does not exist")


def _merge(values: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = values | over
    for key in values.keys() & over.keys():
        if isinstance(values[key], dict) and isinstance(over[key], dict):
            merged[key] = _merge(values[key], over[key])
    return merged


class _Loader(yaml.SafeLoader):
    """Without the numbers of YAML 1.1 that look like others: 010 is not 8, and 1:30 is not 90."""


_NUMBERS = {
    "tag:yaml.org,2002:int": r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$",
    "tag:yaml.org,2002:float": r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+][0-9]+)?$|[-+]?\.inf$|\.nan$",
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in _NUMBERS]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern, re.IGNORECASE), list("-+.0123456789"))


def read_yaml(path: Path) -> tuple[dict[str, Any], Origins]:
    """The nested values of a YAML file and where each dotted key stands. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, yaml.SafeLoader)
        values = yaml.load(text, _Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"recipe {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"recipe {path} holds no keys")
    origins: Origins = {}
    for key, line in _lines(root):
        if key in origins:
            raise ConfigError(f"{path}:{line}: {key} is set a second time")
        origins[key] = f"{path}:{line}"
    return values, origins


def _lines(node: Any, prefix: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield f"{prefix}{key.value}", key.start_mark.line + 1
            yield from _lines(value, f"{prefix}{key.value}.")


def _parse(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is not of the form key=value")
    if not text.strip():
        raise ConfigError(f"command line: {key}= has no value, as when a variable is empty; for none write {key}=null")
    if is_text(TODAY.get(key, key)):
        return key, None if text == "null" else text
    return key, parse_value(text)


def _plain(value: Any) -> Any:
    """The value in Python's own types, as YAML would give it."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def parse_value(text: str) -> Any:
    """A value from the command line, written as in YAML; what is no YAML is text."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError):  # 2024-02-30, 0x_ and a thousand brackets
        return text


def is_text(key: str) -> bool:
    """Whether a key takes nothing but text, or null: then it is what stands there, `set #1` and 2024-05-01 too."""
    annotation = _annotations().get(key)
    kinds = [annotation, *get_args(annotation)] if isinstance(annotation, UnionType) else [annotation]
    kinds = [kind for kind in kinds if kind not in (annotation, NoneType)] or [annotation]
    return all(
        kind is str or (get_origin(kind) is Literal and all(isinstance(v, str) for v in get_args(kind)))
        for kind in kinds
    )


def _annotations(section: type[BaseModel] = Config, prefix: str = "") -> dict[str, Any]:
    """What each key a recipe can set may hold."""
    found: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        if field.annotation is ObjectiveSection:
            for each in plugins.names(plugins.OBJECTIVES):
                found |= _annotations(plugins.find(plugins.OBJECTIVES, each).Section, f"{prefix}{name}.")
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= _annotations(field.annotation, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = field.annotation
    return found


def known_keys() -> list[str]:
    """Every key a recipe can set, dotted."""
    return list(_annotations())


def _explain(problem: ErrorDetails, origins: Origins) -> str:
    location = [str(part) for part in problem["loc"]]
    if problem["type"] == "extra_forbidden":
        key = ".".join(location)
        if key in known_keys():
            return f"{_origin(key, origins)}{key}: unknown key of this objective; another one has it"
        return f"{_origin(key, origins)}{key}: unknown key{nearest(key, known_keys())}"
    # Below a key, pydantic's location goes on into tuple positions and union members, which mean nothing to a user.
    sections = {name.rpartition(".")[0] for name in known_keys()}
    key = next(
        (k for n in range(len(location), 0, -1) if (k := ".".join(location[:n])) in known_keys() or k in sections), ""
    )
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "model_type":
        return f"{_origin(key, origins)}{key}: a section; give its keys below it, or leave it out"
    if problem["type"] == "value_error":
        return f"{_origin(key, origins)}{key}{': ' if key else ''}{message}"
    return f"{_origin(key, origins)}{key}: {message[0].lower()}{message[1:]}, not {problem['input']!r}"


def _origin(key: str, origins: Origins) -> str:
    return f"{origins[key]}: " if origins.get(key) else ""


def nearest(word: str, choices: Iterable[str]) -> str:
    """`, did you mean ...?` with the choice closest to `word`, or nothing."""
    choices = list(choices)
    close = difflib.get_close_matches(word, choices, 1)
    if not close:
        by_last = {choice.rpartition(".")[2]: choice for choice in choices}
        close = [by_last[name] for name in difflib.get_close_matches(word.rpartition(".")[2], by_last, 1)]
    return f", did you mean {close[0]}?" if close else ""
