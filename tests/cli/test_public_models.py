"""README's promise, layout by layout: public weights as they are published, and the commands on each of them.

The names are the published ones, the networks narrow. What a file does not tell is told as the error says.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine_cases import objective_of
from mindspore_models import zoo
from unmask.cli import main
from unmask.interchange import StoredModel, read_model, write_model
from unmask.interchange.mindspore_file import write_ckpt

torch = pytest.importorskip("torch", reason="writes and computes with torch")
transformers = pytest.importorskip("transformers", reason="transformers, the reference, is not installed")
timm = pytest.importorskip("timm", reason="timm, the reference, is not installed")

SMALL: dict[str, Any] = {
    "image_size": [32, 32], "patch_size": 8, "width": 24, "depth": 2, "heads": 3,
    "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2,
}  # fmt: skip
TOLD = {
    "model.heads": "3", "model.decoder_heads": "2", "data.mean": "[0.485,0.456,0.406]",
    "data.std": "[0.229,0.224,0.225]", "objective.norm_pix_loss": "true",
}  # fmt: skip
"""What a person knows of these models, where their files do not tell."""
Tensors = dict[str, np.ndarray]


def weights_of(objective: str, **fields: Any) -> Tensors:
    """As a run draws them, biases and tokens too."""
    fields = SMALL | ({"num_classes": 3} if objective == "classify" else {}) | fields
    made, rng = objective_of(objective, **fields), np.random.default_rng(0)
    return {n: t + 0.02 * rng.standard_normal(t.shape, np.float32) for n, t in made.initial_weights(0).items()}


def renamed(tensors: Tensors, pattern: str, replacement: str) -> Tensors:
    return {re.sub(pattern, replacement, name): tensor for name, tensor in tensors.items()}


def in_torch(tensors: Tensors) -> dict[str, Any]:
    return {name: torch.tensor(tensor) for name, tensor in tensors.items()}


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


class Trap:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


class Callback:
    """An object of a training's own code."""


def mae_training(path: Path) -> Path:
    """All that the official code puts beside the model, and what others' changes to it leave there."""
    args = argparse.Namespace(
        norm_pix_loss=True, mask_ratio=0.6, output_dir=Path("out"), lr=np.float64(1.5e-4), callback=Callback()
    )
    weights = in_torch(weights_of("mae"))
    optimizer = torch.optim.AdamW([torch.nn.Parameter(weights["cls_token"])])
    beside = {"optimizer": optimizer.state_dict(), "epoch": np.int64(799), "scaler": {"scale": 65536.0}, "args": args}
    return saved(path / "checkpoint-799.pth", {"model": weights, **beside})


def linear_probe(path: Path) -> Path:
    weights = renamed(weights_of("classify", pool="cls"), r"^head\.", "head.1.")
    norm = {"head.0.running_mean": np.zeros(24, np.float32), "head.0.running_var": np.ones(24, np.float32)}
    counted = {"head.0.num_batches_tracked": np.array(90)}
    return saved(path / "mae_linprobe_vit_base.pth", {"model": in_torch(weights | norm | counted)})


def dino(path: Path) -> Path:
    backbone = renamed(weights_of("encoder"), "^", "module.backbone.")
    head = {
        "module.head.mlp.0.weight": np.ones((4, 24), np.float32),
        "module.head.last_layer.weight_v": np.ones((2, 4)),
    }
    content = {name: in_torch(backbone | head) for name in ("student", "teacher")}
    center = {"dino_loss": {"center": torch.zeros(1, 2)}}
    return saved(path / "dino_deitsmall16_pretrain_full_checkpoint.pth", content | center | {"epoch": 100})


def dinov2(path: Path) -> Path:
    weights = weights_of("encoder", layer_scale=1e-5, register_tokens=4)
    content = in_torch(renamed(weights, "^reg_token$", "register_tokens")) | {"mask_token": torch.ones(1, 24)}
    return saved(path / "dinov2_vits14_reg4_pretrain.pth", content)


def deit3(path: Path) -> Path:
    weights = renamed(weights_of("classify", pool="cls", layer_scale=1e-4), r"ls(\d)\.gamma", r"gamma_\1")
    weights["pos_embed"] = weights["pos_embed"][:, 1:]
    return saved(path / "deit_3_small_224_1k.pth", {"model": in_torch(weights)})


def moco(path: Path) -> Path:
    base = renamed(weights_of("encoder"), "^", "module.base_encoder.")
    both = base | renamed(base, "base_encoder", "momentum_encoder")
    return saved(path / "vit-s-300ep.pth.tar", {"state_dict": in_torch(both), "arch": "vit_small", "epoch": 300})


def timm_folder(path: Path, *, pickled: bool = False) -> Path:
    from timm.models import save_for_hf

    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 3}
    model = timm.create_model("vit_tiny_patch16_224", **arguments)
    save_for_hf(model, path / "timm", model_args=arguments, safe_serialization=not pickled)
    return path / "timm"


