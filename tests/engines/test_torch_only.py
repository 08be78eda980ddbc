"""What only the PyTorch engine has."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine_cases import make_batch, make_config, start
from unmask.engines import create_engine, joined
from unmask.engines.torch_engine.device import _heeds_found_inf
from unmask.errors import EngineError


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's compiler about torch itself
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")  # 3.13.1 has them fast
def test_a_compiled_step_gives_the_same_numbers() -> None:
    batch = make_batch(make_config())
    losses = list[list[float]]()
    for compile in (False, True):
        config = make_config(train={"compile": compile})
        engine = create_engine(config)
        engine.load(start(config))
        losses.append([engine.read(engine.train_step([batch], {"lr": 1e-2}))["loss"] for _ in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_a_device_that_is_not_there_is_refused() -> None:
    config = make_config().model_copy(update={"device": "cuda:99"})
    with pytest.raises(EngineError, match="device=cuda:99 cannot be used"):
        create_engine(config)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has MPS")
def test_mps_where_there_is_none_is_refused_in_one_line() -> None:
    with pytest.raises(EngineError, match=r"device=mps is not there: it needs a Mac") as raised:
        create_engine(make_config().model_copy(update={"device": "mps"}))
    assert "\n" not in str(raised.value)


def test_the_probe_of_the_fused_optimizer_finds_that_it_skips_updates_here() -> None:
    assert _heeds_found_inf("cpu")


@pytest.mark.parametrize("variable", ["RANK_SIZE", "WORLD_SIZE"])
def test_a_number_of_processes_left_over_in_the_shell_is_said(variable: str, monkeypatch: pytest.MonkeyPatch):
    for name in ("RANK", "RANK_ID", "RANK_SIZE", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "8")
    with pytest.raises(EngineError, match=r"several processes, but: RANK expected, but not set\. Start with torchrun"):
        joined("torch", "cpu", 10).__enter__()


STEP = """
import sys
sys.path.insert(0, sys.argv[1])
import unmask.train
from engine_cases import make_batch, make_config, start
from unmask.engines import create_engine
engine = create_engine(config := make_config(train={"precision": "fp32", "ema_decay": 0.9}))
engine.load(start(config))
engine.train_step([make_batch(config)], {"lr": 1e-3})
print(*sorted({"torch._dynamo", "torch.distributed.tensor", "scipy.optimize", "matplotlib"} & sys.modules.keys()))
"""


def test_a_step_imports_nothing_that_takes_as_long_as_the_framework() -> None:
    command = [sys.executable, "-c", STEP, str(Path(__file__).parents[1])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
