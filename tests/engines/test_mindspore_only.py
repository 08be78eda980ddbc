"""What only the MindSpore engine can get wrong: compiling again, forgetting loaded weights, devices, modes."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from engine_cases import make_batch, make_config
from unmask.config.schema import Config
from unmask.engines.base import EngineState
from unmask.errors import EngineError
from unmask.models.parameters import initial_weights

pytest.importorskip("mindspore", reason="mindspore is not installed")
import mindspore as ms

from unmask.engines.mindspore_engine.engine import MindSporeEngine

LR = 1e-2


def make_engine(config: Config) -> MindSporeEngine:
    engine = MindSporeEngine(config)
    engine.load(EngineState({**initial_weights(config.model, config.task, 0)}))
    return engine


def test_nothing_is_compiled_after_the_first_step() -> None:
    config = make_config()
    engine = make_engine(config)
    for step in range(4):
        halves = [make_batch(config, size=3, index=6 * step), make_batch(config, size=3, index=6 * step + 3)]
        engine.read(engine.train_step(halves, lr=LR / (step + 1)))
    engine.load(engine.state())
    engine.train_step(halves[:2], lr=LR)
    graphs = {name: cell for name, cell in vars(engine).items() if name in ("_gradients", "_accumulate", "_update")}
    assert {name: len(cell.compile_cache) for name, cell in graphs.items()} == dict.fromkeys(graphs, 1)
    assert len(graphs) == 3


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_compiled_engine_takes_every_loaded_number(precision: str) -> None:
    config = make_config(train={"ema_decay": 0.9, "precision": precision}, optimizer={"clip_grad": 0.5})
    engine, batches = make_engine(config), [make_batch(config, index=10 * i) for i in range(4)]
    engine.train_step(batches[:1], lr=LR)
    start = engine.state()
    ends: list[EngineState] = []
    for _ in range(2):
        engine.load(start)
        for batch in batches[1:]:
            engine.train_step([batch], lr=LR)
        ends.append(engine.state())
    first, second = (dataclasses.asdict(end) for end in ends)
    assert first["scalars"] == second["scalars"]
    for part in ("weights", "optimizer", "ema"):
        assert all(np.array_equal(first[part][name], second[part][name]) for name in first[part]), part


def test_results_may_be_read_long_after_their_batches_are_gone() -> None:
    config = make_config()
    engine = make_engine(config)
    at_once = [engine.read(engine.train_step([make_batch(config, index=i)], lr=LR)) for i in range(5)]
    engine.load(EngineState({**initial_weights(config.model, config.task, 0)}))
    engine.optimizer.load({name: np.zeros_like(m) for name, m in engine.state().optimizer.items()}, updates=0)
    late = [engine.train_step([make_batch(config, index=i)], lr=LR) for i in range(5)]
    assert [engine.read(result) for result in late] == at_once


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"device": "cuda"}, "device=cuda: the MindSpore engine runs on cpu and ascend"),
        ({"device": "ascend:x"}, "device=ascend:x: the MindSpore engine runs on cpu and ascend"),
        ({"device": "ascend"}, "device=ascend: MindSpore finds no Ascend"),
        ({"train": {"precision": "bf16"}}, "train.precision=bf16: MindSpore computes it on Ascend only"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(config: dict[str, object], message: str) -> None:
    with pytest.raises(EngineError) as error:
        MindSporeEngine(Config.model_validate(make_config().model_dump() | config))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_pynative_mode_gives_the_numbers_of_graph_mode() -> None:
    results: list[tuple[dict[str, float], EngineState]] = []
    for compile in (True, False):  # one after the other: the mode is the process's
        train = {"ema_decay": 0.9, "compile": compile}
        config = make_config(model={"depth": 1, "decoder_depth": 1}, train=train, optimizer={"clip_grad": 0.1})
        engine = make_engine(config)
        assert (ms.get_context("mode") == ms.GRAPH_MODE) == compile
        step = engine.train_step([make_batch(config, size=2, index=10 * i) for i in range(2)], lr=LR)
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
