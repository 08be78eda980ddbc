"""What Python users call, with an engine that needs no framework."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import unmask
import unmask.evaluate.inference
import unmask.train
from fake_engine import FakeEngine
from unmask.config.load import load_config
from unmask.data.sources import open_source
from unmask.errors import ConfigError

SETTINGS: dict[str, Any] = {
    "model": {
        "image_size": np.int64(16),
        "patch_size": 8,
    },
    "model.width": 16,
    "model.depth": 1,
    "model.heads": 2,
    "model.decoder_width": 16,
    "model.decoder_depth": 1,
    "model.decoder_heads": 2,
    "optimizer.warmup_epochs": 0,
    "train.epochs": np.float32(4),
    "train.batch_size": np.int64(10),
    "train.checkpoint_every": 1,
}
"""Ten steps, a checkpoint after every second."""


@pytest.fixture(autouse=True)
def _fake_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(unmask.train, "create_engine", FakeEngine)
    monkeypatch.setattr(unmask.evaluate.inference, "create_engine", FakeEngine)
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """24 pictures in two classes."""
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        folder = tmp_path / "photos" / label
        folder.mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 120, (20, 20, 3), dtype=np.uint8) + (100 if label == "dog" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "photos"


def described(run: unmask.Run) -> dict[str, Any]:
    return yaml.safe_load((run.folder / "run.yaml").read_text())


def test_settings_are_values() -> None:
    config = load_config(
        "mae-vit-tiny",
        {
            "data.train": Path("photos"),
            "train.epochs": np.float32(2.5),
            "train.batch_size": np.int64(8),
            "model.image_size": np.array([32, 64]),
            "objective.norm_pix_loss": np.bool_(False),
            "data.crop_scale": (np.float64(0.5), 1),
            "optimizer": {"base_lr": 1e-3},
        },
    )
    assert (config.data.train, config.train.epochs, config.train.batch_size) == ("photos", 2.5, 8)
    assert (config.model.image_size, config.objective.norm_pix_loss, config.data.crop_scale) == (
        (32, 64),
        False,
        (0.5, 1),
    )
    assert (config.optimizer.base_lr, config.optimizer.weight_decay) == (1e-3, 0.05), "beside the recipe's"
    assert load_config("mae-vit-tiny", {"data.train": "12"}).data.train == "12", "not read as YAML"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train.batchsize": 4}, "settings: train.batchsize: unknown key, did you mean train.batch_size?"),
        (
            {"train.epochs": np.float32(-1)},
            "settings: train.epochs: input should be greater than or equal to 0, not -1",
        ),
        ({"seed": np.arange(2)}, "settings: seed: input should be a valid integer, not [0, 1]"),
        ({"objective.name.x": 1}, "settings: objective.name.x: unknown key"),
        ({3: 1}, "settings: 3: unknown key"),
    ],
)
def test_a_wrong_setting_is_named_with_where_it_stands(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config("mae-vit-tiny", settings)
    assert str(error.value).startswith(message)


def test_a_run_is_a_path_with_numbers(photos: Path) -> None:
    run = unmask.pretrain("mae-vit-tiny", {**SETTINGS, "data.train": photos, "data.val": photos})
    assert run.folder == Path("runs/mae-vit-tiny-1")
    assert (os.fspath(run), str(run), Path(run)) == (str(run.folder), str(run.folder), run.folder)
    rows = run.log()
    assert [row["step"] for row in rows if row["split"] == "train"] == list(range(1, 11))
    losses = {row["split"]: row["loss"] for row in rows}
    assert run.metrics == {"loss": losses["train"], "val_loss": losses["val"]}
    assert (run.folder / "curves.png").exists()
    assert (run.folder / "reconstruction.png").exists()
    assert unmask.load(run).fingerprint() == run.load().fingerprint() == unmask.load(run.folder).fingerprint()

    classifier = unmask.finetune("finetune-vit-tiny", {**SETTINGS, "data.train": photos, "init": run, "output": "c"})
    assert classifier.folder == Path("c")
    assert described(classifier)["config"]["init"] == str(run)
    np.testing.assert_allclose(classifier.load().predict(photos).sum(1), 1, rtol=1e-5)


def test_a_finished_run_called_again_still_tells_its_numbers(photos: Path) -> None:
    settings = {**SETTINGS, "data.train": photos, "data.val": photos, "output": "run"}
    assert unmask.pretrain("mae-vit-tiny", settings) == unmask.pretrain("mae-vit-tiny", settings)


def test_any_checkpoint_of_a_run_is_loaded(photos: Path) -> None:
    settings = {**SETTINGS, "data.train": photos, "train.keep": 6, "output": "run", "train.eval_every": 2}
    run = unmask.pretrain("mae-vit-tiny", {**settings, "optimizer.base_lr": 1.0, "data.val": photos})
    steps = {step: run.load(step).fingerprint() for step in (2, 4, 5, 6, 8, 10)}  # 5: evaluated
    assert len(set(steps.values())) == 6
    assert run.load("last").fingerprint() == steps[10]
    losses = {row["step"]: row["loss"] for row in run.log() if row["split"] == "val"}
    best = min(losses, key=lambda step: losses[step])
    assert run.load("best").fingerprint() == steps[best] == unmask.load("run", "best").fingerprint()
    assert unmask.load("run", np.int64(4)).fingerprint() == steps[4]
    with pytest.raises(ConfigError, match=r"no checkpoint of step 3 in run/checkpoints; there are 2, 4, 5, 6, 8, 10 "):
        run.load(3)
    with pytest.raises(ConfigError, match="no checkpoint of step lats"):
        run.load("lats")  # pyright: ignore
    with pytest.raises(ConfigError, match="is no run folder"):
        unmask.load("run/checkpoints/step-00000002", checkpoint="best")


def test_without_evaluation_none_is_the_best(photos: Path) -> None:
    run = unmask.pretrain("mae-vit-tiny", {**SETTINGS, "data.train": photos})
    with pytest.raises(ConfigError, match="was evaluated, so none is the best; take the last"):
        run.load("best")


def test_images_are_given_as_objects(photos: Path) -> None:
    images = open_source(str(photos), key="images", labels=True)
    settings = {**SETTINGS, "data.train": "nowhere", "train.eval_every": 2}
    seen: list[int] = []

    def train(stop_at: int, output: str) -> unmask.Run:
        def callback(step: int, _values: Mapping[str, float]) -> bool:
            seen.append(step)
            return step >= stop_at

        return unmask.finetune(
            "finetune-vit-tiny",
            {**settings, "init": None, "output": output, "train.log_every": 1},
            train=images,
            val=images,
            callbacks=[callback],
        )

    stopped = train(3, "run")
    assert [row["step"] for row in stopped.log()] == [1, 2, 3]
    record = described(stopped)
    assert (record["config"]["data"]["train"], record["config"]["data"]["val"]) == (None, None)
    assert record["data"]["objects"] == {"data.train": "FolderSource", "data.val": "FolderSource"}
    assert record["data"]["fingerprint"] == images.fingerprint()
    seen.clear()
    finished = train(99, "run")
    assert seen[0] == 4
    assert "val_top1" in finished.metrics
    whole = train(99, "whole")
    assert (finished.folder / "metrics.jsonl").read_bytes() == (whole.folder / "metrics.jsonl").read_bytes()


def test_a_path_given_as_images_is_the_setting(photos: Path) -> None:
    run = unmask.pretrain("mae-vit-tiny", SETTINGS, train=photos)
    assert described(run)["config"]["data"]["train"] == str(photos)
    assert "objects" not in described(run)["data"]


def test_no_images_are_a_mistake() -> None:
    with pytest.raises(ConfigError, match=r"data\.train is not set"):
        unmask.pretrain("mae-vit-tiny", SETTINGS)
    with pytest.raises(ConfigError, match="is a recipe for `unmask finetune`"):
        unmask.pretrain("finetune-vit-tiny", SETTINGS)


def test_load_takes_values_too(photos: Path) -> None:
    run = unmask.pretrain("mae-vit-tiny", {**SETTINGS, "data.train": photos})
    assert unmask.load(run, settings={"objective.mask_ratio": np.float32(0.25)}).config.objective.mask_ratio == 0.25
    with pytest.raises(ConfigError, match=r"settings: model\.maskratio: unknown key"):
        unmask.load(run, settings={"model.maskratio": 0.25})


def test_public_names_are_listed_there_and_documented() -> None:
    names = set(unmask.__all__)
    assert set(dir(unmask)) == names
    assert names >= {"Config", "Model", "Run", "errors", "finetune", "load", "pretrain", "sweep_labels", "__version__"}
    for name in names - {"__version__"}:
        assert getattr(unmask, name).__doc__, name
    assert unmask.__version__[0].isdigit()
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        unmask.nothing  # noqa: B018  # pyright: ignore


@pytest.mark.parametrize("module", ["api", "sweep", "demo", "interrupts"])
def test_each_module_is_imported_first(module: str) -> None:
    subprocess.run([sys.executable, "-c", f"import unmask.{module}"], check=True)
