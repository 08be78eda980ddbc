"""Several processes, one model: MindSpore's collectives, under msrun or ModelArts."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from mindspore.communication import init
from numpy.typing import NDArray

from unmask.engines.mindspore_engine.device import pick_device
from unmask.errors import ProcessError
from unmask.models.mindspore_operators import Cell

HEARTBEAT = 15.0
"""Most seconds until msrun's scheduler takes a process that is not heard of for lost; MindSpore's own are 30."""
WAITS = ("MS_RECEIVE_MSG_TIMEOUT", "MS_CPU_COMM_OP_TIMEOUT", "HCCL_EXEC_TIMEOUT")
"""MindSpore's and HCCL's settings, in seconds, for how long an exchange waits."""
LOST = r"state of the cluster is error|Launch kernel failed: \S*(AllGather|AllReduce)"
"""What a process hears of the loss of another."""


@contextmanager
def connect(device: str, timeout: float) -> Generator[None]:
    """Join the processes that were launched. In msrun's scheduler this waits until the others have ended, and exits.

    The connection outlives the block: MindSpore 2.10 cannot use the CPU again after closing it. Raises ProcessError
    when another is lost; only the scheduler learns which.
    """
    for setting in WAITS:
        os.environ.setdefault(setting, str(round(timeout)))
    os.environ.setdefault("MS_NODE_TIMEOUT", str(round(min(timeout, HEARTBEAT))))
    ms.set_context(mode=ms.GRAPH_MODE)
    pick_device(device)
    try:
        init()
        yield
    except RuntimeError as error:
        lost = re.search(r"Timed out node list is: [^{]*\{(.+?)\}", str(error))
        if lost is None and not re.search(LOST, str(error)):
            raise
        name = "another process" if lost is None else f"process {lost[1]}"
        raise ProcessError(
            f"{name} ended or did not answer within train.process_timeout={timeout:g} s, or gave no sign of life for "
            f"{os.environ['MS_NODE_TIMEOUT']} s; all end, and the same command goes on from the last checkpoint"
        ) from error
    with suppress(RuntimeError):  # the last exchange fails when another process has left already: let it be this one
        begin_sum(np.zeros(1))()


class Sum(Cell):
    """Sums each tensor over the processes."""

    def __init__(self) -> None:
        super().__init__()
        self.all_reduce = ops.AllReduce()
        self.map = ops.HyperMap()

    def construct(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self.map(self.all_reduce, tensors)


class _Gather(Cell):
    def __init__(self) -> None:
        super().__init__()
        self.all_gather: Any = ops.AllGather()

    def construct(self, values: Tensor) -> Tensor:
        return self.all_gather(values)


@cache
def _gather(_count: int) -> _Gather:
    """A graph for each number of values."""
    return _Gather()


def begin_sum(values: NDArray[np.float64]) -> Callable[[], NDArray[np.float64]]:
    """In the order of the ranks, so that all get the same bits. A number travels as two of fp32."""
    flat, shape = np.ascontiguousarray(values).reshape(-1), values.shape
    gathered = _gather(flat.size)(Tensor(flat.view(np.float32)))
    return lambda: gathered.asnumpy().view(np.float64).reshape(-1, *shape).sum(0)
