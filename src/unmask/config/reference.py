"""What each key means, from the schema: of one configuration as a recipe that says so, and of all keys as a page."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from textwrap import dedent, wrap
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from unmask import plugins
from unmask.config.load import to_dict
from unmask.config.schema import Config, ObjectiveSection, Section

_WIDTH = 100


@dataclass(frozen=True)
class Key:
    """One setting."""

    name: str
    """Dotted."""
    default: Any
    """As it stands in a recipe."""
    values: str
    """What it may be, in words: `whole number from 1 to 65536`."""
    meaning: str


@dataclass(frozen=True)
class Keys:
    """Those of a section."""

    name: str
    """Its own; "" for the keys that are in none."""
    meaning: str
    keys: tuple[Key, ...]


def keys_of(config: Config) -> list[Keys]:
    """All keys of a configuration, section by section, those of its objective among them."""
    return [*_keys(Config, "", type(config.objective))]


def every_key() -> list[Keys]:
    """All keys there are: a section for each objective, named `objective: mae`."""
    first, *others = keys_of(Config())
    objectives = [plugins.find(plugins.OBJECTIVES, name).Section for name in plugins.names(plugins.OBJECTIVES)]
    each = [
        next(_keys(kind, "objective", kind, f"objective: {kind.model_fields['name'].default}")) for kind in objectives
    ]
    return [first, *(keys for keys in others if keys.name != "objective"), *each]


def as_recipe(config: Config) -> str:
    """The whole configuration as a recipe: before each key what it means, what it may be, and its default."""
    values = to_dict(config)
    blocks: list[str] = []
    for section in keys_of(config):
        indent = "  " if section.name else ""
        inner = values[section.name] if section.name else values
        lines = [*_comment(section.meaning, ""), *([f"{section.name}:"] if section.name else [])]
        for key in section.keys:
            value = inner[key.name.rpartition(".")[2]]
            default = "" if value == key.default else f"; default {_written(key.default)}"
            lines += _comment(f"{key.meaning} [{key.values}{default}]".lstrip(), indent)
            lines.append(f"{indent}{key.name.rpartition('.')[2]}: {_written(value)}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def as_markdown() -> str:
    """Every key as a page of tables, a heading for each section."""
    parts: list[str] = []
    for section in every_key():
        rows = [
            f"| `{key.name}` | `{_written(key.default)}` | {_cell(key.values)} | {_cell(key.meaning)} |"
            for key in section.keys
        ]
        head = [f"## {section.name or 'The run'}", "", *([section.meaning, ""] if section.meaning else [])]
        parts.append("\n".join([*head, "| key | default | values | meaning |", "|---|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def as_facts(config: Config) -> dict[str, dict[str, Any]]:
    """By dotted key: value, default, values and meaning."""
    values = to_dict(config)
    return {
        key.name: {
            "value": values[section.name][key.name.rpartition(".")[2]] if section.name else values[key.name],
            "default": key.default,
            "values": key.values,
            "meaning": key.meaning,
        }
        for section in keys_of(config)
        for key in section.keys
    }


def _keys(section: type[BaseModel], name: str, objective: type[ObjectiveSection], title: str = "") -> Iterator[Keys]:
    """Those of a section, then those of the sections in it."""
    meanings, own, below = _docstrings(section), list[Key](), list[tuple[str, type[BaseModel]]]()
    for field_name, field in section.model_fields.items():
        kind = field.annotation
        if kind is ObjectiveSection:
            below.append((field_name, objective))
        elif isinstance(kind, type) and issubclass(kind, Section):
            below.append((field_name, kind))
        else:
            default = section.model_validate({}).model_dump(mode="json", include={field_name})[field_name]
            dotted = f"{name}.{field_name}" if name else field_name
            own.append(Key(dotted, default, _values(dotted, field), meanings.get(field_name, "")))
    yield Keys(title or name, "" if section is Config else _one_line(section.__doc__), tuple(own))
    for field_name, kind in below:
        yield from _keys(kind, field_name, objective)


def _docstrings(section: type[BaseModel]) -> dict[str, str]:
    """The text below each field, as the source has it: Python does not keep it."""
    found: dict[str, str] = {}
    for kind in reversed(section.__mro__):
        if issubclass(kind, Section):
            (made,) = ast.parse(dedent(inspect.getsource(kind))).body
            for field, text in pairwise(made.body if isinstance(made, ast.ClassDef) else []):
                match field, text:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                        found[name] = _one_line(words)
                    case _:
                        pass
    return found


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _values(name: str, field: FieldInfo) -> str:
    if name == "objective.name":
        return _one_of(plugins.names(plugins.OBJECTIVES))
    if name == "engine":
        return _one_of(plugins.names(plugins.ENGINES))
    return _kind(field.annotation) + _bounds(field.metadata)


def _kind(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (UnionType, Union):
        parts = [_kind(part) for part in inner if part is not NoneType]
        return " or ".join([*(["null"] if NoneType in inner else []), *parts])
    if origin is Literal:
        return _one_of([str(value) for value in inner])
    if origin is tuple:
        plural = f"{_kind(inner[0])}s"
        return f"list of {plural}" if inner[-1] is Ellipsis else f"{len(inner)} {plural}"
    if origin in (list, Mapping, dict):
        return f"list of {_kind(inner[0])}s" if origin is list else "a value for each name"
    return {int: "whole number", float: "number", bool: "true or false", str: "text"}.get(annotation, "value")


def _bounds(metadata: list[Any]) -> str:
    known = {
        name: getattr(each, name)
        for each in metadata
        for name in ("ge", "gt", "le", "lt")
        if getattr(each, name, None) is not None
    }
    words = {"ge": "from {}", "gt": "above {}", "le": "to {}", "lt": "below {}"}
    return "".join(
        f" {words[name].format(value if isinstance(value, int) else f'{value:g}')}" for name, value in known.items()
    )


def _one_of(names: list[str]) -> str:
    return " | ".join(names)


def _comment(text: str, indent: str) -> list[str]:
    return wrap(text, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ", break_long_words=False)


def _written(value: Any) -> str:
    """As YAML, on one line."""
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).removesuffix("\n...\n").strip()
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
