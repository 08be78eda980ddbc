"""A model exported as ONNX, .pt2 or MindIR gives, in that runtime alone, what it gives here."""

from __future__ import annotations

import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runs import TINY_MODEL
from unmask.api import run
from unmask.cli import main
from unmask.config.load import load_config
from unmask.evaluate.inference import Model, load

DATA = ["data.train=bundled:mnist5k/train", "data.labels_per_class=2"]
SHORT = ["train.epochs=1", "train.batch_size=10", "model.depth=1", "init=null"]


def trained(recipe: str, folder: Path, *settings: str) -> Path:
    run(load_config(recipe, [*TINY_MODEL, *DATA, *SHORT, *settings]), folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained("finetune-vit-tiny", tmp_path_factory.mktemp("export") / "classifier")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained("mae-vit-tiny", tmp_path_factory.mktemp("export") / "pretrained")


def noise(count: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(count).integers(0, 256, (count, 28, 28, 1), dtype=np.uint8)


def expected(model: Model, name: str, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.concatenate([model.engine.output(name, batch) for batch in model.batches(images)])


def test_onnx_gives_several_outputs_for_any_number_of_images(classifier: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    names = ["logits", "features", "patch_features"]
    out = tmp_path / "m.onnx"
    assert main(["export", str(classifier), str(out), "--outputs", *names, "--set", "data.eval_crop=1"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.json"]
    described = json.loads((tmp_path / "m.onnx.json").read_text("utf-8"))
    assert described["inputs"]["images"]["shape"] == [None, 28, 28, 1]
    assert described["preprocessing"]["short_side"] == [28, 28]
    assert described["class_names"] == [str(digit) for digit in range(10)]
    session = onnxruntime.InferenceSession(out)
    (weights,) = classifier.glob("checkpoints/step-*/weights.safetensors")
    assert out.stat().st_size < 2 * weights.stat().st_size  # three outputs, one encoder
    with load(classifier, settings={"data.eval_crop": 1}) as model:
        for count in (1, 5):
            found = dict(zip(names, session.run(names, {"images": noise(count)}), strict=True))
            for name in names:
                assert [None, *found[name].shape[1:]] == described["outputs"][name]["shape"]
                np.testing.assert_allclose(found[name], expected(model, name, noise(count)), atol=1e-5)


def test_onnx_of_a_masked_autoencoder_paints(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without torchvision, of which the base install has none, nothing is said of it."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *of: None if name == "torchvision" else found(name, *of)
    )
    monkeypatch.setattr(logging.getLogger("torch"), "handlers", [caplog.handler])  # it tells no other
    arguments = ["--outputs", "features", "reconstruction", "--dtype", "float32"]
    assert main(["export", str(pretrained), str(tmp_path / "m.onnx"), *arguments]) == 0
    assert "torchvision" not in caplog.text
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    with load(pretrained) as model:
        for batch in model.batches(noise(4)):
            masks = {name: batch.inputs[name].astype(np.int64) for name in ("ids_keep", "ids_mask")}
            given = session.run(["features", "reconstruction"], {"images": batch.images.astype(np.float32), **masks})
            for name, values in zip(("features", "reconstruction"), given, strict=True):
                np.testing.assert_allclose(values, model.engine.output(name, batch), atol=1e-5)


def test_pt2_is_a_module_of_torch_alone(classifier: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    assert main(["export", str(classifier), str(tmp_path / "m.pt2")]) == 0
    module = torch.export.load(tmp_path / "m.pt2").module()
    with load(classifier) as model, torch.no_grad():
        batch = next(model.batches(noise(5)))
        (logits,) = module(torch.from_numpy(batch.images))
        np.testing.assert_allclose(logits.numpy(), model.engine.output("logits", batch), atol=1e-5)


def test_int8_tells_what_it_costs(classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    images = tmp_path / "images.npy"
    np.save(images, noise(7))
    for out, data, *dtype in (("a.onnx", "bundled:mnist5k/val"), ("b.onnx", str(images), "--dtype", "float32")):
        capsys.readouterr()
        assert main(["export", str(classifier), str(tmp_path / out), "--int8", data, *dtype]) == 0
        said = capsys.readouterr().out
        assert "int8 on" in said
        assert ("accuracy" in said) == (out == "a.onnx")
        assert json.loads((tmp_path / f"{out}.json").read_text("utf-8"))["weights"] == "int8"
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    with load(classifier) as model:
        (logits,) = session.run(["logits"], {"images": next(model.batches(noise(5))).images})
        apart = np.abs(logits - expected(model, "logits", noise(5))).max()
        assert 0 < apart < 0.25 * np.abs(logits).max()


@pytest.mark.parametrize(
    ("out", "arguments", "message"),
    [
        ("m.bin", [], "give one that ends in .onnx or .pt2 or .mindir"),
        ("m.onnx", ["--outputs", "reconstruction"], "this model gives logits, features, patch_features"),
        ("m.pt2", ["--int8", "bundled:mnist5k/val"], "--int8 is for a name that ends in .onnx"),
        ("there/is/none/m.pt2", [], "cannot write"),
    ],
)
def test_mistakes_are_one_line(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str, arguments: list[str], message: str
) -> None:
    assert main(["export", str(classifier), str(tmp_path / out), *arguments]) in (1, 2)
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", ["m.onnx", "m.onnx.json"])
def test_nothing_is_overwritten(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], there: str
) -> None:
    (tmp_path / there).write_text("mine")
    assert main(["export", str(classifier), str(tmp_path / "m.onnx")]) == 2
    assert f"{there} is there already; name another, or remove it" in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(there, "mine")]


@pytest.mark.parametrize(
    ("recipe", "output", "shape"),
    [pytest.param("mae-vit-tiny", "features", 32, marks=pytest.mark.campaign), ("finetune-vit-tiny", "logits", 10)],
)
def test_mindir_round_trip(recipe: str, output: str, shape: int, tmp_path: Path) -> None:
    ms = pytest.importorskip("mindspore", reason="mindspore is not installed")
    trained(recipe, tmp_path / "run", "engine=mindspore")
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "model.mindir")]) == 0

    graph = ms.nn.GraphCell(ms.load(str(tmp_path / "model.mindir")))
    engine: Any = load(tmp_path / "run").engine
    described = json.loads((tmp_path / "model.mindir.json").read_text())
    assert (list(described["outputs"]), described["inputs"]["images"]["shape"]) == ([output], [None, 28, 28, 1])
    assert (described["class_names"] is None) == (output == "features")
    for count in (1, 5):  # one graph for any number of images
        ours = graph(ms.Tensor(noise(count))).asnumpy()
        assert ours.shape == (count, shape)
        np.testing.assert_allclose(ours, engine.graph(output)(ms.Tensor(noise(count))).asnumpy(), rtol=1e-6)
