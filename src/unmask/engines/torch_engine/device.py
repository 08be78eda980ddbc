"""From the name of a device to PyTorch's."""

from __future__ import annotations

import os
import sys

import torch

from unmask.errors import EngineError


def pick_device(name: str) -> torch.device:
    """The device of this name; `auto` takes CUDA, then Ascend, then the CPU. Raises EngineError if it is not there."""
    if "npu" in name or name == "auto":
        _import_torch_npu(required=name != "auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "npu" if "torch_npu" in sys.modules else "cpu"
    try:
        device = torch.device(name)
        if device.type != "cpu" and ":" not in name:
            device = torch.device(name, int(os.environ.get("LOCAL_RANK", "0")))  # torchrun: a device for each process
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise EngineError(f"device={name} cannot be used: {reason} `unmask doctor` shows what is there") from None
    return device


def devices() -> tuple[list[str], str]:
    """Names of the devices that are there, and what to install for more."""
    _import_torch_npu(required=False)
    found = ["cpu"] + [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    npu = getattr(torch, "npu", None)
    found += [f"npu:{i}" for i in range(npu.device_count())] if npu is not None else []
    hint = "" if len(found) > 1 else "for NVIDIA cards install a CUDA build of torch, for Ascend torch_npu"
    return found, hint


def _import_torch_npu(*, required: bool) -> None:
    try:
        import torch_npu  # pyright: ignore  # noqa: F401
    except ImportError:
        if required:
            raise EngineError("device=npu needs the package torch_npu, which is not installed") from None
