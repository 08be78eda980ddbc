"""Read-outs of a network as files that run elsewhere: ONNX, and PyTorch's own .pt2.

Both are the same traced program (`torch.export`), for any number of images, with the weights inside.
"""

from __future__ import annotations

import io
import logging
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from unmask.engines.base import GraphRunner
from unmask.engines.torch_engine.engine import TorchEngine
from unmask.errors import EngineError

PROTOBUF_LIMIT = 2**31 - 2**20
"""Bytes of an ONNX file; weights beyond that lie in a file of their own beside it."""


class ReadOuts(nn.Module):
    """Several methods of a network as one module; each takes the images and the inputs of its own."""

    def __init__(self, network: nn.Module, outputs: Mapping[str, Sequence[str]], inputs: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.outputs, self.inputs = outputs, inputs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.inputs, tensors, strict=True))
        return tuple(
            getattr(self.network, name)(given["images"], *(given[each] for each in taken)).float()
            for name, taken in self.outputs.items()
        )


def write_onnx(
    engine: TorchEngine, outputs: Mapping[str, Sequence[str]], example: Mapping[str, NDArray[Any]], path: Path
) -> GraphRunner:
    """Write `outputs` as an ONNX graph whose inputs and outputs have their names; see `EngineKind.exports`."""
    try:
        import onnxruntime  # noqa: F401 # pyright: ignore[reportUnusedImport]
        import onnxscript  # noqa: F401 # pyright: ignore[reportUnusedImport]
        from onnx_ir.passes import common as passes
    except ImportError as error:
        raise EngineError(f"{path.name}: ONNX needs {error.name}; install it: pip install 'unmask[onnx]'") from None
    # Without torchvision it would be said that its operators are left out, which no network here has.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    program = traced(engine, outputs, example)
    size = sum(tensor.nbytes for tensor in engine.module.state_dict().values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        written = torch.onnx.export(
            program, input_names=[*example], output_names=[*outputs], dynamo=True, verbose=False, optimize=True
        )
        assert written is not None
        # Outputs share the encoder, and nobody elsewhere has the sources that the nodes name.
        for tidy in (
            passes.DeduplicateInitializersPass(size_limit=2**62),
            passes.CommonSubexpressionEliminationPass(),
            passes.RemoveUnusedNodesPass(),
            passes.ClearMetadataAndDocStringPass(),
        ):
            tidy(written.model)
        written.save(path, external_data=size > PROTOBUF_LIMIT)
    return _runner(path)


def write_pt2(
    engine: TorchEngine, outputs: Mapping[str, Sequence[str]], example: Mapping[str, NDArray[Any]], path: Path
) -> GraphRunner:
    """Write `outputs` as what `torch.export.load(path).module()` makes a module of."""
    buffer = io.BytesIO()  # PyTorch's own writer ends the process on a full disk
    torch.export.save(traced(engine, outputs, example), buffer)
    path.write_bytes(buffer.getbuffer())
    module = torch.export.load(path).module()

    def run(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        with torch.no_grad():
            values = module(*(torch.from_numpy(arrays[name]) for name in example))
        return {name: value.numpy() for name, value in zip(outputs, values, strict=True)}

    return run


def traced(
    engine: TorchEngine, outputs: Mapping[str, Sequence[str]], example: Mapping[str, NDArray[Any]]
) -> ExportedProgram:
    """The program for any number of images."""
    module = ReadOuts(engine.module.eval(), outputs, tuple(example)).eval()
    tensors = tuple(torch.from_numpy(array) for array in example.values())
    rows = Dim("images", min=1, max=2**31 - 1)  # PyTorch 2.6 refuses one without an end
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch about its own modules
        return torch.export.export(module, tensors, dynamic_shapes=(tuple({0: rows} for _ in tensors),), strict=False)


def quantize(path: Path, out: Path) -> GraphRunner:
    """Write an ONNX file with the weights of its matrix products as int8, each output channel with its own scale.

    Activations are quantised as they come (onnxruntime's dynamic quantisation), so that no images are needed.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(dir=out.parent) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(path, prepared, skip_symbolic_shape=True)
        quantize_dynamic(
            prepared, out, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8
        )
    return _runner(out)


def _runner(path: Path) -> GraphRunner:
    """An ONNX file as onnxruntime runs it on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda arrays: dict(zip(names, map(np.asarray, session.run(names, dict(arrays))), strict=True))
