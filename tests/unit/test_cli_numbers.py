"""Numbers on the command line have bounds; what lies beyond them is answered in one line, before anything is read."""

import pytest

from unmask.cli import main

WRONG = {
    "--batch-size": ("-5", "0", "1e3", "x", "99999999999"),
    "--top": ("0", "-1"),
    "--k": ("0", "2.5"),
    "--temperature": ("nan", "0", "-1", "inf", "x"),
    "--count": ("0", "-2"),
    "--mask-ratio": ("nan", "1.5", "-0.1"),
    "--labels-per-class": ("0",),
    "--seed": ("-1", "4294967296"),
    "--labels": ("0",),
    "--seeds": ("-1",),
    "--steps": ("0",),
    "--short-side": ("0",),
    "--quality": ("0", "101"),
    "--shard-size": ("0", "-1M", "nan", "x", "M"),
    "--max-bad-share": ("2", "nan"),
    "--workers": ("0",),
}
COMMANDS = {
    "predict": (["run", "images"], ["--batch-size", "--top"]),
    "knn": (["run", "train", "val"], ["--k", "--temperature"]),
    "probe": (["run", "train", "val"], ["--labels-per-class", "--seed"]),
    "sweep-labels": (["recipe", "--labels", "5"], ["--labels", "--seeds", "--steps"]),
    "reconstruct": (["run", "images"], ["--count", "--mask-ratio", "--seed"]),
    "pack": (["images", "out"], ["--short-side", "--quality", "--shard-size", "--max-bad-share", "--workers"]),
}


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [(c, o, v) for c, (_, options) in COMMANDS.items() for o in options for v in WRONG[o]],
)
def test_numbers_out_of_bounds(command: str, option: str, value: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main([command, *COMMANDS[command][0], f"{option}={value}"])
    assert stopped.value.code == 2
    assert f"{option}: {value!r} is not a" in capsys.readouterr().err.splitlines()[-1]
