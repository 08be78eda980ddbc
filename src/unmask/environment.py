"""What this process runs on: packages, devices, git state. Imports no framework unless asked to look at devices."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from unmask.errors import ConfigError

PACKAGES = (
    "unmask",
    "torch",
    "torch_npu",
    "mindspore",
    "numpy",
    "pillow",
    "simplejpeg",
    "cykooz.resizer",
    "grain",
    "safetensors",
    "pyarrow",
    "mlxtend",
)


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Installed versions, of Python too."""
    found = {"python": platform.python_version()}
    return found | {package: version for package in packages if (version := _version(package))}


@cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the checkout that holds `folder` and whether it has uncommitted changes; None outside of one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def launched() -> tuple[int, int]:
    """Rank of this process and how many were started together, as msrun, ModelArts or torchrun tell; (0, 1) alone.

    The scheduler that msrun starts beside the workers runs the same command; it has no share in the work: rank -1.
    """
    env = os.environ
    rank = -1 if env.get("MS_ROLE") == "MS_SCHED" else int(env.get("RANK_ID") or env.get("RANK") or 0)
    return rank, int(env.get("RANK_SIZE") or env.get("WORLD_SIZE") or 1)


_OF_LAUNCHERS = ("RANK_ID", "RANK", "RANK_SIZE", "WORLD_SIZE", "MS_ROLE")


def work_alone() -> int:
    """Have `launched` say (0, 1) from now on; returns the rank that a launcher gave this process, 0 without one.

    RANK_ID without a launcher is left over in the shell.
    """
    rank = launched()[0] if os.environ.keys() & {"TORCHELASTIC_RUN_ID", "MS_ROLE", "RANK_TABLE_FILE"} else 0
    for name in _OF_LAUNCHERS:
        os.environ.pop(name, None)
    return rank


def check_alone() -> None:
    """Raise ConfigError when several processes were started together."""
    if launched()[1] > 1:
        raise ConfigError("this command runs in one process; start it without torchrun or msrun")


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
