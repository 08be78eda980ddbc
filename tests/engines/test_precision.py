"""What `train.precision=auto` is, and that a run keeps it."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from engine_cases import make_batch, make_config, start
from unmask import engines
from unmask.config.load import load_config, recipe_names, to_dict
from unmask.engines import with_precision
from unmask.errors import ConfigError
from unmask.evaluate import inference
from unmask.interchange import StoredModel
from unmask.train import train


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists() or platform.machine() != "x86_64", reason="reads Linux's flags")
def test_on_a_cpu_it_is_what_its_flags_say() -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    flags = set(Path("/proc/cpuinfo").read_text().split())
    expected = "bf16" if flags & {"avx512_bf16", "amx_bf16"} else "fp32"
    assert engines.fast_precision("torch", "cpu") == expected


def test_mindspore_computes_in_fp32_on_a_cpu() -> None:
    pytest.importorskip("mindspore", reason="mindspore is not installed")
    assert engines.fast_precision("mindspore", "cpu") == "fp32"


def test_a_precision_that_was_set_stays() -> None:
    config = load_config("mae-vit-tiny", ["train.precision=fp32"])
    assert with_precision(config, "bf16").train.precision == "fp32"


@pytest.mark.parametrize("recipe", sorted(set(recipe_names()) - {name for name in recipe_names() if "demo" in name}))
def test_recipes_leave_it_to_the_device(recipe: str) -> None:
    assert load_config(recipe).train.precision == "auto"


def test_a_run_keeps_its_own_on_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    (tmp_path / "photos").mkdir()
    for i in range(4):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)).save(
            tmp_path / "photos" / f"{i}.png"
        )
    tiny = ["model.image_size=16", "model.patch_size=8", "model.width=32", "model.depth=1", "model.heads=2"]
    tiny += ["model.decoder_width=16", "model.decoder_depth=1", "model.decoder_heads=2", "device=cpu"]
    settings = [*tiny, f"data.train={tmp_path}/photos", "train.batch_size=4", "optimizer.warmup_epochs=0"]
    run = tmp_path / "run"

    def start(epochs: int, fast: str, *more: str) -> str:
        monkeypatch.setattr(engines, "fast_precision", lambda engine, device: fast)  # pyright: ignore
        train(load_config("mae-vit-tiny", [*settings, f"train.epochs={epochs}", *more]), run)
        return yaml.safe_load((run / "run.yaml").read_text())["config"]["train"]["precision"]

    assert start(2, "bf16") == "bf16"
    assert start(2, "fp32") == "bf16"
    with pytest.raises(ConfigError, match=r"train.precision: bf16 -> fp32"):
        start(2, "bf16", "train.precision=fp32")


def test_weights_are_cast_once_and_follow_the_weights() -> None:
    """The copy in bf16 that is evaluated is of the weights as they are: after steps, and after others were loaded."""
    pytest.importorskip("torch", reason="torch is not installed")
    config = make_config("finetune", train={"precision": "bf16", "ema_decay": 0.9})
    engine, batch = engines.create_engine(config), make_batch(config)
    engine.load(start(config))

    def logits() -> np.ndarray:
        other = engines.create_engine(config)
        other.load(engine.state())
        found = engine.output("logits", batch)
        np.testing.assert_array_equal(found, engine.output("logits", batch))
        np.testing.assert_array_equal(found, other.output("logits", batch))
        return found

    first = logits()
    engine.train_step([batch], {"lr": 1e-2})
    second = logits()
    engine.load(start(config, seed=1))
    assert len({found.tobytes() for found in (first, second, logits())}) == 3


def test_a_model_is_loaded_in_what_the_device_is_fast_in(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    config = make_config("finetune")
    found = StoredModel(start(config).weights, {}, None, "unmask", to_dict(config))
    monkeypatch.setattr(inference, "read_model", lambda path, checkpoint: found)  # pyright: ignore
    monkeypatch.setattr(engines, "fast_precision", lambda engine, device: "bf16")  # pyright: ignore
    with inference.load("m", device="cpu", precision="auto") as model:
        assert model.config.train.precision == "bf16"
