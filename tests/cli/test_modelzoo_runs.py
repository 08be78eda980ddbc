"""The MindSpore model zoo's YAML files run unchanged, and its launch scripts start what they should."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import unmask
from mindspore_models import zoo
from unmask.cli import main
from unmask.interchange import read_model
from unmask.interchange.mindspore_file import read_ckpt, write_ckpt

ROOT = Path(__file__).parents[2]
FILES = ROOT / "config"
SCRIPTS = ROOT / "scripts"
HERE = ["--use_parallel", "False", "--device_target", "CPU", "--num_workers", "0"]
ENCODER = ["--encoder_layers=1", "--encoder_num_heads=4", "--encoder_dim=32", "--image_size=32"]
TORCH = ["--engine", "torch"]
DECODER = ["--decoder_layers=1", "--decoder_num_heads=2", "--decoder_dim=16"]
SHORT = ["--epoch=2", "--batch_size=10", "--warmup_epochs=0"]
ALL = "--img_ids="


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 images in three class folders that a network can tell apart: one colour each, and noise."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        (root / name).mkdir()
        for index in range(10):
            pixels = rng.integers(0, 80, (40, 48, 3), dtype=np.uint8)
            pixels[:, :, channel] += 150
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


def run(command: str, file: str, *options: str) -> None:
    assert main([command, f"--config_path={FILES / file}", *HERE, *ENCODER, *options]) == 0


def losses(folder: Path) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "lr" in record]


def check_pretrained(folder: Path, shown: str) -> None:
    assert len(losses(folder)) == 6
    config = yaml.safe_load((folder / "run.yaml").read_text())["config"]
    assert config["objective"]["norm_pix_loss"] is True
    assert (folder / "reconstruction.png").is_file()
    assert shown.count("\nepoch ") == 1
    assert "-> train.epochs=2\n" in shown


@pytest.mark.skipif(find_spec("mindspore") is None, reason="mindspore is not installed")
def test_pretraining_goes_to_mindspore_by_itself(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data_path", str(photos), "--save_dir", str(tmp_path), "--prefix", "run"]
    run("pretrain", "mae-vit-base-p16.yaml", *DECODER, *SHORT, ALL, *options)
    check_pretrained(tmp_path / "run", capsys.readouterr().out)
    assert yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())["config"]["engine"] == "mindspore"


def test_pretrain_fine_tune_and_evaluate(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only paths, device_target and sizes come from the command line, and what lets a short run learn."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    monkeypatch.chdir(tmp_path)
    run("pretrain", "mae-vit-base-p16.yaml", *TORCH, *DECODER, *SHORT, ALL, "--data_path", str(photos))
    pretrained = tmp_path / "output" / "MaeFintuneViT-B-P16"
    check_pretrained(pretrained, capsys.readouterr().out)

    data = ["--dataset_path", str(photos), "--eval_path", str(photos)]
    # The classes differ in colour, which RandAugment takes away.
    fast = ["--auto_augment=", "--base_lr=0.05", "--layer_decay=1.0", "--epoch=10", "--batch_size=10"]
    fast += ["--warmup_epochs=1"]
    assert {path.name for path in pretrained.parent.glob("*.ckpt")} == {
        *("MaeFintuneViT-B-P16-1_3.ckpt", "MaeFintuneViT-B-P16-2_3.ckpt")
    }
    use_ckpt = ["--use_ckpt", f"{pretrained}-2_3.ckpt"]
    run("finetune", "finetune-vit-base-p16.yaml", *TORCH, *data, *use_ckpt, *fast)
    tuned = tmp_path / "output" / "FinetuneViT-B-P16"
    assert losses(tuned)[-1] < losses(tuned)[0] - 1

    capsys.readouterr()
    run("evaluate", "eval.yaml", *TORCH, "--use_ckpt", str(tuned), "--eval_path", str(photos))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("accuracy=")
    assert 0.5 < float(last.removeprefix("accuracy=")) <= 1
    assert len(last) == len("accuracy=0.xxx")


PIXELS = ["data.mean=[0.5,0.4,0.3]", "data.std=[0.2,0.3,0.2]"]


def test_a_classifier_of_the_zoo_is_evaluated_and_converted_on_both_engines(photos: Path, tmp_path: Path) -> None:
    """Its own .ckpt, whose patches have a norm; it does not tell heads, mean and std."""
    write_ckpt(tmp_path / "vit.ckpt", there := zoo("finetune"))
    told = [*PIXELS, "model.heads=2"]
    settings = [f"--set={setting}" for setting in told]
    assert main(["convert", str(tmp_path / "vit.ckpt"), str(tmp_path / "ours.ckpt"), "--to=mindspore", *settings]) == 0
    assert main(["convert", str(tmp_path / "ours.ckpt"), str(tmp_path / "back.ckpt"), "--to=mindspore-zoo"]) == 0
    found: list[float] = []
    for engine in filter(find_spec, ("torch", "mindspore")):
        for name, known in (("vit.ckpt", told), ("ours.ckpt", [])):
            with unmask.load(tmp_path / name, engine=engine, device="cpu", settings=known) as loaded:
                found.append(loaded.evaluate(photos)["loss"])
    assert found == pytest.approx([found[0]] * len(found), rel=1e-5)
    written = read_ckpt(tmp_path / "back.ckpt")
    assert written.keys() - {"unmask"} == there.keys() - {"encoder.norm.gamma", "encoder.norm.beta"}
    for name in written.keys() - {"unmask"}:
        np.testing.assert_allclose(written[name], there[name], rtol=3e-7, err_msg=name)


@pytest.mark.parametrize("engine", ["torch", pytest.param("mindspore", marks=pytest.mark.campaign)])
def test_weights_of_the_zoo_are_trained_on(photos: Path, tmp_path: Path, engine: str) -> None:
    pytest.importorskip(engine, reason=f"{engine} is not installed")
    write_ckpt(tmp_path / "mae.ckpt", there := zoo("pretrain"))
    sizes = {"image_size": 16, "patch_size": 4, "width": 16, "depth": 2, "heads": 2, "mlp_ratio": 2}
    decoder = {"decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}
    short = ["train.epochs=1", "train.batch_size=10", "optimizer.warmup_epochs=0", f"engine={engine}", "device=cpu"]
    settings = [*short, *PIXELS, f"data.train={photos}", f"init={tmp_path / 'mae.ckpt'}"]
    for command, recipe, fields in (
        ("pretrain", "mae-vit-tiny", sizes | decoder),
        ("finetune", "finetune-vit-tiny", sizes),
    ):
        shape = [f"model.{name}={value}" for name, value in fields.items()]
        shape += ["objective.head=drawn"] if command == "finetune" else []  # in any case
        assert main([command, recipe, *settings, *shape, f"output={tmp_path / command}"]) == 0
        model = read_model(tmp_path / command)
        assert (model.model["patch_norm"], model.model["norm_eps"]) == (True, 1e-5)
        moved = model.weights["patch_embed.norm.weight"] - there["encoder.patch_embed.norm.gamma"]
        assert 0 < np.abs(moved).max() < 0.01


def test_from_scratch_and_the_same_command_resumes(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    options = [*TORCH, "--dataset_path", str(photos), "--eval_path", str(photos), "--save_dir", str(tmp_path)]
    run("finetune", "vit-base-p16.yaml", *options, *SHORT)
    first = losses(tmp_path / "ViT-B-P16")
    run("finetune", "vit-base-p16.yaml", *options, *SHORT)
    assert "resumed after step 6" in capsys.readouterr().out
    assert losses(tmp_path / "ViT-B-P16") == first
    assert list((tmp_path / "ViT-B-P16" / "checkpoints").glob("step-*/ema.safetensors"))


def test_pretraining_takes_the_images_of_img_ids_and_goes_on_from_use_ckpt(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    monkeypatch.chdir(tmp_path)
    names = [f"{color}/{index}.png" for color in ("red", "green") for index in range(10)]
    (tmp_path / "half_ids.json").write_text(json.dumps([*names[:-1], str(photos / names[-1])]))
    options = [*TORCH, *DECODER, *SHORT, "--data_path", str(photos), "--img_ids", str(tmp_path / "half_ids.json")]
    run("pretrain", "mae-vit-base-p16.yaml", *options, "--prefix=first")
    assert "pretrain in output/first: 20 images, 4 steps" in capsys.readouterr().out
    assert len(losses(Path("output/first"))) == 4
    run("pretrain", "mae-vit-base-p16.yaml", *options, "--prefix=second", "--use_ckpt=output/first", "--base_lr=0")
    assert losses(Path("output/second"))[-1] < losses(Path("output/first"))[0]


def script(name: str, *options: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """`python NAME …` with the sizes of a test, as a clone that is not installed runs it."""
    command = [sys.executable, *map(str, (ROOT / name, *HERE, *ENCODER, *TORCH, *options))]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.run(command, cwd=cwd, env=environment, text=True, **pipes)


def test_the_scripts_of_the_model_zoo_take_its_files_by_default(photos: Path, tmp_path: Path) -> None:
    """In a shell where RANK_SIZE and RANK_ID are left over from another job."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    left_over = {"RANK_SIZE": "8", "RANK_ID": "3"}
    done = script("pretrain.py", *DECODER, *SHORT, ALL, "--data_path", photos, cwd=tmp_path, **left_over)
    assert done.returncode == 0, done.stdout
    assert len(losses(tmp_path / "output" / "MaeFintuneViT-B-P16")) == 6
    done = script("finetune.py", cwd=tmp_path, **left_over)
    assert "-> output=output/FinetuneViT-B-P16\n" in done.stdout
    assert done.stdout.endswith("\nunmask: data.train=/mnt/vision/ImageNet1K/CLS-LOC/train: no such folder\n")
    done = script("eval.py", cwd=tmp_path, **left_over)
    assert done.stdout.endswith("\nunmask: FinetuneViT-B-P16.ckpt does not exist\n")