def transformers_folder(path: Path, kind: str, *, shards: bool = False) -> Path:
    sizes = {
        "image_size": 32, "patch_size": 8, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
        "intermediate_size": 96, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2, "decoder_intermediate_size": 64,
    }  # fmt: skip
    model_class = getattr(transformers, kind)
    allowed = model_class.config_class().to_dict()
    sizes = {name: value for name, value in sizes.items() if name in allowed}
    model = model_class(model_class.config_class(**sizes, num_labels=3))
    model.save_pretrained(path / kind, **({"max_shard_size": "20KB"} if shards else {}))
    assert (path / kind / "model.safetensors.index.json").exists() == shards
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(path / kind)
    return path / kind


def mindspore(path: Path) -> Path:
    pool = {"pool": "mean", "num_classes": 3}
    model = objective_of("classify", **SMALL, **pool).model.model_dump(mode="json")
    write_model("mindspore", path / "x.ckpt", StoredModel(weights_of("classify", **pool), model, None, "unmask"))
    return path / "x.ckpt"


def zoo_ckpt(path: Path, task: Any) -> Path:
    step = {"global_step": np.array(7, np.int32), "learning_rate": np.array(1e-3, np.float32)}
    write_ckpt(path / f"{task}.ckpt", zoo(task, D=24) | step)
    return path / f"{task}.ckpt"


def of_facebook(name: str, objective: str, prefix: str = "", **fields: Any) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        return saved(path / name, {"model": in_torch(renamed(weights_of(objective, **fields), "^", prefix))})

    return make


def of_transformers(kind: str, *, shards: bool = False) -> Callable[[Path], Path]:
    return lambda path: transformers_folder(path, kind, shards=shards)


def lightning(path: Path) -> Path:
    tensors = in_torch(renamed(weights_of("classify"), "^", "model."))
    return saved(path / "epoch=9.ckpt", {"state_dict": tensors, "pytorch-lightning_version": "2.5", "loops": {}})


