"""`python -m unmask`, and the command `unmask`."""

import signal
from typing import NoReturn


def program() -> NoReturn:
    """`unmask.cli.program`; until that answers Ctrl-C, it ends the process without a word of what is being imported."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from unmask.cli import program

    program()


if __name__ == "__main__":
    program()