def test_without_use_parallel_the_first_of_several_processes_works_alone(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        ROOT / "pretrain.py",
    ]
    options = [*HERE, *ENCODER, *TORCH, *DECODER, *SHORT, ALL, "--data_path", photos]
    done = subprocess.run(list(map(str, [*command, *options])), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "use_parallel is False: process 1 leaves the work to process 0" in done.stdout
    assert done.stdout.count("30 images, 6 steps\n") == 1
    assert len(losses(tmp_path / "output" / "MaeFintuneViT-B-P16")) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", "--config_path", "PRETRAIN", "--epochs", "3"], "command line: epochs: unknown key, did you mean"),
        (["pretrain", "--config_path=PRETRAIN", "train.epochs=3"], "not of the form --key value"),
        (["evaluate", "--config_path=EVAL", "--engine=torch", "--use_ckpt="], "needs --use_ckpt MODEL and --eval_path"),
        (["pretrain", "--config_path", "nowhere.yaml"], "there is no nowhere.yaml; found by name are eval,"),
        (["pretrain", "--config_path", "/nowhere/eval.yaml"], "/nowhere/eval.yaml cannot be read"),
        (["pretrain", "--config_path", "PRETRAIN"], "img_ids: there is no /mnt/vision/ImageNet1K/CLS-LOC/tot_ids.json"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"PRETRAIN": str(FILES / "mae-vit-base-p16.yaml"), "EVAL": str(FILES / "eval.yaml")}
    for name, path in files.items():
        arguments = [argument.replace(name, path) for argument in arguments]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize("arguments", [["embed", "m", "x.png", "--out=e.npy", "--config_path=f"], ["doctor", "--x=1"]])
def test_other_commands_still_refuse_unknown_options(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err
