"""One process of distribute.sh: `python rank.py LOGS COMMAND ...` is `unmask COMMAND ...`, logged in LOGS<rank>/log.

The scheduler that msrun starts beside the processes writes to where msrun has its own messages.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from unmask.cli import program

if __name__ == "__main__":  # loader processes import this file
    logs, *arguments = sys.argv[1:]
    if os.environ.get("MS_ROLE") != "MS_SCHED":
        log = Path(logs + (os.environ.get("RANK") or os.environ["RANK_ID"])) / "log"
        log.parent.mkdir(exist_ok=True)
        with log.open("wb") as file:
            for stream in (sys.stdout, sys.stderr):
                os.dup2(file.fileno(), stream.fileno())
    program(arguments)
