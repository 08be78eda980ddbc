"""Imports run one way: from the rooms above to those below, never back."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src" / "unmask"
LAYERS = [
    ["errors", "interrupts"],
    ["environment", "files", "plugins", "schedules", "metrics"],
    ["report"],
    ["config"],
    ["data"],
    ["models"],
    ["objectives"],
    ["engines"],
    ["checkpoint"],
    ["modelzoo"],
    ["interchange"],
    ["evaluate"],
    ["export", "loop", "preparation"],
    ["teacher"],
    ["teacher_network"],
    ["train"],
    ["overview", "trial"],
    ["api"],
    ["bench", "check", "replay", "sweep", "demo", "launch", "serve"],
    ["doctor"],
    ["cli"],
    ["__init__", "__main__"],
]
"""From the lowest to the highest. What stands on one line does not import one another."""
HEIGHT = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}
MODULES = sorted(SRC.rglob("*.py"))


def room_of(module: Path) -> str:
    first = module.relative_to(SRC).parts[0]
    return first.removesuffix(".py")


def imported(module: Path) -> set[str]:
    """Rooms that a module imports from, wherever in it, also for type checking alone."""
    rooms: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            names = [f"unmask.{name.name}" for name in node.names] if node.module == "unmask" else [node.module]
        else:
            continue
        rooms |= {parts[1] for name in names if (parts := name.split("."))[0] == "unmask" and len(parts) > 1}
    return {room for room in rooms if room in HEIGHT}


def test_every_room_has_a_layer() -> None:
    assert {room_of(module) for module in MODULES} == HEIGHT.keys()


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(SRC)))
def test_nothing_is_imported_from_above(module: Path) -> None:
    room = room_of(module)
    wrong = {other for other in imported(module) if other != room and HEIGHT[other] >= HEIGHT[room]}
    assert not wrong


def test_frameworks_are_known_only_to_what_is_theirs() -> None:
    """Engines, and the networks of models and objectives; `export` and `doctor` ask the engines."""
    theirs = {
        str(module.relative_to(SRC))
        for module in MODULES
        if any(
            isinstance(node, ast.Import | ast.ImportFrom)
            and {(node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name}
            & {"torch", "mindspore", "torch.nn"}
            for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        )
    }
    allowed = ("engines/torch_engine/", "engines/mindspore_engine/", "models/torch_", "models/mindspore_")
    rest = {name for name in theirs if not name.startswith(allowed)}
    rest -= {name for name in rest if name.startswith("objectives/") and name.endswith(("/torch.py", "/mindspore.py"))}
    assert rest <= {"interchange/facebook.py"}  # writes what torch.load reads
