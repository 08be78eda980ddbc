"""Several processes, one model: PyTorch's collectives, under torchrun.

What splits weights is imported where it is used: it takes a third as long again as PyTorch itself.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from unmask import interrupts
from unmask.engines.torch_engine.device import pick_device
from unmask.errors import EngineError, ProcessError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl", "npu": "cpu:gloo,npu:hccl"}
"""Gloo everywhere, for the numbers of the host: they wait for no device."""
ROLL_CALL = 3.0
"""Seconds in which all who are there answer, when something has gone wrong."""


_OF_GLOO = ("gloo", "pair closure", "application timeout", "connection closed by peer", "connection reset")
"""Its errors have no type of their own, and those of gradients come out of autograd like any other of a step."""


def _meet(wait: timedelta) -> tuple[Any, int, int]:
    """Store, rank and number of the processes. Raises EngineError when the environment does not tell them."""
    try:
        return next(rendezvous("env://", timeout=wait))
    except ValueError as error:
        missing = str(error).rpartition("environment variable ")[2]
        raise EngineError(
            f"RANK_SIZE or WORLD_SIZE tells of several processes, but: {missing}. Start with torchrun, or unset both"
        ) from None


@contextmanager
def connect(device: str, timeout: float) -> Generator[None]:
    """Join the processes that torchrun started, which tells where they are in the environment.

    Raises EngineError; ProcessError when another is lost.
    """
    kind = pick_device(device).type
    if kind not in BACKENDS:
        raise EngineError(f"device={kind} trains in one process only; start without torchrun, or set device=cpu")
    wait = timedelta(seconds=timeout)
    store = None
    try:
        store, rank, world = _meet(wait)
        # The launcher's store outlives a restart, and has the addresses of those who are gone.
        store = PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        _stores.append(store)
        dist.init_process_group(BACKENDS[kind], store=store, rank=rank, world_size=world, timeout=wait)
        yield
        dist.destroy_process_group()  # not after an error: it would wait for the others, whom the launcher ends
    except RuntimeError as error:
        if not is_loss(error):
            raise
        with interrupts.ignored():  # the launcher, which has noticed too, need not ask
            lost = _missing(store) if store is not None and dist.is_initialized() else "another"
        raise ProcessError(
            f"{lost} ended or did not answer within train.process_timeout={timeout:g} s ({_reason(error)}); "
            "all end, and the same command goes on from the last checkpoint"
        ) from error


def is_loss(error: Exception) -> bool:
    """Whether this is what is heard of the loss of another process."""
    if not isinstance(error, RuntimeError):
        return False
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in _OF_GLOO)


_stores: list[Any] = []
"""Of the connection, the last one."""


def answer() -> None:
    """Be there in the roll call of those who find that another is lost, before something that takes long."""

    def call() -> None:
        with suppress(RuntimeError):
            _stores[-1].set(f"here/{dist.get_rank()}", "")

    threading.Thread(target=call, daemon=True).start()  # a store behind a cut link never answers


def _missing(store: Any) -> str:
    """Who is lost: all who notice a failure answer here, and it is those who do not."""
    rank, world = dist.get_rank(), dist.get_world_size()
    missing: set[int] | None = None

    def call() -> None:
        nonlocal missing
        with suppress(RuntimeError):  # the store was the first process's
            store.set(f"here/{rank}", "")
            while missing is None or missing:
                missing = {other for other in range(world) if other != rank and not store.check([f"here/{other}"])}
                time.sleep(0.1)

    caller = threading.Thread(target=call, daemon=True)  # a store behind a cut link never answers
    caller.start()
    caller.join(ROLL_CALL)
    if missing is None and rank:
        lost = "process 0, or the network to it,"
    else:
        lost = f"process {', '.join(map(str, sorted(missing)))}" if missing else "another process"
    return f"process {rank} of {world}: {lost}"


def _reason(error: RuntimeError) -> str:
    """Gloo's, without the place in its source."""
    text = " ".join(str(error).split())
    return re.sub(r"^\[\S+/gloo/\S+\] ", "", text).split(". This is typically")[0].rstrip(".")


class Replicas:
    """The loss of a network of which every process has a replica; its backward pass averages the gradients."""

    def __init__(self, network: nn.Module, exchange_dtype: torch.dtype) -> None:
        self._parallel = DistributedDataParallel(_Loss(network), gradient_as_bucket_view=True, init_sync=False)
        if exchange_dtype == torch.bfloat16 or dist.get_backend() == "fake":
            hook: Any = lambda _, bucket: _average(bucket, exchange_dtype)  # noqa: E731  # pyright: ignore
            self._parallel.register_comm_hook(None, hook)  # which must say GradBucket, or nothing

    def __call__(self, *inputs: Any, **named: Any) -> dict[str, Tensor]:
        return self._parallel(*inputs, **named)

    def exchange(self, now: bool) -> AbstractContextManager[None]:
        """For a micro-batch: whether its backward pass, the last of the step, exchanges what was accumulated."""
        return nullcontext() if now else self._parallel.no_sync()


