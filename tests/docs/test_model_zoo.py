"""The page for those who come from the model zoo: its commands run, and its table is the code's."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from launchers import ended, stand_ins, started, table_of
from unmask.cli import main
from unmask.modelzoo.keys import SAME, TABLE, meaning

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs" / name for name in ("model-zoo.md", "model-zoo.zh-CN.md")]
SMALL = ["--engine=torch", "--device_target=CPU", "--num_workers=0", "--image_size=32", "--encoder_layers=1"]
SMALL += ["--encoder_num_heads=4", "--encoder_dim=32"]
TRAINED = [*SMALL, "--epoch=1", "--warmup_epochs=0", "--batch_size=6"]
DECODER = ["--decoder_layers=1", "--decoder_num_heads=2", "--decoder_dim=16"]


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)


def key_rows(page: Path) -> list[tuple[list[str], str]]:
    """Of each row of the table of keys the keys, and what becomes of them."""
    table = re.split(r"^\| (?:key|键) \| .*\n", page.read_text(encoding="utf-8"), flags=re.M)[1].partition("\n\n")[0]
    cells = [line.strip("| ").split(" | ") for line in table.splitlines()[1:]]
    return [(re.findall(r"`(\w+)`", keys), text) for keys, text in cells]


def test_the_table_of_keys_is_the_code_s() -> None:
    rows = [(list(keys), text) for text, keys in groupby(TABLE, meaning)]
    assert rows == key_rows(PAGES[0])
    for (keys, text), (theirs, chinese) in zip(rows, key_rows(PAGES[1]), strict=True):
        assert keys == theirs
        assert sorted(re.findall("`.*?`", text)) == sorted(re.findall("`.*?`", chinese)), keys
        assert not re.fullmatch("[ -~]*", re.sub("`.*?`", "", chinese)) or text == chinese, keys
    assert all(f"`{name}` is another name" in meaning(key) for name, key in SAME.items())


def test_both_languages_show_the_same_commands_and_places() -> None:
    assert blocks(PAGES[0]) == blocks(PAGES[1])
    names = [
        [line.count("|") for line in page.read_text(encoding="utf-8").splitlines() if "|" in line] for page in PAGES
    ]
    assert names[0] == names[1]


def test_the_commands_of_one_device_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("unmask.cli.program", lambda words: sys.exit(main(words)))  # which would end this process
    (tmp_path / "config").symlink_to(ROOT / "config")
    rng = np.random.default_rng(0)
    for number in range(24):
        file = tmp_path / "dataset" / ("train", "val")[number % 2] / "abc"[number % 3] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(file)
    lines = blocks(PAGES[0])[0].splitlines()
    assert [line.split()[1] for line in lines] == ["pretrain.py", "finetune.py", "eval.py"]
    for line in lines:
        _, script, *options = shlex.split(line)
        small = {"pretrain.py": [*TRAINED, *DECODER], "finetune.py": TRAINED, "eval.py": SMALL}[script]
        monkeypatch.setattr(sys, "argv", [script, *options, *small])
        monkeypatch.setattr(sys, "path", [*sys.path])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        assert not end.value.code, line
    assert capsys.readouterr().out.splitlines()[-1].startswith("accuracy=")
    assert (tmp_path / "output" / "MaeFintuneViT-B-P16-1_2.ckpt").exists()


def test_the_commands_of_a_rank_table_start_what_they_should(tmp_path: Path) -> None:
    """With stand-ins for the launchers; tests/cli/test_modelzoo_scripts.py has real processes."""
    for folder in ("scripts", "src", "config"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    here = tmp_path / "scripts"
    table = table_of(tmp_path, [0, 1])
    first, *lines = blocks(PAGES[0])[1].splitlines()
    assert first == "cd scripts"
    work = tmp_path / "work"
    work.mkdir()
    for line, logs in zip(lines, ("train_parallel", "train_parallel", "eval"), strict=True):
        shell, script, _, config = shlex.split(line)
        assert (ROOT / "scripts" / config).is_file()
        done = subprocess.run(
            [shell, str(here / script), str(table), str(here / config)],
            cwd=work, env=os.environ | stand_ins(tmp_path), capture_output=True, text=True,
        )  # fmt: skip
        ended(done, 30)
        assert {f"--config_path={here / config}", logs} < set(started(work, logs)), line


MODELARTS = [ROOT / "docs" / name for name in ("modelarts.md", "modelarts.zh-CN.md")]


def test_the_page_of_object_stores_is_the_same_in_both_languages() -> None:
    assert blocks(MODELARTS[0]) == blocks(MODELARTS[1])
    english, chinese = (
        [line.count("|") for line in page.read_text(encoding="utf-8").splitlines()] for page in MODELARTS
    )
    assert [count for count in english if count] == [count for count in chinese if count]


def test_the_commands_of_object_stores_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Any) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for number in range(12):
        pixels = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))
        for folder in ("photos", f"labelled/train/{'ab'[number % 2]}", f"labelled/val/{'ab'[number % 2]}"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            pixels.save(Path(folder) / f"{number}.png")
        store.upload_file(f"photos/{number}.png", "bucket", f"imagenet/{number}.png")
    ours, theirs = blocks(MODELARTS[0])
    small = {"model.image_size": 32, "model.width": 32, "model.depth": 1, "model.heads": 2, "model.decoder_width": 16}
    small |= {
        "model.decoder_depth": 1,
        "model.decoder_heads": 2,
        "train.epochs": 1,
        "train.batch_size": 6,
        "device": "cpu",
    }
    for line in ours.splitlines():
        words = shlex.split(line)[1:]
        trained = words[0] in ("pretrain", "finetune")
        words += ["objective.head=drawn"] if words[0] == "finetune" else []  # trained in any case
        assert main([*words, *(f"{key}={value}" for key, value in small.items() if trained)]) == 0, line
    _, _, *options = shlex.split(theirs.replace("/cache/", f"{tmp_path}/ma/"))
    (tmp_path / "config").symlink_to(ROOT / "config")
    assert main(["pretrain", *options, *TRAINED, *DECODER]) == 0
    kept = {found["Key"] for found in store.list_objects_v2(Bucket="bucket")["Contents"]}
    assert {"runs/mae/run.yaml", "runs/classifier/curves.png", "output/MaeFintuneViT-B-P16-1_2.ckpt"} <= kept
