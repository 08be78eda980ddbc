"""An old commit against another, or the working tree, in turns: ratios of the times of a step and of the loader.

    python benchmarks/against.py HEAD~10 [NEW] [--recipe mae-vit-tiny] [--data FOLDER] [--rounds 9] [--set KEY=VALUE …]

Each side is a process of one thread that lives for all rounds, with its own checkout (`git worktree`, in a temporary
folder; NEW left out: the files as they are here). Both must do the same work first: three steps from equal weights on
equal images and masks give equal losses, else nothing is timed; `--tolerance` is for a change that means to round
otherwise. Times are CPU seconds, which other work on the machine disturbs least. Old / new: more than 1 is faster now.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[1]
CHECKED = 3
"""Steps whose losses must agree."""
LOADED = 8
"""Steps that are loaded in a round."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("old", help="a commit")
    parser.add_argument("new", nargs="?", help="a commit (default: the working tree)")
    parser.add_argument("--recipe", default="mae-vit-tiny")
    parser.add_argument("--data", required=True, help="anything that data.train may name")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--tolerance", type=float, default=0.0, help="relative, of the losses (default 0: same bits)")
    compare(parser.parse_args())


def compare(options: argparse.Namespace) -> None:
    settings = [f"data.train={Path(options.data).resolve()}", f"train.batch_size={options.batch}", "device=cpu"]
    settings += ["data.workers=0", *options.set]
    with TemporaryDirectory(prefix="unmask-") as folder, ExitStack() as stack:
        sides = {
            name: stack.enter_context(side(commit, Path(folder) / name, [options.recipe, *settings]))
            for name, commit in (("old", options.old), ("new", options.new))
        }
        losses = {name: each.ask("losses") for name, each in sides.items()}
        for old, new in zip(*losses.values(), strict=True):
            if abs(old - new) > options.tolerance * abs(old):
                sys.exit(f"not the same work: losses {losses['old']} and {losses['new']}")
        print(f"{options.old} against {options.new or 'the working tree'}: {options.recipe}, batch {options.batch}")
        print(f"losses {losses['new']}, load {os.getloadavg()[0]:.1f}")
        print("| what | old, CPU ms/image | new | old / new, median | quartiles |\n|---|---|---|---|---|")
        for what in ("step", "loader"):
            times: dict[str, list[float]] = {name: [] for name in sides}
            for number in range(1 + options.rounds):  # the first does not count
                for name in list(sides)[:: 1 if number % 2 else -1]:
                    times[name].append(sides[name].ask(what))
            old, new = (each[1:] for each in times.values())
            ratios = [a / b for a, b in zip(old, new, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            a, b = statistics.median(old), statistics.median(new)
            print(f"| {what} | {1e3 * a:.2f} | {1e3 * b:.2f} | {middle:.3f} | {low:.3f} to {high:.3f} |", flush=True)


class Side:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, what: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(what, file=self._process.stdin, flush=True)
        if not (answer := self._process.stdout.readline()):
            sys.exit(f"a side ended with {self._process.wait()}; what it said stands above")
        return json.loads(answer)


@contextmanager
def side(commit: str | None, checkout: Path, arguments: list[str]) -> Iterator[Side]:
    """A process with the code of this commit, None: of the working tree."""
    source = ROOT if commit is None else checkout
    if commit is not None:
        git("worktree", "add", "--detach", str(checkout), commit)
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [sys.executable, __file__, "--side", *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    try:
        with subprocess.Popen(
            command, env={**os.environ, **one, "PYTHONPATH": str(source / "src")}, **pipes
        ) as process:
            yield Side(process)
            process.stdin.close()
    finally:
        if commit is not None:
            git("worktree", "remove", "--force", str(checkout))


def git(*arguments: str) -> None:
    subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True)


def answer(recipe: str, settings: list[str]) -> None:
    """One side: of `unmask` only what has long been there."""
    from unmask.config.load import load_config
    from unmask.data.loader.pipeline import train_batches
    from unmask.data.sources import open_source
    from unmask.engines import create_engine
    from unmask.engines.base import EngineState
    from unmask.objectives.base import create_objective

    config = load_config(recipe, settings)
    objective, train = create_objective(config), config.train
    source = open_source(config.data.train, key="data.train", labels=objective.section.labelled)
    engine = create_engine(config)
    engine.load(EngineState(objective.initial_weights(0), buffers=objective.initial_buffers(0)))
    batches = partial(
        train_batches,
        source,
        needs=objective.needs(training=True),
        model=config.model,
        data=config.data,
        augment=config.augment,
        seed=0,
        batch_size=train.batch_size,
        accumulate=1,
    )
    there = list(batches(start_step=0, stop_step=CHECKED))
    hyper = {"lr": 1e-4, **objective.hyper(0, 1)}
    loaded = count(CHECKED, LOADED)

    def step(batch: Any) -> float:
        return engine.read(engine.train_step(batch, hyper))["loss"]

    def seconds(what: str) -> float:
        """CPU seconds an image."""
        begun = time.process_time()
        if what == "step":
            step(there[0])
            return (time.process_time() - begun) / train.batch_size
        first = next(loaded)
        for _ in batches(start_step=first, stop_step=first + LOADED):
            pass
        return (time.process_time() - begun) / (train.batch_size * LOADED)

    out, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        what = line.strip()
        print(json.dumps([step(batch) for batch in there] if what == "losses" else seconds(what)), file=out, flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        answer(sys.argv[2], sys.argv[3:])
    else:
        main()
