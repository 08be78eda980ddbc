"""Rank tables, and stand-ins for msrun and torchrun: what tests of the model zoo's scripts share."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

TOOLS = Path(sys.executable).parent
"""Has the launchers, and the `python` that msrun starts."""


def table_of(folder: Path, *devices: list[int]) -> Path:
    """A rank table of machines with these devices, as hccl_tools writes it."""
    servers = [
        {"server_id": f"10.0.0.{n}", "device": [{"device_id": str(d), "device_ip": "", "rank_id": ""} for d in numbers]}
        for n, numbers in enumerate(devices, start=1)
    ]
    table = folder / "hccl.json"
    table.write_text(json.dumps({"version": "1.0", "server_count": str(len(servers)), "server_list": servers}))
    return table


def older_table_of(folder: Path, *devices: list[int], one_instance_each: bool = False) -> Path:
    """The same in the older layout, with an instance for each machine, or for each device."""
    listed = [[{"device_id": str(d), "device_ip": ""} for d in numbers] for numbers in devices]
    instances = [
        {"pod_name": "job", "server_id": f"10.0.0.{n}", "devices": part}
        for n, numbers in enumerate(listed, start=1)
        for part in ([[device] for device in numbers] if one_instance_each else [numbers])
    ]
    group = {"group_name": "g", "instance_count": str(len(instances)), "instance_list": instances}
    table = folder / "older.json"
    table.write_text(json.dumps({"status": "completed", "group_count": "1", "group_list": [group]}))
    return table


def stand_ins(folder: Path) -> dict[str, str]:
    """Variables with which msrun and torchrun write down what they were given, into the log of the launcher.

    There is no cluster here: that shows that the scripts read the table and hand over the right numbers, not that a
    cluster forms.
    """
    for name in ("msrun", "torchrun"):
        stand_in = folder / "bin" / name
        stand_in.parent.mkdir(exist_ok=True)
        stand_in.write_text(f'#!/bin/sh\nprintf "%s\\n" {name} "$ASCEND_RT_VISIBLE_DEVICES" "$@"\n')
        stand_in.chmod(0o755)
    return {"PATH": f"{folder / 'bin'}:{TOOLS}:{os.environ['PATH']}"}


def ended(done: subprocess.CompletedProcess[str], seconds: float) -> None:
    """Wait until what the script left in the background has ended."""
    found = re.search(r"kill (\d+)$", done.stdout, re.M)
    assert found, done.stderr
    deadline = time.monotonic() + seconds
    while Path(f"/proc/{found[1]}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{found[1]}").exists(), done.stdout


def started(folder: Path, logs: str) -> list[str]:
    return (folder / f"{logs}.log").read_text().splitlines()
