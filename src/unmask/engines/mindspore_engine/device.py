"""From the name of a device to MindSpore's."""

from __future__ import annotations

import os
from contextlib import redirect_stderr, suppress
from functools import cache
from io import StringIO

import mindspore as ms
import numpy as np
from mindspore import Tensor
from mindspore.device_context import ascend

from unmask.errors import EngineError


@cache  # once processes are connected, MindSpore does not take even the same device again
def pick_device(name: str) -> str:
    """Select the device of this name for the process; `auto` takes Ascend, then the CPU. Returns MindSpore's name.

    Raises EngineError if it is not there.
    """
    kind, _, number = name.partition(":")
    if kind == "auto":
        kind = "ascend" if ascend.is_available() else "cpu"
    if kind not in ("cpu", "ascend") or (number and not number.isdecimal()):
        raise EngineError(f"device={name}: the MindSpore engine runs on cpu and ascend (ascend:1)")
    if kind == "ascend" and not ascend.is_available():
        raise EngineError(f"device={name}: MindSpore finds no Ascend; `unmask doctor` shows what is there")
    if kind == "ascend":  # processes that share work without talking do not negotiate; msrun says which each has
        number = number or os.environ.get("DEVICE_ID", "")
    target = "CPU" if kind == "cpu" else "Ascend"
    try:
        ms.set_device(target, int(number)) if number else ms.set_device(target)
    except (RuntimeError, ValueError) as error:
        raise EngineError(f"device={name} cannot be used: {str(error).splitlines()[0]}") from None
    _wake_pynative()
    return target


def _wake_pynative() -> None:
    """MindSpore 2.10 is built against NumPy 1: under NumPy 2 the first eager view fails, and the later ones work.

    In graph mode too, because it is what calls of the module's methods take. Before the processes are connected: after
    any failure a process leaves the others without a word, and msrun's scheduler takes it for dead.
    """
    with suppress(SystemError), redirect_stderr(StringIO()):
        Tensor(np.zeros(2, np.float32)).reshape(2, 1)


def fast_precision(name: str) -> str:
    """fp16 on Ascend, as in the model zoo: the first 910 has no bf16. fp32 on the CPU, where fp16 is slow."""
    return "fp32" if pick_device(name) == "CPU" else "fp16"


def devices() -> tuple[list[str], str]:
    """Names of the devices that are there, and what to install for more."""
    return (["cpu", "ascend"], "") if ascend.is_available() else (["cpu"], "for Ascend install CANN")