class Shards:
    """The loss of a network of which every process keeps a share, FSDP2's; what else it computes works too.

    A block's weights are gathered when it is computed. Weights become DTensors, split along their first axis; `local`,
    `part` and `on_host` are the ways in and out.
    """

    def __init__(self, network: Any, exchange_dtype: torch.dtype, outputs: Iterable[str] = ()) -> None:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

        policy = MixedPrecisionPolicy(reduce_dtype=exchange_dtype)
        mesh = processes(next(network.parameters()).device.type)
        for block in blocks(network):
            fully_shard(block, mesh=mesh, mp_policy=policy)
        self._network = fully_shard(network, mesh=mesh, mp_policy=policy)
        for method in ("loss", *outputs):
            if hasattr(network, method):
                register_fsdp_forward_method(network, method)

    def __call__(self, *inputs: Any, **named: Any) -> dict[str, Tensor]:
        return self._network.loss(*inputs, **named)

    def exchange(self, now: bool) -> AbstractContextManager[None]:
        """See `Replicas`. What is accumulated is not split yet, which takes memory and saves an exchange."""
        self._network.set_requires_gradient_sync(now)
        return nullcontext()


def split_again(network: nn.Module) -> None:
    """After what was computed without a backward pass, which does so itself. Weights beside the blocks stay together
    until then, and who asks for them would find neither shares nor, after an update, the ones that count."""
    if "torch.distributed.fsdp" in sys.modules:
        from torch.distributed.fsdp import FSDPModule

        if isinstance(network, FSDPModule):
            network.reshard()


@cache
def processes(device: str) -> DeviceMesh:
    """All of them, in a row."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device, (dist.get_world_size(),))


def blocks(network: nn.Module) -> list[nn.Module]:
    """The equal parts of a network, one after another: what stands in lists of modules."""
    return [block for each in network.modules() if isinstance(each, nn.ModuleList) for block in each]


def average(terms: dict[str, Tensor]) -> None:
    """Over the processes, in place."""
    for value in terms.values():
        dist.all_reduce(value)
        value /= dist.get_world_size()


def norm_over_processes(norm: Tensor) -> Tensor:
    """Of all shares, from that of one."""
    squares = norm.square()
    dist.all_reduce(squares)
    return squares.sqrt()


def is_split(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether this process has a share of it alone."""
    if "torch.distributed.tensor" not in sys.modules:
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """What this process keeps of a tensor, in the same memory."""
    return tensor.to_local() if is_split(tensor) else tensor


@torch.no_grad()
def on_host(tensor: Tensor, kept: Tensor | None = None) -> NDArray[Any] | None:
    """A copy for the first process, None for the others; each must call this, because shares come together.

    `kept`: what this process keeps of another tensor, split as `tensor` is.
    """
    kept = local(tensor) if kept is None else kept
    if is_split(tensor):
        from torch.distributed.tensor import DTensor

        where = tensor.device_mesh, tensor.placements
        kept = DTensor.from_local(kept, *where, shape=tensor.shape, stride=tensor.stride()).full_tensor()
    is_first = not dist.is_initialized() or dist.get_rank() == 0
    return kept.detach().cpu().numpy().copy() if is_first else None


def part(array: Tensor, like: Tensor) -> Tensor:
    """Of a whole tensor what this process keeps, if it is split as `like` is."""
    if not is_split(like):
        return array
    shares = array.chunk(dist.get_world_size())
    return shares[dist.get_rank()] if dist.get_rank() < len(shares) else array[:0]


def _average(bucket: Any, dtype: torch.dtype) -> torch.futures.Future[Tensor]:
    """A hook of DistributedDataParallel for its GradBucket; PyTorch's own in bf16 is for NCCL alone."""
    mine = bucket.buffer().to(dtype).div_(dist.get_world_size())
    exchange: Any = dist.all_reduce(mine, async_op=True)
    return exchange.get_future().then(lambda _: bucket.buffer().copy_(mine))  # pyright: ignore


class _Loss(nn.Module):
    """The loss as a module, which is what DistributedDataParallel takes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.forward: Any = network.loss


_exchanges: deque[Any] = deque(maxlen=8)
"""The last ones, kept: Gloo (PyTorch 2.13) hung at the end in 1 of 11 runs when they were freed at once."""


def begin_sum(values: NDArray[np.float64]) -> Callable[[], NDArray[np.float64]]:
    """In the order of the ranks, so that all get the same bits; on the host, beside what the device does."""
    mine = torch.from_numpy(np.array(values))  # a copy, which the caller does not change
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    exchange = dist.all_gather(parts, mine, async_op=True)
    _exchanges.append(exchange)

    def finish() -> NDArray[np.float64]:
        exchange.wait()  # pyright: ignore[reportOptionalMemberAccess]
        return np.sum([part.numpy() for part in parts], axis=0)

    return finish
