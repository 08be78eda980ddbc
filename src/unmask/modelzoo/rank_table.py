"""Rank tables: the JSON in which Ascend's tools list machines and their devices, in both of its layouts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.errors import ConfigError


@dataclass(frozen=True)
class Server:
    """A machine."""

    address: str
    devices: tuple[str, ...]
    """Their numbers there, in the order of the ranks."""


def read_rank_table(path: str | Path) -> list[Server]:
    """The machines, in the order of the ranks of their first devices.

    `server_list` is what hccl_tools writes (version 1.0); `group_list` is older, with an instance for each machine or
    each device. Raises ConfigError.
    """
    try:
        content: Any = json.loads(Path(path).read_text(encoding="utf-8"))
        if "server_list" in content:
            parts = [(server["server_id"], server["device"]) for server in content["server_list"]]
        else:
            instances = [instance for group in content["group_list"] for instance in group["instance_list"]]
            parts = [(instance["server_id"], instance["devices"]) for instance in instances]
        devices: dict[str, list[str]] = {}
        for address, listed in parts:
            devices.setdefault(str(address), []).extend(str(device["device_id"]) for device in listed)
    except OSError as error:
        raise ConfigError(f"the rank table {path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ConfigError(f"{path} is not a rank table: it has neither a server_list nor a group_list") from None
    if not devices or not all(devices.values()):
        raise ConfigError(f"the rank table {path} lists no devices, or a machine without any")
    return [Server(address, tuple(numbers)) for address, numbers in devices.items()]
