"""What the program shows on standard output while it works."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from unmask.environment import launched

_silenced: ContextVar[bool] = ContextVar("silenced", default=False)
_speaks: ContextVar[bool] = ContextVar("speaks", default=False)
_shown: ContextVar[Bar | None] = ContextVar("shown", default=None)

PLAIN_LINE_SECONDS = 10.0
"""Least time between two progress lines where there is no terminal."""
_ENDLESS = 1_000_000
"""Characters in a line where there is no terminal."""


def say(message: str) -> None:
    """Print one line, at once and as it is; above the bar while one is shown. Of several processes the first speaks."""
    if launched()[0] == 0 or _speaks.get():
        print(message, flush=True)


def table(rows: Sequence[Sequence[Any]], columns: Sequence[str]) -> None:
    """Print rows under column titles: numbers aligned right, everything else left.

    A terminal gets it in its width; anything else one line a row, however long.
    """
    terminal = sys.stdout.isatty()
    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for i, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[i], int | float) for row in rows)
        grid.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(str(cell)) for cell in row))  # a string would be read as markup
    console = Console(file=sys.stdout, force_terminal=terminal, width=None if terminal else _ENDLESS)
    with console.capture() as captured:
        console.print(grid)
    for line in captured.get().splitlines():
        say(line.rstrip())


class Bar:
    """Counts units of work and shows how far along they are. Made by `progress`."""

    def __init__(
        self, title: str, total: int, done: int, unit: str, images_per_unit: int, terminal: bool, outer: Bar | None
    ) -> None:
        self._outer = outer
        self._within = ""
        self._title, self._unit, self._images_per_unit = title, unit, images_per_unit
        self._plain = not terminal
        self._last_line, self._unsaid = time.monotonic(), total > 0  # nothing to do is nothing to tell
        self._figures: dict[str, str] = {}
        # Without a terminal rich shows nothing and only keeps count, rate and time left.
        self._rich = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=Console(file=sys.stdout),
            disable=self._plain,
        )
        self._rich.add_task(title, total=total, completed=done, text="")
        self._task = self._rich.tasks[0]

    def update(self, n: int = 1, **figures: float) -> None:
        """`n` more units are done. A named figure stays until it is given again."""
        self._figures |= {name: f"{value:.4g}" for name, value in figures.items()}
        self._rich.update(self._task.id, advance=n)
        self._rich.update(self._task.id, text=self._text())
        self._unsaid = True
        self._say_now_and_then()
        if self._outer is not None:
            self._outer.show_within(f"{self._title} {self._task.percentage:.0f}%")

    def show_within(self, text: str) -> None:
        """Tell of work within the unit that is being done."""
        self._within = text
        self._rich.update(self._task.id, text=self._text())
        self._say_now_and_then()

    def _say_now_and_then(self) -> None:
        if self._plain and self._outer is None and time.monotonic() - self._last_line >= PLAIN_LINE_SECONDS:
            self._say_line()

    def start(self) -> None:
        if self._outer is None:
            self._rich.start()
        else:
            self._outer.show_within(f"{self._title} …")

    def stop(self) -> None:
        if self._outer is not None:
            self._outer.show_within("")
            return
        self._rich.stop()
        if self._plain and self._unsaid:
            self._say_line()

    def _say_line(self) -> None:
        self._last_line, self._unsaid = time.monotonic(), False
        say(f"{self._title}  {self._task.percentage:3.0f}%  {self._text()}")

    def _text(self) -> str:
        """For example `120/800 steps  512 images/s  0:01:20 left  loss 0.5123`."""
        task = self._task
        parts = [f"{int(task.completed)}/{int(task.total)} {self._unit}s"] if task.total else []
        speed = task.finished_speed or task.speed
        if speed:
            rate, counted = (speed * self._images_per_unit, "image") if self._images_per_unit else (speed, self._unit)
            parts.append(f"{rate:.0f} {counted}s/s" if rate >= 100 else f"{rate:.3g} {counted}s/s")
        if task.time_remaining:
            parts.append(f"{_clock(task.time_remaining)} left")
        parts += [f"{name} {value}" for name, value in self._figures.items()]
        return "  ".join([*parts, self._within] if self._within else parts)


@contextmanager
def progress(title: str, *, total: int, done: int = 0, unit: str = "step", images_per_unit: int = 0) -> Generator[Bar]:
    """Show the progress of `total` units, `done` of which were done before.

    On a terminal this is a bar; elsewhere plain lines, at most one every 10 seconds and always the last. With
    `images_per_unit` (the batch size, where the unit is a step) the rate is given in images per second. While another
    bar is shown, there is a word at its end.

        with progress("pretrain", total=800, images_per_unit=256) as bar:
            bar.update(1, loss=0.51)
    """
    outer = None if _silenced.get() else _shown.get()
    bar = Bar(title, total, done, unit, images_per_unit, terminal=sys.stdout.isatty(), outer=outer)
    if _silenced.get():
        yield bar
        return
    bar.start()
    _shown.set(outer or bar)
    try:
        yield bar
    finally:
        _shown.set(outer)
        bar.stop()


@contextmanager
def without_bars() -> Generator[None]:
    """Within, `progress` shows nothing: for work inside of work that is shown."""
    before = _silenced.set(True)
    try:
        yield
    finally:
        _silenced.reset(before)


@contextmanager
def speaking() -> Generator[None]:
    """Within, this process speaks, though it may not be the first: it does what one of them has to do for all."""
    before = _speaks.set(True)
    try:
        yield
    finally:
        _speaks.reset(before)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
