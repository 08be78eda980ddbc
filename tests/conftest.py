"""What all tests share."""

from __future__ import annotations

import ctypes
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any


class TorchvisionWithoutKernels:
    """Lets torchvision be imported beside a PyTorch for the CPU alone, for timm and transformers.

    PyPI's torchvision for Linux is linked against CUDA. Without it its compiled operators cannot be loaded, which it
    bears, but for two whose shapes it describes. Declared here, without kernels, they are not missed: they are for
    detection. Where the operators can be loaded, nothing is done.
    """

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name)
        if spec and spec.origin and not _loads(Path(spec.origin).with_name("_C.so")):
            import torch

            for operator in ("nms", "qnms"):
                arguments = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                torch.library.define(f"torchvision::{operator}", arguments)
        return spec


def _loads(library: Path) -> bool:
    import torch  # noqa: F401 (what the library is linked against)

    try:
        ctypes.CDLL(str(library))
    except OSError:
        return not library.exists()
    return True


sys.meta_path.insert(0, TorchvisionWithoutKernels())
