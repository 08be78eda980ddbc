"""What a command is told to write is refused where something is there already: one rule, for every command."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runs import TINY_MODEL
from unmask.cli import grammar, main
from unmask.errors import ConfigError
from unmask.files import check_free

pytest.importorskip("torch", reason="PyTorch is not installed")

CPU = ["--device", "cpu"]
JOB = ["launch", "slurm", "mae-vit-tiny", "data.train=p", "data.workers=1", "output=r"]
COMMANDS: dict[str, tuple[list[str], list[str]]] = {
    "evaluate": (["evaluate", "classifier", "photos", *CPU, "--out", "OUT"], ["OUT/metrics.json", "OUT/of-others"]),
    "predict": (["predict", "classifier", "photos", *CPU, "--out", "p.csv"], ["p.csv", "p.csv.json", "p.csv.bad.txt"]),
    "embed": (["embed", "classifier", "photos", *CPU, "--out", "e.npy"], ["e.npy", "e.npy.json", "e.names.txt"]),
    "reconstruct": (["reconstruct", "mae", "photos", *CPU, "--out", "r.png"], ["r.png"]),
    "stats": (["stats", "photos", "--out", "s.json"], ["s.json"]),
    "check": (["check", "photos", "--out", "OUT"], ["OUT/exclude.txt", "OUT/check.json", "OUT/alike.csv"]),
    "replay": (["replay", "mae", "--step", "1", "--out", "OUT"], ["OUT/step.json", "OUT/of-others"]),
    "report": (["report", "mae", "--images", "0", "--out", "r.html"], ["r.html"]),
    "launch": ([*JOB, "--out", "job.sh"], ["job.sh"]),
    "convert": (["convert", "mae", "m.pth", "--to", "facebook"], ["m.pth"]),
    "export": (["export", "classifier", "c.pt2"], ["c.pt2", "c.pt2.json"]),
    "pack": (["pack", "photos", "OUT"], ["OUT/of-others"]),
}
RUNS = {"pretrain", "finetune", "sweep-labels", "demo"}
"""Write to a run folder, `output=`, which is told from others by what is in it."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("place")
    for number in range(8):
        path = root / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (28, 28), np.uint8)).save(path)
    short = [*TINY_MODEL, "data.train=photos", "train.batch_size=4", "train.epochs=1", "optimizer.warmup_epochs=0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("UNMASK_CACHE", str(root / "cache"))
        assert main(["pretrain", "mae-vit-tiny", *short, "output=mae"]) == 0
        assert main(["finetune", "scratch-vit-tiny", *short, "augment.policy=null", "output=classifier"]) == 0
    return root


@pytest.fixture
def here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNMASK_CACHE", str(place / "cache"))
    for name in ("photos", "mae", "classifier"):
        Path(name).symlink_to(place / name)
    return tmp_path


def test_no_command_that_writes_is_left_out() -> None:
    writes = {
        name
        for name, command in grammar()[1].named.items()
        if {"--out", "out"} & {word for action in command._actions for word in (*action.option_strings, action.dest)}
    }
    assert writes - RUNS == {*COMMANDS, "push"}, "push writes to the hub, where each commit keeps the one before"


@pytest.mark.parametrize(
    ("command", "there"), [(name, path) for name, (_, paths) in COMMANDS.items() for path in paths]
)
def test_what_is_there_stays(command: str, there: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = here / there
    path.parent.mkdir(exist_ok=True)
    path.write_text("of others\n")
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    assert main(COMMANDS[command][0]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "is there already" in said or "is not empty" in said, said
    assert path.read_text() == "of others\n"
    after = {path: path.stat().st_mtime_ns for path in here.rglob("*") if path.name not in (".lock", "e.partial")}
    assert after == before, "nothing was begun"


@pytest.mark.parametrize("below", ["", "/below"])
@pytest.mark.parametrize(
    "words",
    [
        ["pretrain", "mae-vit-tiny", *TINY_MODEL, "data.train=photos", "output=file"],
        ["embed", "mae", "photos", "--out", "file"],
        ["predict", "classifier", "photos", "--out", "file"],
        ["pack", "photos", "file"],
        ["check", "photos", "--out", "file"],
    ],
    ids=lambda words: words[0],
)
def test_a_file_where_a_folder_should_be_is_called_so(
    words: list[str], below: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "file").write_text("of others\n")
    assert main([*words[:-1], words[-1] + below]) == 2
    assert re.fullmatch(
        r"unmask: (.*/)?file is there already and no folder; name another place\n", capsys.readouterr().err
    )
    assert (here / "file").read_text() == "of others\n"


@pytest.mark.parametrize("command", ["evaluate", "reconstruct", "replay", "report", "launch", "check"])
def test_a_second_time(command: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = COMMANDS[command][0]
    assert main(words) == 0
    assert not list(here.glob("**/.tmp-*"))
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    assert main(words) == (0 if command in ("check", "launch") else 2), "their files would be the same"
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before
    if command == "launch":
        assert main([*words, "seed=1"]) == 2
        assert "job.sh is there already" in capsys.readouterr().err
    if command == "check":
        assert main(["check", "photos/a", "--out", "OUT"]) == 0, "images are put right and looked at again"
        assert json.loads((here / "OUT" / "check.json").read_text())["images"] == 4


def test_the_folder_of_another_run(place: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whose objective has no head, which is what `objective.head=auto` looks for in a run that goes on."""
    before = {path: path.read_bytes() for path in (place / "mae").rglob("*.*") if path.is_file()}
    words = [*TINY_MODEL, "data.train=photos", "init=mae", "augment.policy=null", "output=mae"]
    assert main(["finetune", "finetune-vit-tiny", *words]) != 0
    assert capsys.readouterr().err.startswith("unmask: mae")
    assert all(path.read_bytes() == there for path, there in before.items() if path.name != ".lock")


def test_a_link_to_nothing_is_there_too(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    check_free(tmp_path / "empty", tmp_path / "new")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(ConfigError, match="link is there already"):
        check_free(tmp_path / "link")