LEFT_BY_DINO = (
    r"teacher is taken, not student or dino_loss; the projection heads of DINO are left out \(2 tensors\); "
    r"module\.backbone\. is taken off the names"
)
LEFT_BY_MOCO = (
    r"the momentum encoder and the heads of MoCo-v3 are left out \(\d+ tensors\); module\.base_encoder\. is taken off"
)
LAYOUTS: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "MAE": (of_facebook("mae_pretrain_vit_base.pth", "encoder"), "encoder", ""),
    "MAE, full": (of_facebook("mae_pretrain_vit_base_full.pth", "mae"), "autoencoder", ""),
    "MAE, raw pixels": (of_facebook("mae_visualize_vit_base.pth", "mae"), "autoencoder", ""),
    "MAE, fine-tuned": (of_facebook("mae_finetuned_vit_base.pth", "classify"), "classifier", ""),
    "MAE, linear probe": (linear_probe, "classifier", ""),
    "MAE, training": (mae_training, "autoencoder", ""),
    "DINO": (dino, "encoder", LEFT_BY_DINO),
    "DINOv2 with registers": (dinov2, "encoder", "mask_token, which only pretraining needs, is left out"),
    "DeiT": (of_facebook("deit_small_patch16_224-cd65a155.pth", "classify", pool="cls"), "classifier", ""),
    "DeiT III": (deit3, "classifier", ""),
    "MoCo-v3": (moco, "encoder", LEFT_BY_MOCO),
    "compiled, parallel": (
        of_facebook("x.pth", "classify", "module._orig_mod."), "classifier", r"module\._orig_mod\. is taken off",
    ),
    "Lightning": (lightning, "classifier", r"model\. is taken off the names"),
    "timm": (timm_folder, "classifier", ""),
    "timm, .bin": (lambda path: timm_folder(path, pickled=True), "classifier", ""),
    "ViT": (of_transformers("ViTForImageClassification"), "classifier", ""),
    "ViT, shards": (of_transformers("ViTForImageClassification", shards=True), "classifier", ""),
    "ViTModel": (of_transformers("ViTModel"), "encoder", r"pooler\.dense\.weight, which .* is left out"),
    "ViTMAE": (of_transformers("ViTMAEForPreTraining"), "autoencoder", ""),
    "ViTMAEModel": (of_transformers("ViTMAEModel"), "encoder", ""),
    "Dinov2Model": (of_transformers("Dinov2Model"), "encoder", ""),
    "Dinov2WithRegisters": (of_transformers("Dinov2WithRegistersForImageClassification"), "classifier", ""),
    "MindSpore": (mindspore, "classifier", ""),
    "model zoo, MAE": (lambda path: zoo_ckpt(path, "pretrain"), "autoencoder", "state of its training is left out"),
    "model zoo, ViT": (lambda path: zoo_ckpt(path, "finetune"), "classifier", r"encoder\.norm\.bias.* is left out"),
}  # fmt: skip
"""What makes it, what it is, and what is said of it."""
READ_OUTS = ["ViTMAEModel", "DINO"]
"""With which the commands that take longer are run at each commit; with all of them in a campaign."""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for number in range(12):
        pixels = rng.integers(0, 120, (40, 48, 3), dtype=np.uint8)
        pixels[:, :, number % 3] += 120
        path = tmp_path / "photos" / "abc"[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return tmp_path / "photos"


class Terminal:
    """Commands on a model as a person gives them: what a file does not tell is told when it is asked for."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        self.told: list[str] = []

    def __call__(self, *words: str | Path) -> None:
        self.capsys.readouterr()
        code = main([*map(str, words), *self.told])
        error = self.capsys.readouterr().err
        if code == 2 and (asked := re.search(r"does not tell (.*?); give ((?:--set \S+ )*--set \S+?)(?: |$)", error)):
            keys = asked[1].split(", ")
            assert all(f"--set {key}=" in error for key in keys), error
            self.told += [f"--set={key}={TOLD[key]}" for key in keys]
            code = main([*map(str, words), *self.told])
            error = self.capsys.readouterr().err
        assert code == 0, f"{words}: {error}"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_published_layout_is_read_and_used(
    layout: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    make, kind, said = LAYOUTS[layout]
    model = make(tmp_path)
    terminal = Terminal(capsys)
    caplog.clear()
    terminal("embed", model, photos, "--out", tmp_path / "e.npy")
    assert np.load(tmp_path / "e.npy").shape[0] == 12
    assert np.isfinite(np.load(tmp_path / "e.npy")).all()
    assert re.search(said, caplog.text), caplog.text
    terminal("convert", model, tmp_path / "ours.pth", "--to", "facebook")
    found = read_model(tmp_path / "ours.pth")
    assert found.kind == kind
    if kind == "classifier":
        terminal("evaluate", model, photos)
    if kind == "autoencoder":
        terminal("evaluate", model, photos)
        terminal("reconstruct", model, photos / "a", "--out", tmp_path / "r.png")
        told = layout != "model zoo, MAE"  # whose file leaves it open, and a conversion does, too
        assert found.objective.get("norm_pix_loss") is (layout not in ("MAE, raw pixels", "ViTMAE") if told else None)


def read_out(layout: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = LAYOUTS[layout][0](tmp_path)
    terminal = Terminal(capsys)
    terminal("knn", model, photos, photos)
    terminal("probe", model, photos, photos)
    start = read_model(model)
    sizes = {"image_size": 32, **{name: start.model[name] for name in ("patch_size", "width", "depth", "mlp_ratio")}}
    shape = [f"model.{name}={value}" for name, value in sizes.items()]
    short = ["train.epochs=1", "train.batch_size=6", "optimizer.warmup_epochs=0", "objective.head=drawn", "device=cpu"]
    settings = [*shape, *short, f"model.heads={start.model.get('heads', 3)}", f"data.train={photos}", f"init={model}"]
    capsys.readouterr()
    assert main(["finetune", "finetune-vit-tiny", *settings, f"output={tmp_path / 'run'}"]) == 0, (
        capsys.readouterr().err
    )
    tuned = read_model(tmp_path / "run")
    for name in ("register_tokens", "cls_token"):
        assert tuned.model[name] == start.model.get(name, tuned.model[name])
    assert ("blocks.0.ls1.gamma" in tuned.weights) == ("blocks.0.ls1.gamma" in start.weights)


@pytest.mark.parametrize("layout", READ_OUTS)
def test_its_features_are_read_out_and_trained_on(
    layout: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    read_out(layout, photos, tmp_path, capsys)


@pytest.mark.campaign
@pytest.mark.parametrize("layout", LAYOUTS.keys() - {*READ_OUTS})
def test_the_features_of_every_layout(layout: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    read_out(layout, photos, tmp_path, capsys)


def test_nothing_beside_the_tensors_is_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Objects of a training's own code are passed over; a call that would do something is refused by name."""
    weights = in_torch(weights_of("encoder"))
    content = {"model": weights, "where": Path("x"), "best": np.float64(1), "hook": Callback()}
    assert read_model(saved(tmp_path / "x.pth", content)).kind == "encoder"
    trap = tmp_path / "sprung"
    path = saved(tmp_path / "y.pth", {"model": weights, "hook": Trap(trap)})
    assert main(["convert", str(path), str(tmp_path / "z.pth"), "--to", "facebook"]) in (2, 4)
    assert "y.pth is refused: " in capsys.readouterr().err
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists(), "a trap that springs"
