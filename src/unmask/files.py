"""Files as a careful program writes and reads them: durable, whole or not at all, and bounded when a stranger's."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from unmask.errors import CheckpointError, ConfigError

ASIDE = ".tmp-"
"""How the name of anything begins that is being written, or was when its process was killed."""
MAX_JSON = 16 * 2**20
"""Bytes; a larger JSON file is refused before it is read."""


def expanded(path: str | os.PathLike[str]) -> Path:
    """`path` with the home folder in place of a `~` at its start; as it is where there is no such home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def cause(error: Exception) -> str:
    """The reason in one line, without the errno and the path that the caller names itself."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


# --- writing ----------------------------------------------------------------------------------------------------------


def fsync(path: Path) -> None:
    """Make a file or directory durable. Raises OSError."""
    windows = os.name == "nt"
    if windows and path.is_dir():
        return  # cannot be opened there
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def aside(path: Path) -> Path:
    """Where `path`, a file or folder, is to be written before it is renamed: in the same folder.

    Always the same, so that whoever writes `path` next overwrites what a killed process left.
    """
    return path.with_name(f"{ASIDE}{path.name}")


@contextmanager
def written_aside(path: Path, *, cache: bool = False) -> Generator[Path]:
    """A path in the same folder to write a file to, which becomes `path`, durable, at the end; gone after an error.

    cache: several processes may write `path` at the same time, so each gets a path of its own; and as the file may be
    lost, nothing waits for the disk. Raises OSError, with the name of `path`.
    """
    there = path.with_name(f"{ASIDE}{secrets.token_hex(4)}-{path.name}") if cache else aside(path)
    try:
        with naming(path):
            yield there
            if not cache:
                fsync(there)
            there.replace(path)
            if not cache:
                fsync(path.parent)
    finally:
        with suppress(OSError):  # what failed is told, not that its remains cannot be removed either
            there.unlink()


@contextmanager
def folder_written_aside(path: Path) -> Generator[Path]:
    """A new folder beside `path` to write files to, which becomes `path`, durable, at the end; gone after an error.

    `path` is not there yet, or an empty folder. Raises OSError, with the name of `path`.
    """
    there = aside(path)
    try:
        with naming(path):
            shutil.rmtree(there, ignore_errors=True)  # left by a process that was killed
            there.mkdir(parents=True)
            yield there
            for file in there.iterdir():
                fsync(file)
            fsync(there)
            if path.is_dir():
                path.rmdir()
            there.replace(path)
            fsync(path.parent)
    finally:
        shutil.rmtree(there, ignore_errors=True)


@contextmanager
def naming(path: Path) -> Generator[None]:
    """An OSError from within says that it is about `path`: the system names no file when it cannot write to one."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def check_free(*paths: Path) -> None:
    """Raise ConfigError where one of these is there already, but for an empty folder: nothing is overwritten."""
    for path in paths:
        if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
            raise ConfigError(f"{path} is there already; name another, or remove it")


def check_folder(folder: Path) -> None:
    """Raise ConfigError where something else stands in its place, or in that of a folder above it."""
    there = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), None)
    if there is not None and not there.is_dir():
        raise ConfigError(f"{there} is there already and no folder; name another place")


def write_text(path: Path, text: str) -> None:
    """A whole file of UTF-8, or none. Raises OSError."""
    with written_aside(path) as there:
        there.write_text(text, encoding="utf-8", newline="\n")


# --- reading ----------------------------------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    """The checksum of a file, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_json(path: Path, raw: bytes | str) -> dict[str, Any]:
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


# --- one run per output folder ----------------------------------------------------------------------------------------


class RunLock:
    """Holds `<run>/.lock`, or another `name`, until `release` or the end of the process, whatever ends it.

    Forked processes do not hold it.

    Raises CheckpointError naming the process that holds it already, or why the lock file cannot be opened, and
    ConfigError where `run` is a file.
    """

    def __init__(self, folder: Path, name: str = ".lock") -> None:
        check_folder(folder)
        path = folder / name
        # Not a soft lock where the file system has no other: it would outlive a killed process.
        self._lock = FileLock(path, thread_local=False, fallback_to_soft=False, on_acquired=_write_process_id)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(blocking=False)
        except Timeout:
            raise CheckpointError(
                f"{folder} is in use by another run (process {_holder(path)}); "
                "wait for it, stop it, or set another output"
            ) from None
        except OSError as error:
            raise CheckpointError(f"cannot lock {path}: {cause(error)}") from error

    def release(self) -> None:
        """Let another run have the folder. Harmless when done twice."""
        self._lock.release()

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()


@contextmanager
def gone_if_unused(folder: Path) -> Generator[None]:
    """A run folder that this block made, and the folders above it, are gone after an error that left it empty.

    Empty is also one with nothing but an empty `checkpoints` and the lock, which must have been released.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        with suppress(OSError):  # whatever holds anything stays
            if made and {path.name for path in folder.iterdir()} <= {"checkpoints", ".lock"}:
                (folder / "checkpoints").rmdir()
                (folder / ".lock").unlink()
            for path in made:
                path.rmdir()
        raise


def _write_process_id(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())


def _holder(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(32).decode(errors="replace").strip() or "unknown"
    except OSError:  # Windows lets nobody else read a locked file
        return "unknown"
