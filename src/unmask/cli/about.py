"""About this program and the machine it runs on: doctor."""

from __future__ import annotations

from argparse import Namespace

from unmask.cli.shared import Commands


def _add_doctor(commands: Commands) -> None:
    commands.add("doctor", doctor, "show engines, devices and versions, and what is missing")


def doctor(_options: Namespace) -> None:
    from unmask.doctor import report as tell

    tell()


COMMANDS = (_add_doctor,)
