"""A model exported to MindIR gives, loaded by MindSpore alone, what it gives here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from runs import TINY_MODEL
from unmask.cli import main

pytest.importorskip("mindspore", reason="mindspore is not installed")
import mindspore as ms

from unmask.api import run
from unmask.config.load import load_config
from unmask.evaluate.inference import load


@pytest.mark.parametrize(
    ("recipe", "output", "shape"), [("mae-vit-tiny", "features", 32), ("finetune-vit-tiny", "logits", 10)]
)
def test_mindir_round_trip(
    recipe: str, output: str, shape: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["data.train=bundled:mnist5k/train", "data.labels_per_class=2"]
    short = ["train.epochs=1", "train.batch_size=10", "model.depth=1", "engine=mindspore", "init=null"]
    run(load_config(recipe, [*TINY_MODEL, *data, *short]), tmp_path / "run")
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "model.mindir")]) == 0

    graph = ms.nn.GraphCell(ms.load(str(tmp_path / "model.mindir")))
    engine = load(tmp_path / "run").engine
    described = json.loads((tmp_path / "model.json").read_text())
    assert (described["output"]["what"], described["input"]["shape"]) == (output, [None, 28, 28, 1])
    assert (described["class_names"] is None) == (output == "features")
    for count in (1, 5):  # one graph for any number of images
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28, 1), dtype=np.uint8)
        ours = graph(ms.Tensor(images)).asnumpy()
        assert ours.shape == (count, shape)
        np.testing.assert_allclose(ours, engine.graph(output)(ms.Tensor(images)).asnumpy(), rtol=1e-6)

    assert main(["export", str(tmp_path / "run"), str(tmp_path / "model.bin")]) == 2
    assert "give one that ends in .mindir" in capsys.readouterr().err
