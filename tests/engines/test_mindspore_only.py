"""What only the MindSpore engine can get wrong: compiling again, forgetting loaded weights, devices, modes."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any, ClassVar

import numpy as np
import pytest

from engine_cases import make_batch, make_config, start
from unmask.config.schema import Config
from unmask.engines import create_engine
from unmask.engines.base import EngineState
from unmask.errors import EngineError

pytest.importorskip("mindspore", reason="mindspore is not installed")
import mindspore as ms

from unmask.engines.mindspore_engine.engine import MindSporeEngine
from unmask.engines.mindspore_engine.optimizer import Optimizer
from unmask.objectives.mae import MaskedAutoencoding
from unmask.objectives.mae.mindspore import MaskedAutoencoder

LR = {"lr": 1e-2}


def make_engine(config: Config) -> MindSporeEngine:
    engine = create_engine(config.model_copy(update={"engine": "mindspore"}))
    assert isinstance(engine, MindSporeEngine)
    engine.load(start(config))
    return engine


def test_nothing_is_compiled_after_the_first_step() -> None:
    config = make_config()
    engine = make_engine(config)
    for step in range(4):
        halves = [make_batch(config, size=3, index=6 * step), make_batch(config, size=3, index=6 * step + 3)]
        engine.read(engine.train_step(halves, {"lr": 1e-2 / (step + 1)}))
    engine.load(engine.state())
    engine.train_step(halves[:2], LR)
    graphs = {name: cell for name, cell in vars(engine).items() if name in ("_gradients", "_accumulate", "_update")}
    assert {name: len(cell.compile_cache) for name, cell in graphs.items()} == dict.fromkeys(graphs, 1)
    assert len(graphs) == 3


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_compiled_engine_takes_every_loaded_number(precision: str) -> None:
    config = make_config(train={"ema_decay": 0.9, "precision": precision}, optimizer={"clip_grad": 0.5})
    engine, batches = make_engine(config), [make_batch(config, index=10 * i) for i in range(4)]
    engine.train_step(batches[:1], LR)
    start = engine.state()
    ends: list[EngineState] = []
    for _ in range(2):
        engine.load(start)
        for batch in batches[1:]:
            engine.train_step([batch], LR)
        ends.append(engine.state())
    first, second = (dataclasses.asdict(end) for end in ends)
    assert first["scalars"] == second["scalars"]
    for part in ("weights", "optimizer", "ema"):
        assert all(np.array_equal(first[part][name], second[part][name]) for name in first[part]), part


def test_results_may_be_read_long_after_their_batches_are_gone() -> None:
    config = make_config()
    engine = make_engine(config)
    at_once = [engine.read(engine.train_step([make_batch(config, index=i)], LR)) for i in range(5)]
    engine.load(start(config))
    engine.optimizer.load({name: np.zeros_like(m) for name, m in engine.state().optimizer.items()}, updates=0)
    late = [engine.train_step([make_batch(config, index=i)], LR) for i in range(5)]
    assert [engine.read(result) for result in late] == at_once


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"device": "cuda"}, "device=cuda: the MindSpore engine runs on cpu and ascend"),
        ({"device": "ascend:x"}, "device=ascend:x: the MindSpore engine runs on cpu and ascend"),
        ({"device": "ascend"}, "device=ascend: MindSpore finds no Ascend"),
        ({"train": {"precision": "bf16"}}, "train.precision=bf16: MindSpore computes it on Ascend only"),
        ({"train": {"shard": True}}, "train.shard is for engine=torch alone"),
        ({"train": {"activation_checkpointing": True}}, "train.activation_checkpointing is for engine=torch alone"),
        ({"train": {"exchange_dtype": "bf16"}}, "train.exchange_dtype is for engine=torch alone"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(config: dict[str, object], message: str) -> None:
    with pytest.raises(EngineError) as error:
        create_engine(Config.model_validate(make_config().model_dump() | config | {"engine": "mindspore"}))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_the_norm_of_a_large_gradient_is_that_of_float64() -> None:
    """Added one by one to one fp32 number, squares of this many get lost."""
    rng = np.random.default_rng(0)
    arrays = [(rng.normal(size=shape) ** 3).astype(np.float32) for shape in ((768, 3072), (1, 197, 768), (768,))]
    weights = {str(i): ms.Parameter(ms.Tensor(np.zeros_like(array))) for i, array in enumerate(arrays)}
    optimizer = Optimizer(weights, 1, make_config().optimizer)
    norm, _ = optimizer(tuple(ms.Tensor(array) for array in arrays), ms.Tensor(np.float32(0)), None)
    expected = np.sqrt(sum(np.square(array, dtype=np.float64).sum() for array in arrays))
    assert float(norm.asnumpy()) == pytest.approx(expected, rel=1e-6)


def test_each_read_out_is_compiled_once_for_its_options() -> None:
    engine, batch = make_engine(config := make_config()), make_batch(make_config())
    width = config.model.width
    for _ in range(2):
        assert engine.output("features", batch).shape == (6, width)
        assert engine.output("features", batch, pool="mean+cls").shape == (6, 2 * width)
        assert engine.output("attention", batch, block=0).shape == (6, 4, 7, 7)
    graphs = [engine.graph("features"), engine.graph("features", pool="mean+cls"), engine.graph("attention", block=0)]
    assert [len(graph.compile_cache) for graph in graphs] == [1, 1, 1]


class Blurred(MaskedAutoencoder):
    """With another term, a value that the step gives, and state beside the weights."""

    terms = ("loss", "error")

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.center = ms.Parameter(ms.Tensor(np.zeros(1, np.float32)), requires_grad=False)

    def loss(
        self, pixels_BHWC: ms.Tensor, ids_keep: ms.Tensor, ids_mask: ms.Tensor, factor: ms.Tensor
    ) -> tuple[ms.Tensor, ...]:
        error = self.errors(pixels_BHWC, ids_keep, ids_mask).mean()
        ms.ops.assign_add(self.center, factor.reshape(1))
        return error * factor, error


class Blurring(MaskedAutoencoding):
    networks: ClassVar = {"mindspore": f"{__name__}:Blurred"}

    def buffers(self) -> dict[str, tuple[int, ...]]:
        return {"center": (1,)}


def test_a_loss_may_have_terms_values_and_buffers_of_its_own() -> None:
    config = make_config()
    objective = Blurring(config.model, config.objective)
    engine = MindSporeEngine(objective, data=config.data, optimizer=config.optimizer, train=config.train, device="cpu")
    weights, center = dict(objective.initial_weights(0)), np.float32([3])
    engine.load(EngineState(weights, buffers={"center": center}))
    batches = [make_batch(config, index=10 * i) for i in range(2)]
    plain = make_engine(config)
    expected = plain.read(plain.train_step(batches, LR))["loss"]
    result = engine.read(engine.train_step(batches, {**LR, "factor": 2.0}))
    assert result["error"] == pytest.approx(expected, rel=1e-5)
    assert result["loss"] == pytest.approx(2 * expected, rel=1e-5)
    state = engine.state()
    assert state.buffers["center"].tolist() == [7]
    assert state.weights.keys() == weights.keys()
    with pytest.raises(TypeError, match="factor"):
        engine.train_step(batches, LR)


def test_pynative_mode_gives_the_numbers_of_graph_mode() -> None:
    results: list[tuple[dict[str, float], EngineState]] = []
    for compile in (True, False):  # one after the other: the mode is the process's
        train = {"ema_decay": 0.9, "compile": compile}
        config = make_config(train=train, optimizer={"clip_grad": 0.1})
        engine = make_engine(config)
        assert (ms.get_context("mode") == ms.GRAPH_MODE) == compile
        step = engine.train_step([make_batch(config, size=2, index=10 * i) for i in range(2)], LR)
        results.append((engine.read(step), engine.state()))
    (one, ours), (other, expected) = results
    assert one == pytest.approx(other, rel=1e-5)
    for name, weight in expected.weights.items():
        np.testing.assert_allclose(ours.weights[name], weight, rtol=1e-4, atol=1e-4, err_msg=name)


def test_it_runs_without_torch() -> None:
    """In a process of its own, where importing torch fails as if it were not installed."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from unmask.config.schema import Config\n"
        "from unmask.engines import create_engine\n"
        "create_engine(Config.model_validate({'engine': 'mindspore', 'device': 'cpu', 'model': {'depth': 1}}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


ENDING = """
import atexit
import mindspore
from unmask.cli import program

class Kept:
    def __del__(self):
        print("torn down")

mindspore.kept = Kept()
atexit.register(print, "leave is taken")
program(["stats", "nowhere"])
"""


def test_a_command_ends_without_tearing_down_what_mindspores_threads_may_use() -> None:
    done = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "leave is taken\n"), done.stderr
    assert "no such folder" in done.stderr
