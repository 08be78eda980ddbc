"""`python -m unmask`."""

from unmask.cli import program

program()
