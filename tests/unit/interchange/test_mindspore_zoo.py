"""The names of the model zoo's MAE, against what its code computes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_cases import objective_of
from mindspore_models import SMALL, Task, assert_equal, shapes_of, weights_of, zoo
from unmask import plugins
from unmask.cli import main
from unmask.config.schema import ModelConfig
from unmask.data.batch import Pixels
from unmask.errors import CheckpointError
from unmask.interchange import StoredModel, read_model, write_model
from unmask.interchange.mindspore_file import read_ckpt, write_ckpt

EPS_1E_6 = ("encoder.patch_embed.norm", "encoder.norm", "decoder_norm")


class Zoo:
    """What the model zoo's code computes, as far as a converted model can (exact GELU, class token 0)."""

    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        self.t = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + (1e-6 if name in EPS_1E_6 else 1e-5))
        return x * self.t[f"{name}.gamma"] + self.t[f"{name}.beta"]

    def dense(self, name: str, x: np.ndarray, *, in_out: bool = False) -> np.ndarray:
        weight = self.t[f"{name}.weight"]
        return x @ (weight if in_out else weight.T) + self.t[f"{name}.bias"]

    def block(self, name: str, x: np.ndarray, heads: int = 2) -> np.ndarray:
        torch = pytest.importorskip("torch", reason="PyTorch is not installed")
        y = self.norm(f"{name}.layernorm1", x)
        q, k, v = (
            self.dense(f"{name}.attention.dense{i}", y).reshape(len(y), heads, -1).swapaxes(0, 1) for i in (1, 2, 3)
        )
        scores = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]))
        y = (scores / scores.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(x.shape)
        x = x + self.dense(f"{name}.attention.projection", y, in_out=True)
        y = self.dense(f"{name}.output.mapping", self.norm(f"{name}.layernorm2", x), in_out=True)
        y = torch.nn.functional.gelu(torch.tensor(y)).numpy()
        return x + self.dense(f"{name}.output.projection", y, in_out=True)

    def encode(self, image: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """(1 + K, D) of one (C, H, W) image."""
        C, H, W = image.shape
        patches = image.reshape(C, H // 4, 4, W // 4, 4).transpose(1, 3, 0, 2, 4).reshape(-1, C * 16)
        kernel = self.t["encoder.patch_embed.projection.weight"].reshape(-1, C * 16)
        x = patches @ kernel.T + self.t["encoder.patch_embed.projection.bias"]
        if "encoder.patch_embed.norm.gamma" in self.t:
            x = self.norm("encoder.patch_embed.norm", x)
        positions = self.t["encoder.encoder_pos_embedding"][0]
        x = np.concatenate([positions[:1], (x + positions[1:])[ids]])
        for i in range(2):
            x = self.block(f"encoder.encoder.blocks.{i}", x)
        return x

    def classify(self, image: np.ndarray) -> np.ndarray:
        x = self.encode(image, np.arange(16))[1:].mean(0)
        return self.dense("head", self.norm("encoder.fc_norm", x))

    def paint(self, image: np.ndarray, keep: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """(M, C * p * p), channels first."""
        x = self.dense("enc_to_dec", self.norm("encoder.norm", self.encode(image, keep)))
        table = self.t["decoder_pos_embedding.embedding_table"]
        x = np.concatenate([x[:1], x[1:] + table[keep], self.t["mask_token"] + table[mask]])
        x = self.dense("to_pixels", self.norm("decoder_norm", self.block("decoder.blocks.0", x)))
        return x[-len(mask) :]


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(2).normal(size=(3, 16, 16))


def torch_model(objective: str, found: Any) -> Any:
    """Our PyTorch network with the weights, in float64; it takes normalised pixels."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    model = {name: value for name, value in found.model.items() if name in ModelConfig.model_fields}
    unit = objective_of(objective, **{**model, "heads": 2, "decoder_heads": 2})
    pixels = Pixels((0.0,) * 3, (1.0,) * 3, 1.0)
    network = plugins.resolve(unit.networks["torch"])(unit.model, unit.section, pixels, torch.float64)
    network.load_state_dict({name: torch.tensor(tensor) for name, tensor in found.weights.items()})
    return network.double()


def patchify(images: Any) -> Any:
    from unmask.models.torch_patches import patchify

    return patchify(images.permute(0, 2, 3, 1), 4)


def of_torch(image: np.ndarray) -> Any:
    """(1, C, H, W) float64."""
    return pytest.importorskip("torch", reason="PyTorch is not installed").tensor(image[None].copy()).double()


@pytest.mark.parametrize("patch_norm", [True, False], ids=["zoo", "course"])
def test_a_classifier_of_the_zoo_computes_the_same(tmp_path: Path, image: np.ndarray, patch_norm: bool):
    write_ckpt(tmp_path / "x.ckpt", tensors := zoo("finetune", patch_norm=patch_norm))
    found = read_model(tmp_path / "x.ckpt")
    told = {name: found.model[name] for name in ("num_classes", "pool", "norm_eps", "patch_norm")}
    assert told == {"num_classes": 3, "pool": "mean", "norm_eps": 1e-5, "patch_norm": patch_norm}
    assert found.format == "mindspore-zoo"
    logits = torch_model("classify", found)(of_torch(image))
    np.testing.assert_allclose(logits.detach().numpy()[0], Zoo(tensors).classify(image), atol=1e-6)


@pytest.mark.parametrize("patch_norm", [True, False], ids=["zoo", "course"])
def test_an_autoencoder_of_the_zoo_computes_the_same(tmp_path: Path, image: np.ndarray, patch_norm: bool):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    write_ckpt(tmp_path / "x.ckpt", tensors := zoo("pretrain", patch_norm=patch_norm))
    model, patches = torch_model("mae", read_model(tmp_path / "x.ckpt")), patchify(of_torch(image))
    keep, mask = np.array([11, 0, 3, 7, 15]), np.array([1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14])
    ids = torch.tensor(keep)[None], torch.tensor(mask)[None]
    tokens = model.encode(patches[:, keep], ids[0])
    ours = model.decode(tokens, *ids, queries=len(mask)).detach().numpy()[0]
    theirs = Zoo(tensors).paint(image, keep, mask).reshape(-1, 3, 4, 4).transpose(0, 2, 3, 1).reshape(-1, 48)
    np.testing.assert_allclose(ours, theirs, atol=3e-5)  # the epsilon of two norms


def test_a_file_of_the_zoo_says_what_it_lacks(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write_ckpt(tmp_path / "x.ckpt", zoo("pretrain"))
    found = read_model(tmp_path / "x.ckpt")
    assert "does not hold the class token" in caplog.text
    assert "nor the epsilon of its norms: model.norm_eps=1e-05" in caplog.text
    assert not found.weights["cls_token"].any()
    assert {name: tensor.shape for name, tensor in found.weights.items()} == shapes_of("pretrain", patch_norm=True)


@pytest.mark.parametrize("fields", [{}, {"patch_norm": True}, {"patch_norm": True, "norm_eps": 1e-5}], ids=str)
@pytest.mark.parametrize(("task", "pool"), [("pretrain", "mean"), ("finetune", "mean"), ("finetune", "cls")])
def test_what_is_written_in_the_names_of_the_zoo_comes_back(
    tmp_path: Path, task: Task, pool: str, fields: dict[str, Any], caplog: pytest.LogCaptureFixture
):
    weights, path = weights_of(task, pool=pool, **fields), tmp_path / "x.ckpt"
    write_model("mindspore-zoo", path, StoredModel(weights, SMALL | fields, None, "unmask"))
    there = zoo(task, patch_norm="patch_norm" in fields)
    used = {name: tensor.shape for name, tensor in there.items() if "cross_attention" not in name}
    if task == "finetune":
        used = {name: shape for name, shape in used.items() if ("fc_norm" if pool == "cls" else "r.norm") not in name}
    assert {name: tensor.shape for name, tensor in read_ckpt(path).items() if name != "unmask"} == used
    found = read_model(path)
    # The class token has moved into the position embedding, where it computes the same.
    weights["pos_embed"][:, :1] += weights["cls_token"]
    weights["cls_token"][:] = 0
    # What the patch norm sees has been as large there as its epsilon, which is 1e-6, asks for.
    for name in ("patch_embed.proj.weight", "patch_embed.proj.bias"):
        np.testing.assert_allclose(found.weights[name], weights.pop(name), rtol=3e-7 if "norm_eps" in fields else 0)
        del found.weights[name]
    assert_equal(found.weights, weights)
    assert fields.items() <= found.model.items()
    assert (found.format, found.model["heads"], caplog.text) == ("mindspore-zoo", 2, "")


def test_a_position_of_the_class_token_in_the_decoder_has_no_place(tmp_path: Path):
    weights = weights_of("pretrain")
    weights["decoder_pos_embed"][0, 0, 0] = 1
    with pytest.raises(CheckpointError, match="no place for a decoder position embedding of the class token"):
        write_model("mindspore-zoo", tmp_path / "x.ckpt", StoredModel(weights, SMALL, None, "unmask"))


def test_convert_from_one_naming_to_the_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    weights = weights_of("finetune")
    data = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.1), "eval_crop": 0.9}
    model = StoredModel(weights, SMALL, ("a", "b", "c"), "unmask", data=data)
    write_model("mindspore", tmp_path / "a.ckpt", model)
    first, second, third = (str(tmp_path / name) for name in ("a.ckpt", "b.safetensors", "c.ckpt"))
    assert main(["convert", first, second, "--to", "mindspore-zoo"]) == 0
    assert main(["convert", second, third, "--to", "mindspore"]) == 0
    assert "(mindspore-zoo) -> " in capsys.readouterr().out.replace("\n", " ")
    found = read_model(third)
    assert_equal({**found.weights, "cls_token": 0, "pos_embed": 0}, {**weights, "cls_token": 0, "pos_embed": 0})
    assert found.class_names == ("a", "b", "c")
    assert {name: found.data[name] for name in data} == data
