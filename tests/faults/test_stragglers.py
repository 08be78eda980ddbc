"""What each of several processes did is in a log of its own, and the one that all others wait for shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ranks import launch
from runs import TINY_MODEL
from unmask.report.log import read_log

SLOW = """
import sys, time
from unmask import pretrain
from unmask.environment import launched

def late(step, values):
    if launched()[0] == 1:
        time.sleep(0.05)

pretrain("mae-vit-tiny", settings=sys.argv[1:], callbacks=[late])
"""


def test_a_straggler_shows(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    (tmp_path / "slow.py").write_text(SLOW)
    run = [*TINY_MODEL, "data.train=bundled:mnist5k/train", "train.batch_size=16", f"train.epochs={20 * 16 / 4000}"]
    settings = [*run, "train.log_every=1", "optimizer.warmup_epochs=0", "output=run"]
    ranks = launch("torch", *settings, cwd=tmp_path, program=["slow.py"])
    said = ranks.end()
    assert ranks.launcher.returncode == 0, said
    speed = read_log(tmp_path / "run" / "speed.jsonl")
    assert all(record["data_wait_s_0"] >= 0 and record["data_wait_s_1"] >= 0 for record in speed)
    waited = [sum(record[f"exchange_wait_s_{rank}"] for record in speed) for rank in (0, 1)]
    assert waited[0] > 10 * 0.05 > waited[1], "the first waited for the second"
    for rank in (0, 1):
        lines = (tmp_path / "run" / f"rank-{rank}.log").read_text().splitlines()
        assert re.search(r"process \d+ on ", lines[0])
        assert re.search(r"step 20: images_per_s .* of all  data_wait_s .*  exchange_wait_s ", lines[-2])
        assert lines[-1].endswith("  done")
