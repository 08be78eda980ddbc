"""The loss of every objective as the compiler sees it: one graph, and what in it runs in which dtype.

docs/performance.md compares the second with autocast's lists.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

from engine_cases import make_batch, make_config_of, start
from unmask import plugins
from unmask.engines import create_engine
from unmask.plugins import OBJECTIVES

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

TRAINED = sorted({*plugins.names(OBJECTIVES)} - {"linear_probe", "encoder"})
"""By an engine itself; the head of a linear probe is NumPy's."""
PRODUCTS = {"mm", "addmm", "bmm", "convolution"}
IN_FP32 = {"hog_mae": {"bmm"}, "lejepa": {"mm"}, "mae_lejepa": {"mm"}, "convnet": set[str]()}
"""Products that stay in fp32, in what is compared with the target: oriented gradients, directions of a Gaussian."""
NORMS = {"native_layer_norm", "native_group_norm", "gelu"}
OF_A_LOSS = {"_log_softmax", "log", "exp", "var", "sqrt", "rsqrt", "sin", "cos", "sum", "pow"}


def loss_and_inputs(objective: str) -> tuple[Any, Any, dict[str, Any]]:
    config = make_config_of(objective, train={"precision": "bf16"})
    engine: Any = create_engine(config)
    engine.load(start(config))
    batch = make_batch(config)
    images = engine._images(batch)
    return engine.network, images, {**engine._inputs(batch), **engine._taught(images)}


@pytest.mark.parametrize("objective", TRAINED)
def test_it_is_one_graph(objective: str) -> None:
    network, images, inputs = loss_and_inputs(objective)
    torch._dynamo.reset()
    compiled = torch.compile(network.loss, fullgraph=True, dynamic=False, backend="eager")  # breaks raise
    whole = compiled(images, **inputs)
    torch.testing.assert_close(whole, dict(network.loss(images, **inputs)))


class Dtypes(TorchDispatchMode):
    """By operation: the dtypes of its floating inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.found = defaultdict[str, set[Any]](set)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        floating = [x.dtype for x in args if isinstance(x, torch.Tensor) and x.is_floating_point()]
        self.found[func.overloadpacket.__name__] |= set(floating)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("objective", TRAINED)
def test_what_runs_in_which_dtype(objective: str) -> None:
    network, images, inputs = loss_and_inputs(objective)
    with Dtypes() as dtypes:
        terms = network.loss(images, **inputs)
    found = dtypes.found
    for product in PRODUCTS & found.keys():
        also = {torch.float32} if product in IN_FP32.get(objective, set()) else set()
        assert found[product] == {torch.bfloat16} | also, product
    # The residual stream and the norms stay in it: their kernels add up in fp32.
    # The weights of `convnet` are standardised in fp32, as they are kept, by the kernel of a LayerNorm.
    of_weights = {"native_layer_norm"} if objective == "convnet" else set[str]()
    assert all(found[name] == {torch.bfloat16} for name in (NORMS - of_weights) & found.keys())
    assert all(found[name] == {torch.float32} for name in of_weights)
    assert all(found[name] == {torch.float32} for name in OF_A_LOSS & found.keys())
    assert {term.dtype for term in terms.values()} == {torch.float32}
    terms["loss"].backward()
    gradients = {weight.grad.dtype for weight in network.parameters() if weight.grad is not None}
    assert gradients == {torch.float32}
