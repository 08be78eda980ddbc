"""From the name of a device to PyTorch's."""

from __future__ import annotations

import os
import sys
from functools import cache

import torch

from unmask.errors import EngineError


def pick_device(name: str) -> torch.device:
    """The device of this name; `auto` takes the first there is of CUDA, Ascend, Apple's MPS and the CPU.

    Raises EngineError if it is not there or cannot train.
    """
    if "npu" in name or name == "auto":
        _import_torch_npu(required=name != "auto")
    if name == "auto":
        name = _best()
    if name.startswith("mps") and not torch.backends.mps.is_available():
        raise EngineError(f"device={name} is not there: it needs a Mac with an Apple chip, and PyTorch built for it")
    try:
        device = torch.device(name)
        if device.type != "cpu" and ":" not in name:
            device = torch.device(name, int(os.environ.get("LOCAL_RANK", "0")))  # torchrun: a device for each process
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise EngineError(
            f"device={name} cannot be used: {reason.rstrip('.')}; `unmask doctor` shows what is there"
        ) from None
    if device.type == "mps" and not _heeds_found_inf("mps"):
        raise EngineError(
            "device=mps needs a newer PyTorch: AdamW there ignores gradient clipping; upgrade it or set device=cpu"
        )
    return device


def fast_precision(name: str) -> str:
    """bf16, else fp16, where the device of this name multiplies it in hardware; else fp32.

    Without the hardware PyTorch computes bf16 all the same, on a CPU with AVX2 at a seventh of the speed of fp32.
    """
    device = pick_device(name)
    if device.type == "cuda":
        major = torch.cuda.get_device_capability(device)[0]
        return "bf16" if major >= 8 else "fp16" if major == 7 else "fp32"
    if device.type == "npu":
        return "bf16" if torch.npu.is_bf16_supported() else "fp16"  # pyright: ignore
    if device.type == "cpu":
        return "bf16" if _cpu_multiplies_bf16() else "fp32"
    return "fp32"


def _cpu_multiplies_bf16() -> bool:
    if not hasattr(torch.cpu, "get_capabilities"):  # PyTorch before 2.11
        return torch.cpu._is_avx512_bf16_supported()  # pyright: ignore[reportPrivateUsage]
    able = torch.cpu.get_capabilities()
    return any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "sve_bf16"))


def devices() -> tuple[list[str], str]:
    """Names of the devices that are there, and what to install for more."""
    _import_torch_npu(required=False)
    found = ["cpu"] + [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    npu = getattr(torch, "npu", None)
    found += [f"npu:{i}" for i in range(npu.device_count())] if npu is not None else []
    found += ["mps"] if torch.backends.mps.is_available() else []
    if len(found) > 1:
        return found, ""
    if torch.version.cuda is not None:
        return found, f"torch is built for CUDA {torch.version.cuda}, but there is no card or no driver: try nvidia-smi"
    return found, "for NVIDIA cards install a CUDA build of torch, for Ascend torch_npu"


def _best() -> str:
    if torch.cuda.is_available():
        return "cuda"
    if "torch_npu" in sys.modules:
        return "npu"
    return "mps" if torch.backends.mps.is_available() and _heeds_found_inf("mps") else "cpu"


@cache
def _heeds_found_inf(device: str) -> bool:
    """Whether the fused AdamW there heeds what the optimizer skips and clips by.

    On MPS, PyTorch silently ignored `found_inf` and `grad_scale`: https://github.com/pytorch/pytorch/pull/186360.
    """
    weight = torch.ones((), device=device)
    weight.grad = torch.ones_like(weight)
    adamw = torch.optim.AdamW([weight], fused=True)
    adamw.found_inf = torch.ones((), device=device)  # pyright: ignore[reportAttributeAccessIssue]
    adamw.step()
    return weight.item() == 1


def _import_torch_npu(*, required: bool) -> None:
    try:
        import torch_npu  # pyright: ignore  # noqa: F401
    except ImportError:
        if required:
            raise EngineError("device=npu needs the package torch_npu, which is not installed") from None
