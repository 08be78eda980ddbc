"""A step of one of many processes, counted instead of computed: PyTorch's fake tensors and fake process group."""

from __future__ import annotations

import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from unmask.data.batch import Batch
from unmask.engines.base import Account
from unmask.engines.torch_engine.parallel import processes
from unmask.models import torch_layers

_A_FEW_NUMBERS = 64
"""Bytes up to which an exchange is of losses and norms."""
_aten: Any = torch.ops.aten
_FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    # PyTorch 2.13 knows the kernels of cards alone.
    _aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[_aten._scaled_dot_product_flash_attention],
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _aten._scaled_dot_product_flash_attention_backward
    ],
}
_DDP_BUCKET = 25 << 20
"""Bytes that DistributedDataParallel exchanges at a time; in the first step, all at once."""
_COLLECTIVES = {
    "allreduce_": "all-reduce",
    "_allgather_base_": "all-gather",
    "allgather_into_tensor_coalesced_": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "reduce_scatter_tensor_coalesced_": "reduce-scatter",
}


def account(
    create: Callable[[int], Any], batches: Sequence[Batch], hyper: Mapping[str, float], rank: int, world: int
) -> Account:
    """One `train_step` of the TorchEngine that `create(world)` makes on the device `cpu`, as process `rank` of `world`.

    What every operation would allocate, exchange and multiply is counted by shape; nothing is allocated. Memory is
    that of the tensors alone: no CUDA context, no fragments, no workspace of a library.
    """
    with _fake_processes(rank, world):
        tensors = Tensors()
        with warnings.catch_warnings(), as_on_a_card(), FakeTensorMode(allow_non_fake_inputs=True), tensors:
            for of_ddp in ("Accessing the data pointer of FakeTensor", "Grad strides do not match"):
                warnings.filterwarnings("ignore", of_ddp)
            engine = create(world)
            engine.optimizer  # noqa: B018  # made when it is first used, which would be in the middle of the step
            engine.train_step(batches, hyper)
            weights = sum(tensor.numel() for tensor in engine.network.parameters())
    return Account(
        weights=weights,
        kept_bytes=tensors.now,
        peak_bytes=tensors.peak,
        flops=tensors.flops,
        exchanged_bytes=dict(tensors.exchanged),
        exchanges=dict(tensors.exchanges),
    )


@contextmanager
def _fake_processes(rank: int, world: int) -> Generator[None]:
    """A process group in which the others are only said to be there."""
    if world == 1:
        yield
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore  # registers the backend

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        processes("cpu")  # made of numbers, which fake tensors have not
        yield
    finally:
        processes.cache_clear()
        dist.destroy_process_group()


def as_on_a_card() -> AbstractContextManager[None]:
    """Take the kernels that a card has: its attention keeps no (tokens x tokens) scores, in whatever precision."""
    return _in_place_of(torch_layers, "products_are_faster", _never)


def _never(_: Tensor) -> bool:
    return False


@contextmanager
def _in_place_of(owner: Any, name: str, other: Any) -> Generator[None]:
    was = getattr(owner, name)
    setattr(owner, name, other)
    try:
        yield
    finally:
        setattr(owner, name, was)


class Tensors(TorchDispatchMode):
    """Counts the memory of all tensors that are alive, operations, and what collectives are given."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.flops = 0
        self.exchanged: Counter[str] = Counter()
        self.exchanges: Counter[str] = Counter()
        self._sizes: dict[int, int] = {}
        self._patch = ExitStack()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._found(tensor.untyped_storage())
        if func.overloadpacket in _FLOPS:
            self.flops += _FLOPS[func.overloadpacket](*args, **(kwargs or {}), out_val=result)
        if func.namespace == "c10d":
            self._exchange(func.overloadpacket.__name__, max(map(_bytes, args[:2])))
        return result

    def __enter__(self) -> Any:
        """FSDP2 gives memory back by resizing a storage, which is no operation on tensors."""
        resize = torch.UntypedStorage.resize_

        def resize_and_tell(storage: torch.UntypedStorage, size: int) -> Any:
            self._found(storage)
            result = resize(storage, size)
            self._resized(id(storage), storage.nbytes())
            return result

        self._patch.enter_context(_in_place_of(torch.UntypedStorage, "resize_", resize_and_tell))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patch.close()

    def _found(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key not in self._sizes:
            self._sizes[key] = 0
            weakref.finalize(storage, self._freed, key)
            self._resized(key, storage.nbytes())

    def _resized(self, key: int, size: int) -> None:
        self.now += size - self._sizes[key]
        self._sizes[key] = size
        self.peak = max(self.peak, self.now)

    def _freed(self, key: int) -> None:
        self.now -= self._sizes.pop(key)

    def _exchange(self, name: str, size: int) -> None:
        if size > _A_FEW_NUMBERS:
            kind = _COLLECTIVES[name]
            self.exchanged[kind] += size
            self.exchanges[kind] += -(-size // _DDP_BUCKET) if kind == "all-reduce" else 1


def _tensors(tree: Any) -> list[Tensor]:
    """Without those that only speak of others, as a DTensor does."""
    tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    return [tensor for tensor in tensors if not is_traceable_wrapper_subclass(tensor)]


def _bytes(tree: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(tree))
