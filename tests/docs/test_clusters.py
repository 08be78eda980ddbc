"""The page of clusters: its commands run, its jobs are printed, and both languages show the same."""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import tarfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from launchers import TOOLS
from object_store import store  # noqa: F401 (a fixture)
from ranks import ENGINES
from runs import ENVIRONMENT, TINY_MODEL
from unmask.cli import main

PAGES = [Path(__file__).parents[2] / "docs" / name for name in ("clusters.md", "clusters.zh-CN.md")]
SMALL = [*TINY_MODEL, "train.batch_size=16", "train.epochs=0.05", "optimizer.warmup_epochs=0"]
SMALL += ["data.train=bundled:mnist5k/train"]


def blocks(page: Path, language: str = "bash") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)


def lines(start: str) -> list[str]:
    return [line for block in blocks(PAGES[0]) for line in block.splitlines() if line.startswith(start)]


def test_both_languages_show_the_same_commands_and_tables() -> None:
    for language in ("bash", "python"):
        assert blocks(PAGES[0], language) == blocks(PAGES[1], language)
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


def objects(store: Any, folder: str) -> dict[str, bytes]:  # noqa: F811
    keys = [entry["Key"] for entry in store.list_objects_v2(Bucket="bucket", Prefix=f"{folder}/").get("Contents", [])]
    return {key.removeprefix(f"{folder}/"): store.get_object(Bucket="bucket", Key=key)["Body"].read() for key in keys}


@pytest.fixture
def many(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:  # noqa: F811
    """A run and images in the bucket; what one process writes of them."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    monkeypatch.setenv("UNMASK_CACHE", f"{tmp_path / 'cache'}")
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", "mae-vit-tiny", *SMALL, "train.epochs=0.01", "output=run"]) == 0
    for path in filter(Path.is_file, Path("run").rglob("*")):
        store.upload_file(f"{path}", "bucket", f"runs/mae/{path.relative_to('run')}")
    rng = np.random.default_rng(0)
    for number in range(2):
        tar = io.BytesIO()
        with tarfile.open(fileobj=tar, mode="w") as file:
            for image in range(20):
                png = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (30, 30), np.uint8)).save(png, "PNG")
                info = tarfile.TarInfo(f"{number}{image:03}.png")
                info.size = png.tell()
                png.seek(0)
                file.addfile(info, png)
        store.put_object(Bucket="bucket", Key=f"photos/{number}.tar", Body=tar.getvalue())
    for prefix in ("alone", "features"):
        for key in objects(store, prefix):
            store.delete_object(Bucket="bucket", Key=f"{prefix}/{key}")
    command = ["embed", "s3://bucket/runs/mae", "s3://bucket/photos/*.tar", "--out", "s3://bucket/alone/"]
    assert main([*command, *ONE_BY_ONE]) == 0
    return objects(store, "alone")


ONE_BY_ONE = ["--batch-size", "1"]
"""So that there are three parts."""


def test_an_array_of_tasks_fills_a_bucket(
    many: dict[str, bytes],
    store: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two of the tasks that the page submits, and then one of another array."""
    assert {"_manifest.json", "part-000002.parquet"} <= many.keys()
    (line,) = lines("sbatch --array=1-1000 ")
    wrapped = shlex.split(line)[-1]
    for task, count in ((3, 3), (1, 3), (2, 2)):
        assert "_manifest.json" not in objects(store, "features")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
        words = shlex.split(wrapped.replace("$SLURM_ARRAY_TASK_ID", str(task)).replace("/1000", f"/{count}"))
        assert words[0] == "unmask"
        assert main([*words[1:], *ONE_BY_ONE]) == 0
    assert "40 embeddings in 3 files in s3://bucket/features" in capsys.readouterr().out
    assert objects(store, "features") == many


@pytest.mark.campaign
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_actors_of_ray_fill_a_bucket(many: dict[str, bytes], store: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """As the page has it, on processors in place of cards."""
    import ray

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", str(PAGES[0].parents[1] / "src"))
    (program,) = blocks(PAGES[0], "python")
    program = program.replace("ACTORS, SHARES = 8, 1000", "ACTORS, SHARES = 2, 3").replace("num_gpus=1", "num_cpus=1")
    program = program.replace('load("s3://bucket/runs/mae")', 'load("s3://bucket/runs/mae", batch_size=1)')
    ray.init(num_cpus=2, include_dashboard=False)
    try:
        names: dict[str, Any] = {}
        exec(program, names)
    finally:
        ray.shutdown()
    assert sum(names["complete"]) == 1
    assert objects(store, "features") == many
