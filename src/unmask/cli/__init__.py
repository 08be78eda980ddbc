"""The command line. Nothing but the standard library is imported before the command is known.

A file for each group of commands: the options of a command stand above what it does. Heavy imports happen inside: only
the command that runs pays.
"""

from __future__ import annotations

import argparse
import atexit
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from io import TextIOWrapper
from typing import NoReturn

from unmask import interrupts
from unmask.cli import about, data, jobs, models, pages, readouts, shared, training
from unmask.cli.shared import Commands
from unmask.errors import ProcessError, UnmaskError

_GROUPS = (training, readouts, data, models, pages, jobs, about)


def program(arguments: Sequence[str] | None = None) -> NoReturn:
    """`main` as all that this process does.

    With MindSpore it ends without tearing down the interpreter: MindSpore 2.10 has threads that outlive the objects
    they use, which kills one of many finished runs (signal 11), and msrun calls all of them failed. What it registered
    with `atexit` takes leave of msrun's scheduler, and all the rest is the system's to free.
    """
    code = main(arguments)
    if "mindspore" in sys.modules:
        atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage]
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # nobody reads it
                stream.flush()
        os._exit(code)
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: see `unmask.errors`, 143 after SIGTERM and 130 after SIGINT."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if isinstance(sys.stdout, TextIOWrapper):  # a name that the terminal has no characters for is no reason to fail
        sys.stdout.reconfigure(errors="backslashreplace")
    # A file of the MindSpore model zoo comes with `--key value` for any of its keys, which argparse cannot know.
    flat = any(argument.partition("=")[0] == "--config_path" for argument in arguments)
    parser, commands = grammar(flat)
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what may come next: see `unmask completion`
        from argcomplete import autocomplete

        autocomplete(parser)
    if not arguments:
        parser.print_help()
        return 0
    command = commands.named.get(arguments[0])
    if command is None:
        parser.parse_args(arguments)  # which answers --help and --version, and refuses all else
        return 0
    for place, word in enumerate(arguments[1:], start=1):
        if not (word or flat):  # as a path it would be the folder one is in
            command.error(f"argument {place} is empty, as when a variable is")
    options, rest = command.parse_known_args(arguments[1:]) if flat else command.parse(arguments[1:])
    if rest and not getattr(options, "config_path", None):
        command.error(f"unrecognized arguments: {' '.join(rest)}")
    options.flat = rest
    try:
        with interrupts.command_line():
            from unmask.environment import check_alone, launched

            shares = hasattr(options, "share")
            if not shares and not options.together:
                check_alone()
            if not shares or launched()[0] >= 0:  # msrun's scheduler has no share
                shared.run(options)
                sys.stdout.flush()  # what cannot be printed fails here
    except (UnmaskError, interrupts.Interrupted) as error:
        print(f"unmask: {' '.join(str(error).split())}", file=sys.stderr)
        if isinstance(error, ProcessError):
            sys.stdout.flush()
            os._exit(error.exit_code)  # MindSpore would take leave of the others: 20 s, and then a SIGTERM to itself
        return error.exit_code
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a full disk, a name that is too long, a file where a folder should be
        where = f"{error.filename}: " if error.filename else ""
        print(f"unmask: {where}{error.strerror or error}", file=sys.stderr)
        return UnmaskError.exit_code
    return 0


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(about.version())
        parser.exit()


def grammar(flat: bool = False) -> tuple[argparse.ArgumentParser, Commands]:
    """The command line, and its commands by name; `flat` where --config_path takes the place of RECIPE or MODEL."""
    parser = argparse.ArgumentParser(
        prog="unmask",
        description="Masked-autoencoder pretraining of Vision Transformers and everything after it.",
        epilog="Every command has its own --help.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="versions of unmask, Python and the engines")
    commands = Commands(parser, flat)
    for group in _GROUPS:
        for add in group.COMMANDS:
            add(commands)
    return parser, commands
