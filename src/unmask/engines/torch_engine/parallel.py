"""Several processes, one model: PyTorch's collectives, under torchrun."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unmask.engines.torch_engine.device import pick_device
from unmask.errors import EngineError

BACKENDS = {"cpu": "gloo", "cuda": "nccl", "npu": "hccl"}


@contextmanager
def connect(device: str) -> Generator[None]:
    """Join the processes that torchrun started, which tells where they are in the environment. Raises EngineError."""
    kind = pick_device(device).type
    if kind not in BACKENDS:
        raise EngineError(f"device={kind} trains in one process only; start without torchrun, or set device=cpu")
    dist.init_process_group(BACKENDS[kind])
    yield
    dist.destroy_process_group()  # not after an error: it would wait for the others, whom the launcher ends


class Replicas:
    """The loss of a network of which every process has a replica; its backward pass averages the gradients."""

    def __init__(self, network: nn.Module) -> None:
        self._parallel = DistributedDataParallel(_Loss(network), gradient_as_bucket_view=True)

    def __call__(self, *inputs: Any, **named: Any) -> dict[str, Tensor]:
        return self._parallel(*inputs, **named)

    def exchange(self, now: bool) -> AbstractContextManager[None]:
        """For a micro-batch: whether its backward pass, the last of the step, exchanges what was accumulated."""
        return nullcontext() if now else self._parallel.no_sync()

    def average(self, terms: dict[str, Tensor]) -> None:
        for value in terms.values():
            dist.all_reduce(value)
            value /= dist.get_world_size()


class _Loss(nn.Module):
    """The loss as a module, which is what DistributedDataParallel takes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.forward: Any = network.loss


def sum_over_processes(values: NDArray[np.float64], device: torch.device) -> NDArray[np.float64]:
    """In the order of the ranks, so that all get the same bits."""
    mine = torch.from_numpy(values).to(device)
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine)
    return np.sum([part.cpu().numpy() for part in parts], axis=0)
