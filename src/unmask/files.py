"""Files as a careful program writes and reads them: durable, whole or not at all, and bounded when a stranger's."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unmask.errors import CheckpointError

MAX_JSON = 16 * 2**20
"""Bytes; a larger JSON file is refused before it is read."""


def cause(error: Exception) -> str:
    """The reason in one line, without the errno and the path that the caller names itself."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def fsync(path: Path) -> None:
    """Make a file or directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def written_aside(path: Path) -> Generator[Path]:
    """A path in the same folder to write to, which becomes `path`, durable, at the end; gone after an error."""
    aside = path.with_name(f".tmp-{path.name}")
    try:
        yield aside
        fsync(aside)
        aside.replace(path)
        fsync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def parse_json(path: Path, raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw`, which was read from `path`. Raises CheckpointError."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {cause(error)}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return value


def read_bytes(path: Path) -> bytes:
    """A small regular file whole. Raises CheckpointError when missing, unreadable, special or larger than MAX_JSON."""
    try:
        if not path.is_file():
            raise CheckpointError(f"{path} is missing")
        if path.stat().st_size > MAX_JSON:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes, more than any such file needs")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {cause(error)}") from error
