"""The PyTorch engine: CPU, CUDA, and Ascend where torch_npu is installed."""

from unmask.engines.base import EngineKind

TORCH = EngineKind(
    package="torch",
    install="unmask[torch]",
    create="unmask.engines.torch_engine.engine:TorchEngine",
    connect="unmask.engines.torch_engine.parallel:connect",
    devices="unmask.engines.torch_engine.device:devices",
    precision="unmask.engines.torch_engine.device:fast_precision",
    exports={
        ".onnx": "unmask.engines.torch_engine.export:write_onnx",
        ".pt2": "unmask.engines.torch_engine.export:write_pt2",
    },
    account="unmask.engines.torch_engine.accounting:account",
)
