"""Runs of each way of pretraining, as a user types them, and what can be asked of the result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import unmask
from runs import TINY_MODEL
from unmask.cli import main
from unmask.report.log import read_log

pytest.importorskip("torch", reason="PyTorch is not installed")

RECIPES = {
    "cross_mae": "cross-mae-vit-small",
    "hog_mae": "hog-mae-vit-small",
    "lejepa": "lejepa-vit-small",
    "mae_lejepa": "mae-lejepa-vit-small",
}
TRAIN, VAL = "bundled:mnist5k/train", "bundled:mnist5k/val"
SHORT = ["train.batch_size=20", "train.precision=fp32", "optimizer.warmup_epochs=0", "train.log_every=5", "seed=1"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_from_its_recipe_to_k_nn_and_reconstructions(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    views = name.endswith("lejepa")
    settings = ["objective.views=2", "objective.projector_width=32"] if views else []
    settings += [f"data.train={TRAIN}", "data.labels_per_class=10", "augment.color_jitter=0", *TINY_MODEL, *SHORT]
    arguments = ["pretrain", RECIPES[name], *settings, "train.epochs=4", "train.checkpoint_every=4"]
    assert main([*arguments, f"output={tmp_path / 'run'}"]) == 0
    log = read_log(tmp_path / "run" / "metrics.jsonl")
    terms = {"invariance", "gaussian"} if views else set()
    assert terms <= log[0].keys()
    assert ("reconstruction" in log[0]) == (name == "mae_lejepa")

    capsys.readouterr()
    assert main(["knn", str(tmp_path / "run"), TRAIN, VAL]) == 0
    accuracy = capsys.readouterr().out.strip().rpartition("accuracy=")[2]
    assert 0.15 < float(accuracy) < 1
    embedded = unmask.load(tmp_path / "run").embed([np.zeros((28, 28, 1), np.uint8)])
    assert embedded.shape == (1, 32)

    code = main(["reconstruct", str(tmp_path / "run"), VAL, "--out", str(tmp_path / "painted.png"), "--count", "2"])
    if name in ("cross_mae", "mae_lejepa"):
        assert code == 0
        assert (tmp_path / "painted.png").is_file()
    else:
        assert code != 0
        assert "cannot reconstruct" in capsys.readouterr().err
