"""Several processes, one model: MindSpore's collectives, under msrun or ModelArts."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from mindspore.communication import init
from numpy.typing import NDArray

from unmask.engines.mindspore_engine.device import pick_device
from unmask.models.mindspore_operators import Cell


@contextmanager
def connect(device: str) -> Generator[None]:
    """Join the processes that were launched. In msrun's scheduler this waits until the others have ended, and exits.

    The connection outlives the block: MindSpore 2.10 cannot use the CPU again after closing it.
    """
    ms.set_context(mode=ms.GRAPH_MODE)
    pick_device(device)
    init()
    yield
    with suppress(RuntimeError):  # the last exchange fails when another process has left already: let it be this one
        sum_over_processes(np.zeros(1))


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


def sum_over_processes(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """In the order of the ranks, so that all get the same bits. A number travels as two of fp32."""
    flat = np.ascontiguousarray(values).reshape(-1)
    gathered = _Gather()(Tensor(flat.view(np.float32))).asnumpy().view(np.float64)
    return gathered.reshape(-1, *values.shape).sum(0)
