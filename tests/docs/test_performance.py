"""What docs/performance.md says can be run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
GPU = ROOT / "benchmarks" / "gpu.sh"
NAMED = {"step.py", "loader.py", "roofline.py", "budget.py", "gpu.sh", "against.py", "to_accuracy.py"}


def test_scripts_that_the_page_names_are_there() -> None:
    for page in ("performance.md", "performance.zh-CN.md"):
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        named = [script for script in (ROOT / "benchmarks").iterdir() if f"benchmarks/{script.name}" in text]
        assert {"step.py", "loader.py", "roofline.py", "budget.py", "gpu.sh", "against.py", "to_accuracy.py"} <= {
            s.name for s in named
        }
        assert (ROOT / "docs" / "pictures" / "roofline.png").is_file()


def test_the_page_has_the_table_that_the_script_prints() -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "budget.py"], capture_output=True, text=True, check=True
    )
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ") and "--" not in line]
    assert len(rows) > 20
    assert [row for row in rows if row not in page and not row.startswith("| images")] == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not there")
def test_the_script_for_a_card_is_bash() -> None:
    subprocess.run(["bash", "-n", GPU], check=True)


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not there")
@pytest.mark.parametrize(
    ("given", "python", "said"),
    [
        ([], sys.executable, "usage: "),
        (["."], sys.executable, "no card that PyTorch can use"),
        ([".", "--dry"], sys.executable, "usage: "),
        (["nowhere", "--dry-run"], sys.executable, "nowhere is no folder"),
        ([".", "--dry-run"], "no-python", "no-python does not start"),
    ],
)
def test_what_the_script_for_a_card_lacks_is_one_line(given: list[str], python: str, said: str) -> None:
    for package in ("torch", "transformers", "timm"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    env = {**os.environ, "PYTHON": python, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(["bash", GPU, *given], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("gpu.sh: ")
    assert said in line


@pytest.mark.campaign
def test_the_script_for_a_card_runs_dry(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    (tmp_path / "images").mkdir()
    for i in range(4):
        noise = np.random.default_rng(i).integers(0, 256, (256, 256, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "images" / f"{i}.jpg")
    (tmp_path / "sitecustomize.py").write_text("import conftest\n")  # torchvision beside a PyTorch for the CPU
    env = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["bash", GPU, tmp_path / "images", "--dry-run"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Failed" not in done.stdout
    for part in ("contract suite", "step, ViT", "loader", "from files", "inference from files"):
        (row,) = [line for line in done.stdout.splitlines() if line.startswith(f"| {part}")]
        assert any(character.isdigit() for character in row.split("|")[2]), row


@pytest.mark.campaign
@pytest.mark.parametrize("of", [["--steps", "1"], ["--memory"]], ids=["time", "memory"])
def test_a_step_beside_the_peer(of: list[str], tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers, the peer, is not installed")
    (tmp_path / "sitecustomize.py").write_text("import conftest\n")  # torchvision beside a PyTorch for the CPU
    paths = [str(tmp_path), str(ROOT / "tests"), str(ROOT / "src")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    small = ["--recipe", "demo-mae", "--batch", "8", "--device", "cpu", "--precision", "fp32"]
    command = [sys.executable, ROOT / "benchmarks" / "step.py", *small, *of]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    what, _, ratio = done.stdout.splitlines()[-1].partition(": ")
    assert what.startswith("  ratio")
    assert float(ratio.split()[0]) > 0


@pytest.mark.campaign
def test_seconds_to_an_accuracy(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers, the peer, is not installed")
    for i in range(16):
        place = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 128, (32, 32, 3), np.uint8)
        Image.fromarray(noise + np.uint8(127 * (i % 2))).save(place)  # the classes differ in brightness
    (tmp_path / "sitecustomize.py").write_text("import conftest\n")  # torchvision beside a PyTorch for the CPU
    paths = [str(tmp_path), str(ROOT / "tests"), str(ROOT / "src")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    images = ["--train", tmp_path / "images", "--test", tmp_path / "images", "--labels", "4", "--judges", "4"]
    small = ["--seconds", "1", "--share", "0.5", "--set", "train.batch_size=8", "model.depth=1"]
    command = [
        sys.executable,
        ROOT / "benchmarks" / "to_accuracy.py",
        *images,
        *small,
        "--arm",
        "objective.name=cross_mae",
    ]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "the same loss on the same weights, images and masks" in done.stdout
    theirs, ours = (
        line.split("|") for line in done.stdout.splitlines() if line.startswith(("| transf", "| objective"))
    )
    assert (float(theirs[2]), float(ours[2])) == pytest.approx((1, 0.5), abs=0.5)
    assert [cell.strip() for cell in theirs[5:9]] == ["100.0%"] * 4, "a probe tells light from dark, whatever is learnt"
