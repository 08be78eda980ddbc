"""The page of clusters: its commands run, its jobs are printed, and both languages show the same."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from launchers import TOOLS
from ranks import ENGINES
from runs import ENVIRONMENT, TINY_MODEL
from unmask.cli import main

PAGES = [Path(__file__).parents[2] / "docs" / name for name in ("clusters.md", "clusters.zh-CN.md")]
SMALL = [*TINY_MODEL, "train.batch_size=16", "train.epochs=0.05", "optimizer.warmup_epochs=0"]
SMALL += ["data.train=bundled:mnist5k/train"]


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)


def lines(start: str) -> list[str]:
    return [line for block in blocks(PAGES[0]) for line in block.splitlines() if line.startswith(start)]


def test_both_languages_show_the_same_commands_and_tables() -> None:
    assert blocks(PAGES[0]) == blocks(PAGES[1])
    english, chinese = (
        [line.count("|") for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
        for page in PAGES
    )
    assert english == chinese


@pytest.mark.parametrize(
    "engine", [ENGINES[0], pytest.param("mindspore", marks=[*ENGINES[1].marks, pytest.mark.campaign])]
)
def test_the_commands_for_one_machine_run(engine: str, tmp_path: Path) -> None:
    """With two processes and a small model."""
    (line,) = lines({"torch": "torchrun ", "mindspore": "msrun "}[engine])
    words = shlex.split(line.replace("=8", "=2"))
    done = subprocess.run(
        [TOOLS / words[0], *words[1:], *SMALL],
        cwd=tmp_path,
        env=ENVIRONMENT | {"PATH": f"{TOOLS}:{ENVIRONMENT['PATH']}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "mae" / "curves.png").exists()


def test_the_jobs_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    jobs = [shlex.split(line)[1:] for line in lines("unmask launch ") if "--check" not in line]
    assert [words[:2] for words in jobs] == [["launch", name] for name in ("slurm", "sky", "kubernetes", "modelarts")]
    for words in jobs:
        assert main(words) == 0, words
        text = Path(words[-1]).read_text(encoding="utf-8")
        if words[1] == "slurm":
            assert subprocess.run(["bash", "-n", words[-1]]).returncode == 0
        else:
            assert (json.loads if words[1] == "modelarts" else yaml.safe_load)(text)
        Path(words[-1]).unlink()


def test_the_plan_is_the_one_that_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="a step is counted with PyTorch, which is not installed")
    (command,) = [line for line in lines("unmask launch ") if "--check" in line]
    assert main(shlex.split(command)[1:]) == 0
    printed = capsys.readouterr().out
    for page in PAGES:
        (shown,) = re.findall(r"^```text\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
        assert shown in printed


def test_tests_that_the_page_names_are_there() -> None:
    for page in PAGES:
        for name in re.findall(r"`(tests/[\w/]+\.py)`", page.read_text(encoding="utf-8")):
            assert (PAGES[0].parents[1] / name).exists(), name
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), target
