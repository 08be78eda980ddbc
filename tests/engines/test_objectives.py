"""The networks of objectives beside masked autoencoding and classification, against mathematics written here anew."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine_cases import TINY, make_batch, measured, start
from unmask.config.load import check_config
from unmask.config.schema import Config
from unmask.data.batch import Batch
from unmask.engines import create_engine
from unmask.engines.base import Engine, EngineState
from unmask.errors import ConfigError
from unmask.objectives.base import create_objective

SMALL = {"depth": 1, "decoder_depth": 1}
MODEL = {key: value for key, value in TINY.items() if key != "mask_ratio"} | {"depth": 2, "decoder_depth": 2}
MASK = {"mask_ratio": 0.5}
VIEWS = {"views": 3, "directions": 12, "projector_width": 24, "projection_width": 8}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "cross_mae": {"name": "cross_mae", "predict_ratio": 0.33, **MASK},
    "cross_mae of the last features": {"name": "cross_mae", "weighted_features": False, "norm_pix_loss": False, **MASK},
    "hog_mae": {"name": "hog_mae", **MASK},
    "lejepa": {"name": "lejepa", "gaussian_weight": 0.2, **VIEWS},
    "convnet": {"name": "convnet", "width": 8},
    "semi": {"name": "semi", "unlabelled_ratio": 2, "confidence": 0.26, "unlabelled_weight": 0.5},
    "mae_lejepa": {"name": "mae_lejepa", "agreement_weight": 0.5, "gaussian_weight": 0.2, **VIEWS, **MASK},
}


@pytest.fixture(params=["torch", "mindspore"])
def engine_name(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    return request.param


def config_of(case: str, small: bool = False, **sections: Any) -> Config:
    """`small`: of one block, as a second is one more to compile and no other."""
    model = MODEL | ({"num_classes": 7} if case in ("convnet", "semi") else {})
    model |= SMALL if small or case == "hog_mae" else {}
    return check_config({"objective": OBJECTIVES[case], "device": "cpu", "model": model, **sections})


def build(config: Config, engine_name: str, seed: int = 0) -> Engine:
    """With all weights away from their first values: biases and norms count too."""
    engine = create_engine(config.model_copy(update={"engine": engine_name}))
    state, rng = start(config), np.random.default_rng(seed)
    engine.load(
        EngineState({name: w + rng.normal(0, 0.1, w.shape).astype(np.float32) for name, w in state.weights.items()})
    )
    return engine


@pytest.mark.parametrize("case", OBJECTIVES)
def test_training_lowers_the_loss_and_goes_on_bit_for_bit(engine_name: str, case: str) -> None:
    config = config_of(case, small=case != "cross_mae", train={"ema_decay": 0.9})  # whose decoder sees all blocks
    engine, batch = build(config, engine_name), make_batch(config)
    results = [engine.read(engine.train_step([batch], {"lr": 5e-3})) for _ in range(4)]
    taken = engine.state()
    results += [engine.read(engine.train_step([batch], {"lr": 5e-3})) for _ in range(8)]
    assert results[-1]["loss"] < 0.95 * results[0]["loss"]
    expected = create_objective(config).shapes()
    assert {name: array.shape for name, array in taken.weights.items()} == expected
    moved = {n for n, array in engine.state().weights.items() if not np.array_equal(array, taken.weights[n])}
    kept = {"pos_embed", "decoder_pos_embed"} if config.objective.task == "pretrain" else set[str]()
    kept |= {"norm.bias"} if case == "lejepa" else set()  # the projector's BatchNorm takes it away
    assert moved == expected.keys() - kept

    after = engine.state()
    engine.load(taken)
    again = [engine.read(engine.train_step([batch], {"lr": 5e-3})) for _ in range(8)]
    assert again == results[4:]
    for part in ("weights", "optimizer", "ema"):
        one, two = getattr(after, part), getattr(engine.state(), part)
        assert all(np.array_equal(one[name], two[name]) for name in one), part


@pytest.mark.parametrize("case", ["cross_mae", "hog_mae", "semi"])
def test_accumulation_equals_one_large_batch(engine_name: str, case: str) -> None:
    config = config_of(case, small=True)
    whole = make_batch(config, size=8)
    engine = build(config, engine_name)
    first = engine.read(engine.train_step([whole], {"lr": 0.0}))
    second = engine.read(engine.train_step([_rows(whole, slice(0, 4)), _rows(whole, slice(4, 8))], {"lr": 0.0}))
    assert second["loss"] == pytest.approx(first["loss"], rel=1e-5)
    assert second["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-4)


# --- CrossMAE ---


@pytest.mark.parametrize("case", ["cross_mae", "cross_mae of the last features"])
def test_each_hidden_patch_is_read_out_of_the_visible_ones(engine_name: str, case: str) -> None:
    config = config_of(case)
    engine, batch = build(config, engine_name), _for_evaluation(config, make_batch(config, size=2))
    weights = {name: array.astype(np.float64) for name, array in engine.state().weights.items()}
    patches = _normalised_patches(config, batch.images)
    keep, mask = batch.inputs["ids_keep"], batch.inputs["ids_mask"]
    expected = np.stack([_cross_mae(config, weights, patches[i], keep[i], mask[i]) for i in range(2)])
    painted = engine.output("reconstruction", batch)
    assert painted.shape == (2, 6, 192)
    np.testing.assert_allclose(painted, expected, rtol=1e-3, atol=1e-4)

    target = np.stack([patches[i][mask[i]] for i in range(2)])
    if config.objective.norm_pix_loss:  # pyright: ignore
        target = (target - target.mean(-1, keepdims=True)) / np.sqrt(target.var(-1, ddof=1, keepdims=True) + 1e-6)
    losses = ((expected[:, keep.shape[1] :] - target) ** 2).mean((1, 2))
    np.testing.assert_allclose(engine.output("losses", batch), losses, rtol=1e-4)
    assert measured(engine, config, batch)["loss"] == pytest.approx(losses.mean(), rel=1e-4)

    alone = dataclasses.replace(batch, inputs={"ids_keep": keep, "ids_mask": mask[:, 1:2]})
    np.testing.assert_allclose(  # whatever else is asked for
        engine.output("reconstruction", alone)[:, -1], expected[:, keep.shape[1] + 1], rtol=1e-3, atol=1e-4
    )


def _cross_mae(
    config: Config, w: dict[str, NDArray[np.float64]], patches: NDArray[Any], keep: NDArray[Any], mask: NDArray[Any]
) -> NDArray[np.float64]:
    """What is painted of one image, patches (L, P), kept and masked."""

    def linear(x: NDArray[Any], name: str) -> NDArray[Any]:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: NDArray[Any], name: str) -> NDArray[Any]:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def mlp(x: NDArray[Any], name: str) -> NDArray[Any]:
        torch = pytest.importorskip("torch", reason="PyTorch is not installed")
        hidden = torch.nn.functional.gelu(torch.from_numpy(linear(x, f"{name}.fc1"))).numpy()
        return linear(hidden, f"{name}.fc2")

    def heads_of(q: NDArray[Any], k: NDArray[Any], v: NDArray[Any], heads: int) -> NDArray[Any]:
        found = []
        for q_h, k_h, v_h in zip(*(np.split(each, heads, axis=1) for each in (q, k, v)), strict=True):
            scores = np.exp(q_h @ k_h.T / np.sqrt(q_h.shape[1]))
            found.append(scores / scores.sum(1, keepdims=True) @ v_h)
        return np.concatenate(found, axis=1)

    model = config.model
    projection = w["patch_embed.proj.weight"].transpose(0, 2, 3, 1).reshape(model.width, -1)
    tokens = patches[keep] @ projection.T + w["patch_embed.proj.bias"] + w["pos_embed"][0, 1:][keep]
    x = np.concatenate([w["cls_token"][0] + w["pos_embed"][0, :1], tokens])
    features = [x]
    for i in range(model.depth):
        q, k, v = np.split(linear(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv"), 3, axis=1)
        x = x + linear(heads_of(q, k, v, model.heads), f"blocks.{i}.attn.proj")
        x = x + mlp(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp")
        features.append(x)
    y = w["mask_token"][0] + w["decoder_pos_embed"][0, 1:][np.concatenate([keep, mask])]
    for i in range(model.decoder_depth):
        seen = x
        if "decoder_features.weight" in w:
            seen = sum(weight * each for weight, each in zip(w["decoder_features.weight"][i], features, strict=True))
        block = f"decoder_blocks.{i}"
        k, v = np.split(linear(norm(seen, "norm"), f"{block}.attn.kv"), 2, axis=1)
        q = linear(norm(y, f"{block}.norm1"), f"{block}.attn.q")
        y = y + linear(heads_of(q, k, v, model.decoder_heads), f"{block}.attn.proj")
        y = y + mlp(norm(y, f"{block}.norm2"), f"{block}.mlp")
    return linear(norm(y, "decoder_norm"), "decoder_pred")


# --- the residual network ---


@pytest.mark.parametrize("image_size", [[16, 24], [80, 40]])
def test_the_residual_network_is_one(engine_name: str, image_size: list[int]) -> None:
    model = MODEL | {"num_classes": 7, "image_size": image_size}
    config = check_config({"objective": OBJECTIVES["convnet"], "device": "cpu", "model": model})
    engine, batch = build(config, engine_name), make_batch(config, size=2)
    w = {name: array.astype(np.float64) for name, array in engine.state().weights.items()}

    def standard(weight: NDArray[Any]) -> NDArray[Any]:
        flat = weight.reshape(len(weight), -1)
        flat = flat - flat.mean(1, keepdims=True)
        return (flat / np.sqrt((flat**2).sum(1, keepdims=True) + 1e-5)).reshape(weight.shape)

    def conv(x: NDArray[Any], weight: NDArray[Any], stride: int) -> NDArray[Any]:
        k = weight.shape[-1]
        x = np.pad(x, [(0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2)])
        windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), (2, 3))[:, :, ::stride, ::stride]
        return np.einsum("bchwij,ocij->bohw", windows, standard(weight))

    def normed(x: NDArray[Any], name: str, stride: int) -> NDArray[Any]:
        x = conv(x, w[f"{name}.conv.weight"], stride)
        groups = x.reshape(len(x), 8, -1)
        groups = (groups - groups.mean(-1, keepdims=True)) / np.sqrt(groups.var(-1, keepdims=True) + 1e-5)
        return groups.reshape(x.shape) * w[f"{name}.norm.weight"][:, None, None] + w[f"{name}.norm.bias"][:, None, None]

    mean, std = np.array(config.data.mean), np.array(config.data.std)
    x = ((batch.images / 255 - mean) / std).transpose(0, 3, 1, 2)
    for i in range({24: 1, 80: 3}[max(image_size)]):
        x = np.maximum(normed(x, f"stem.{i}", 2 if i else 1), 0)
    for i in range(3):
        stride = 2 if i else 1
        y = normed(np.maximum(normed(x, f"stages.{i}.first", stride), 0), f"stages.{i}.second", 1)
        x = np.maximum(y + (conv(x, w[f"stages.{i}.shortcut.weight"], 2) if i else x), 0)
    expected = x.mean((2, 3)) @ w["head.weight"].T + w["head.bias"]
    np.testing.assert_allclose(engine.output("logits", batch), expected, rtol=1e-3, atol=1e-4)


# --- images without labels ---


def test_the_loss_of_images_without_labels(engine_name: str) -> None:
    """The average teaches what it is confident of, of the weak views; the network learns from it on the strong ones."""
    config = config_of("semi", train={"ema_decay": 0.9})
    engine, batch = build(config, engine_name), make_batch(config, size=4)
    weights, teacher = engine.state().weights, build(config, engine_name, seed=1).state().weights
    engine.load(EngineState(weights, ema=teacher))
    found = engine.read(engine.train_step([batch], {"lr": 0.0}))

    def logits(of: dict[str, NDArray[Any]], pictures: NDArray[Any]) -> NDArray[np.float64]:
        engine.load(EngineState(of))
        rows = Batch(pictures.reshape(-1, *pictures.shape[2:]), np.arange(pictures.shape[0] * pictures.shape[1]))
        return engine.output("logits", rows).astype(np.float64).reshape(*pictures.shape[:2], -1)

    def log_softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    assert batch.images.shape == (4, 5, 16, 24, 3)
    scores = log_softmax(logits(weights, batch.images[:, :3]))
    taught = np.exp(log_softmax(logits(teacher, batch.images[:, 3:])))
    sure = taught.max(-1) >= 0.26
    assert 0 < sure.mean() < 1, "or this shows nothing"
    labelled = -(batch.inputs["targets"] * scores[:, 0]).sum(-1).mean()
    errors = -np.take_along_axis(scores[:, 1:], taught.argmax(-1)[..., None], -1)[..., 0]
    expected = {"labelled": labelled, "unlabelled": (errors * sure).mean(), "confident": sure.mean()}
    expected["loss"] = labelled + 0.5 * expected["unlabelled"]
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)


# --- histograms of oriented gradients ---


@pytest.mark.parametrize("model", [{}, {"patch_size": 4}, {"image_size": [32, 48], "patch_size": 16}])
def test_histograms_against_loops_over_pixels(engine_name: str, model: dict[str, Any]) -> None:
    config = check_config({"objective": OBJECTIVES["hog_mae"], "device": "cpu", "model": MODEL | SMALL | model})
    engine, batch = build(config, engine_name), make_batch(config, size=2)
    weights = engine.state().weights
    silent = {name: np.zeros_like(weights[name]) for name in ("decoder_pred.weight", "decoder_pred.bias")}
    engine.load(EngineState(weights | silent))
    patches = _normalised_patches(config, batch.images)
    rows = [[_histograms(patch, config) for patch in patches[i][batch.inputs["ids_mask"][i]]] for i in range(2)]
    expected = (np.array(rows) ** 2).mean((1, 2))
    assert (expected > 0.05).all()
    np.testing.assert_allclose(engine.output("losses", batch), expected, rtol=1e-5)

    for value in (1.0, -0.5):  # of the histograms themselves: the error of a prediction that is the same everywhere
        told = {"decoder_pred.bias": np.full_like(weights["decoder_pred.bias"], value)}
        engine.load(EngineState(weights | silent | told))
        np.testing.assert_allclose(
            engine.output("losses", batch), ((np.array(rows) - value) ** 2).mean((1, 2)), rtol=1e-4
        )
    engine.load(EngineState(weights | silent | {"decoder_pred.bias": np.arange(len(rows[0][0]), dtype=np.float32)}))
    expected = ((np.array(rows) - np.arange(len(rows[0][0]))) ** 2).mean((1, 2))  # each in its place
    np.testing.assert_allclose(engine.output("losses", batch), expected, rtol=1e-5)


def test_a_patch_without_gradients_has_empty_histograms(engine_name: str) -> None:
    engine = build(config := config_of("hog_mae"), engine_name)
    batch = make_batch(config, size=2)
    flat = dataclasses.replace(batch, images=np.full_like(batch.images, 7))
    values = engine.read(engine.train_step([flat], {"lr": 1e-3}))
    assert np.isfinite(values["loss"])
    assert values["skipped"] == 0


def _histograms(patch: NDArray[Any], config: Config) -> NDArray[np.float64]:
    p, C = config.model.patch_size, config.model.channels
    across, pixels = max(1, p // 8), patch.reshape(p, p, C)
    found = np.zeros((across, across, C, 9))
    for y, x, c in np.ndindex(p, p, C):
        dy = pixels[min(y + 1, p - 1), x, c] - pixels[max(y - 1, 0), x, c]
        dx = pixels[y, min(x + 1, p - 1), c] - pixels[y, max(x - 1, 0), c]
        angle = np.degrees(np.arctan2(dy, dx)) % 180
        found[y * across // p, x * across // p, c, int(angle // 20) % 9] += np.hypot(dx, dy)
    return (found / np.maximum(np.sqrt((found**2).sum(-1, keepdims=True)), 1e-6)).reshape(-1)


# --- LeJEPA ---


def test_the_statistic_of_known_samples() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from unmask.objectives.lejepa.torch import EppsPulley

    rng = np.random.default_rng(0)
    t = np.linspace(-3, 3, 20001)

    def exact(x: NDArray[np.float64]) -> float:
        """The integral, finely."""
        distance = np.abs(np.exp(1j * t[:, None] * x).mean(1) - np.exp(-(t**2) / 2)) ** 2
        return float(len(x) * np.trapezoid(distance * np.exp(-(t**2) / 2), t))

    samples = {
        "gaussian": rng.standard_normal(2000),
        "shifted": rng.standard_normal(2000) + 1,
        "narrow": rng.standard_normal(2000) * 0.5,
        "uniform": rng.uniform(-(3**0.5), 3**0.5, 2000),
        "collapsed": np.zeros(2000),
    }
    found = EppsPulley()(torch.from_numpy(np.stack(list(samples.values()), 1)).float()).numpy()
    values = dict(zip(samples, found.tolist(), strict=True))
    for name, x in samples.items():
        assert values[name] == pytest.approx(exact(x), rel=0.01, abs=0.02), name
    # Of points that are all 0 the integral is known: 2000 times that of (1 - g)^2 g, with g = exp(-t^2 / 2).
    parts = [math.sqrt(2 * math.pi / n) * math.erf(3 * math.sqrt(n / 2)) for n in (1, 2, 3)]
    assert values["collapsed"] == pytest.approx(2000 * (parts[0] - 2 * parts[1] + parts[2]), rel=0.001)
    assert values["gaussian"] < 3 < values["uniform"] < min(values["narrow"], values["shifted"], values["collapsed"])


@pytest.mark.parametrize("case", ["lejepa", "mae_lejepa"])
def test_the_terms_of_the_loss(engine_name: str, case: str) -> None:
    config = config_of(case)
    engine, batch = build(config, engine_name), make_batch(config, size=5)
    weights = {name: array.astype(np.float64) for name, array in engine.state().weights.items()}
    each_view = [_for_evaluation(config, _view(batch, view)) for view in range(3)]
    found = engine.read(engine.train_step([batch], {"lr": 0.0}))
    if case == "lejepa":
        features = np.stack([engine.output("features", view) for view in each_view], 1)
        projections = _projected(weights, features.astype(np.float64))
        expected = _agreement(projections, batch.inputs["directions"], 0.2)
        assert found == pytest.approx(found | expected, rel=1e-4)
    else:
        reconstruction = np.mean([engine.output("losses", view).mean() for view in each_view])
        assert found["reconstruction"] == pytest.approx(reconstruction, rel=1e-5)
        agreed = 0.8 * found["invariance"] + 0.2 * found["gaussian"]
        assert found["loss"] == pytest.approx(reconstruction + 0.5 * agreed, rel=1e-5)
    assert measured_or_refused(engine, config, each_view[0]) == (case == "mae_lejepa")


def test_masked_and_unmasked_agreement_are_the_same_where_all_is_seen(engine_name: str) -> None:
    """With all patches visible, and the same weights, the terms are those of LeJEPA alone."""
    plain, masked = config_of("lejepa"), config_of("mae_lejepa")
    two = build(masked, engine_name)
    one = build(plain, engine_name)
    one.load(EngineState({name: two.state().weights[name] for name in one.state().weights}))
    batch = make_batch(plain, size=4)
    everything = np.broadcast_to(np.arange(6, dtype=np.int32), (4, 3, 6))
    inputs = {**batch.inputs, "ids_keep": everything.copy(), "ids_mask": everything[..., :2].copy()}
    expected = one.read(one.train_step([batch], {"lr": 0.0}))
    found = two.read(two.train_step([dataclasses.replace(batch, inputs=inputs)], {"lr": 0.0}))
    for term in ("invariance", "gaussian"):
        assert found[term] == pytest.approx(expected[term], rel=1e-5)


def measured_or_refused(engine: Engine, config: Config, batch: Batch) -> bool:
    if create_objective(config).evaluated is not None:
        return measured(engine, config, batch)["count"] == len(batch)
    with pytest.raises(ConfigError, match="has no loss for single images"):
        measured(engine, config, batch)
    return False


def _projected(w: dict[str, NDArray[np.float64]], x: NDArray[np.float64]) -> NDArray[np.float64]:
    for i in (1, 2):
        x = x @ w[f"projector.fc{i}.weight"].T
        x = (x - x.mean((0, 1))) / np.sqrt(x.var((0, 1)) + 1e-5)  # over images and views
        x = np.maximum(x * w[f"projector.norm{i}.weight"] + w[f"projector.norm{i}.bias"], 0)
    return x @ w["projector.fc3.weight"].T + w["projector.fc3.bias"]


def _agreement(z_BVZ: NDArray[np.float64], directions: NDArray[Any], share: float) -> dict[str, float]:
    """The authors' rule over [-3, 3] with 33 knots, which is theirs over [0, 3] with 17, doubled."""
    t = np.linspace(-3, 3, 33)
    invariance = float(((z_BVZ - z_BVZ.mean(1, keepdims=True)) ** 2).mean())
    statistics = []
    for view in range(z_BVZ.shape[1]):
        for direction in directions.T:
            x = z_BVZ[:, view] @ direction
            distance = np.abs(np.exp(1j * t[:, None] * x).mean(1) - np.exp(-(t**2) / 2)) ** 2
            statistics.append(len(x) * np.trapezoid(distance * np.exp(-(t**2) / 2), t))
    gaussian = float(np.mean(statistics))
    return {
        "invariance": invariance,
        "gaussian": gaussian,
        "loss": (1 - share) * invariance + share * gaussian,
    }


# --- batches ---


def _rows(batch: Batch, rows: slice) -> Batch:
    inputs = {name: array[rows] for name, array in batch.inputs.items()}
    return dataclasses.replace(batch, images=batch.images[rows], index=batch.index[rows], inputs=inputs)


def _view(batch: Batch, view: int) -> Batch:
    inputs = {name: array[:, view] for name, array in batch.inputs.items() if name != "directions"}
    return dataclasses.replace(batch, images=batch.images[:, view], inputs=inputs)


def _for_evaluation(config: Config, batch: Batch) -> Batch:
    """All hidden patches are asked for."""
    if "ids_keep" not in batch.inputs:
        return batch
    keep = batch.inputs["ids_keep"]
    everything = range(config.model.num_patches)
    mask = np.stack([np.setdiff1d(everything, row) for row in keep]).astype(np.int32)
    return dataclasses.replace(batch, inputs={"ids_keep": keep, "ids_mask": mask})


def _normalised_patches(config: Config, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(B, L, P)."""
    p, (h, w) = config.model.patch_size, config.model.grid
    pixels = (images / 255 - np.array(config.data.mean)) / np.array(config.data.std)
    cut = pixels.reshape(len(images), h, p, w, p, -1).transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(len(images), h * w, -1)
