import os
import pty
import re
import subprocess
import sys

import pytest

from unmask.errors import DataError
from unmask.report import progress as module
from unmask.report.progress import progress, say, table


def test_without_a_terminal_only_the_last_line_of_a_short_run_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("pretrain", total=8, done=3, images_per_unit=64) as bar:
        for step in range(3, 8):
            bar.update(1, loss=1 / (step + 1), lr=1e-4)
    (line,) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"pretrain  100%  8/8 steps  \S+ images/s  loss 0.125  lr 0.0001", line)


def test_without_a_terminal_lines_appear_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    with progress("embed", total=100, unit="image") as bar:
        for _ in range(25):
            now += 1.0
            bar.update(4)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[2] for line in lines] == ["40/100 images", "80/100 images", "100/100 images"]


def test_the_last_line_is_shown_when_work_is_interrupted(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), progress("pretrain", total=8) as bar:  # noqa: PT012
        bar.update(2, loss=0.5)
        raise KeyboardInterrupt
    assert "2/8 steps" in capsys.readouterr().out


def test_nothing_to_do_is_nothing_to_tell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a run whose network is taken as it starts. What goes on within is told all the same."""
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    with progress("finetune", total=0) as bar:
        now += 20
        bar.show_within("validation 50%")
    with progress("finetune", total=0):
        pass
    assert capsys.readouterr().out == "finetune    0%  validation 50%\n"


def test_a_figure_stays_until_it_is_given_again(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("finetune", total=3) as bar:
        bar.update(1, loss=0.5, top1=0.25)
        bar.update(2, loss=0.4)
    assert capsys.readouterr().out.endswith("loss 0.4  top1 0.25\n")


def test_lines_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    message = "[bold]not markup[/bold] " + "x" * 300
    say(message)
    assert capsys.readouterr().out == message + "\n"


def test_a_table_lines_up_wide_characters_and_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    table([("cat", 5, "图像"), ("dogs", 12, "b")], ["class", "images", "名"])
    assert capsys.readouterr().out == "class  images  名\ncat         5  图像\ndogs       12  b\n"


def test_a_table_without_rows_shows_its_columns(capsys: pytest.CaptureFixture[str]) -> None:
    table([], ["class", "images"])
    assert capsys.readouterr().out == "class  images\n"


def test_a_piped_table_is_plain_and_whole(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("COLUMNS", "20"), ("FORCE_COLOR", "1"), ("TTY_COMPATIBLE", "1")):
        monkeypatch.setenv(name, value)
    long = "[bold]not markup[/bold] :smile: " + "词" * 200
    table([(long, 1.5), ("b", -12)], ["name", "x"])
    width = 32 + 2 * 200  # a Chinese character takes two columns
    assert capsys.readouterr().out.split("\n") == [
        "name" + " " * (width - 4) + "    x",
        long + "  1.5",
        "b" + " " * (width - 1) + "  -12",
        "",
    ]


def test_a_table_on_a_terminal_stays_in_its_width() -> None:
    code = "from unmask.report.progress import table; table([('a ' * 30, 5)], ['name', 'images'])"
    master, terminal = pty.openpty()
    environment = os.environ | {"COLUMNS": "40", "TERM": "xterm"}
    subprocess.run([sys.executable, "-c", code], stdout=terminal, env=environment, check=True)
    os.close(terminal)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", os.read(master, 4096).decode()).splitlines()
    os.close(master)
    assert shown[0].split() == ["name", "images"]
    assert max(map(len, shown)) <= 40
    assert sum(line.count("a") for line in shown[1:]) == 30


def test_work_within_work_is_a_word_at_its_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    with progress("pretrain", total=2) as bar:
        bar.update(loss=0.5)
        with pytest.raises(DataError), progress("validation", total=40, unit="image") as inner:  # noqa: PT012
            for _ in range(3):
                now += 6.0
                inner.update(10)
            raise DataError("it does not end well")
        bar.update()
    with progress("embed", total=1) as bar:
        bar.update()
    lines = [re.sub(r"  \S+ steps/s|  \S+ left", "", line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "pretrain   50%  1/2 steps  loss 0.5  validation 50%",
        "pretrain  100%  2/2 steps  loss 0.5",
        "embed  100%  1/1 steps",
    ]
