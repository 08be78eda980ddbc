"""A first signal stops a program in order, a second one at once."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

HEAD = """
import os, signal
from unmask.interrupts import Interrupted, command_line, deferred

def send(name):
    os.kill(os.getpid(), signal.Signals[name])

signal.signal(signal.SIGINT, signal.default_int_handler)
"""


def run(body: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-c", HEAD + body], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("body", "code", "out"),
    [
        (
            "with command_line():\n    try: send('SIGTERM')\n    except Interrupted as e: print(e)",
            0,
            "stopped by SIGTERM",
        ),
        (
            "with command_line():\n    try: send('SIGTERM')\n    finally: send('SIGINT'); print('not reached')",
            130,
            "",
        ),
        (
            "with command_line(), deferred() as request:\n"
            "    send('SIGINT'); print(request.received.name, flush=True); send('SIGTERM'); print('not reached')",
            143,
            "SIGINT",
        ),
        ("try:\n    with deferred(): send('SIGINT'); print('held')\nexcept KeyboardInterrupt: pass", 0, "held"),
        ("with deferred(): send('SIGTERM')", -15, ""),
        ("signal.signal(signal.SIGINT, signal.SIG_IGN)\nwith deferred(): send('SIGINT'); print('on')", 0, "on"),
        ("with command_line(): pass\nprint(signal.getsignal(signal.SIGTERM).name)", 0, "SIG_DFL"),
    ],
    ids=["first", "second while closing", "second while held", "library", "library SIGTERM", "ignored", "restored"],
)
def test_signals(body: str, code: int, out: str) -> None:
    assert run(body) == (code, f"{out}\n" if out else "")


AT_AN_IMPORT = """
import os, runpy, signal, sys

class Interrupts:
    def find_spec(self, name, *_):
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupts())
runpy.run_module("unmask", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("module", ["unmask.cli", "unmask.interrupts", "unmask.cli.training"])
def test_ctrl_c_while_the_program_is_being_imported_says_nothing(module: str):
    done = subprocess.run([sys.executable, "-c", AT_AN_IMPORT, module], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
