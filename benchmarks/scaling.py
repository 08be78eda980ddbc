"""One process against two of one thread each, with the same batch in all: how much of the second core is training.

    python benchmarks/scaling.py --engine torch --size tiny --batch 32
    python benchmarks/scaling.py --engine mindspore --size tiny --batch 8 --rounds 9

Whole pretraining steps in fp32 at 224 pixels: forward, loss, backward, exchange of gradients, norm, AdamW. What is
compared runs in turn, a few steps each round, in processes that are started once and otherwise wait:

- one: one process with the whole batch;
- two: two processes with half of it each, under torchrun or msrun;
- apart: two processes with half of it each that know nothing of each other, which is what the machine allows.

Efficiency, `two of one`, is the time of one over twice that of two; 100 % is half the time. `two of apart` is what is
lost to training together. Beside other work that, and the CPU seconds, which waiting does not enter, tell more. All
five processes are in memory at once: with ViT-Ti and 16 images 4 GB in PyTorch, more than 20 in MindSpore 2.10.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import socket
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import NamedTuple

import numpy as np

from engines import random_batch
from unmask.config.load import load_config
from unmask.engines import create_engine, joined
from unmask.engines.base import EngineState
from unmask.environment import cores, versions
from unmask.objectives.base import create_objective

PORT, KEY = "UNMASK_SCALING_PORT", "UNMASK_SCALING_KEY"
"""Where a worker finds who tells it when to begin."""


class Spent(NamedTuple):
    """Seconds of some steps."""

    wall: float
    cpu: float


def compare(arguments: argparse.Namespace) -> None:
    print(f"{processor()}, {cores()} cores, load {os.getloadavg()[0]:.1f}")
    found = versions()
    print(f"{arguments.engine} {found[arguments.engine]}, ViT-{arguments.size}, batch {arguments.batch} in all")
    with ExitStack() as stack:
        groups = {
            "one": [stack.enter_context(Group(arguments.engine, 1))],
            "two": [stack.enter_context(Group(arguments.engine, 2))],
            "apart": [stack.enter_context(Group(arguments.engine, 1, share=2)) for _ in range(2)],
        }
        rounds = [
            {name: measured(each, arguments.steps) for name, each in groups.items()}
            for _ in range(arguments.rounds + 1)
        ]
        del rounds[0]  # a warm-up
    print(f"{'':8}{'ms/step, least':>16}{'median':>10}{'CPU ms/step':>14}")
    for name in groups:
        walls, cpus = ([getattr(r[name], kind) * 1e3 / arguments.steps for r in rounds] for kind in Spent._fields)
        print(f"{name:8}{min(walls):16.1f}{statistics.median(walls):10.1f}{statistics.median(cpus):14.1f}")
    for name, other, factor in (("two", "one", 2), ("apart", "one", 2), ("two", "apart", 1)):
        wall = [r[other].wall / r[name].wall / factor for r in rounds]
        least = min(r[other].wall for r in rounds) / min(r[name].wall for r in rounds) / factor
        cpu = statistics.median(r[other].cpu / r[name].cpu for r in rounds)
        print(
            f"{name} of {other}: {statistics.median(wall):.1%} median, rounds from {min(wall):.1%} to {max(wall):.1%}, "
            f"of the least times {least:.1%}; by CPU seconds {cpu:.1%}"
        )
    print(f"load at the end {os.getloadavg()[0]:.1f}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", default="torch", choices=("torch", "mindspore"))
    parser.add_argument("--size", default="tiny", choices=("tiny", "small", "base", "large", "huge"))
    parser.add_argument("--batch", type=int, default=32, help="images of a step, over all processes")
    parser.add_argument("--steps", type=int, default=3, help="in each round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--share", type=int, default=1, help=argparse.SUPPRESS)
    return parser.parse_args()


def processor() -> str:
    """Its name and the instructions that matter here."""
    text = Path("/proc/cpuinfo").read_text()
    name, flags = (re.search(rf"^{key}\s*: (.*)$", text, re.MULTILINE) for key in ("model name", "flags"))
    kept = [flag for flag in (flags[1] if flags else "").split() if re.match("avx|amx|fma", flag)]
    return f"{name[1] if name else 'unknown'} ({' '.join(kept)})"


def measured(groups: list[Group], steps: int) -> Spent:
    """Of groups that begin at once: the longest time, and all the CPU seconds."""
    connections = [connection for group in groups for connection in group.connections]
    for connection in connections:
        connection.send(steps)
    spent: list[Spent] = [connection.recv() for connection in connections]
    return Spent(max(each.wall for each in spent), sum(each.cpu for each in spent))


class Group:
    """Processes that train one model; `share`: on so many parts of the batch, of which they take one."""

    def __init__(self, engine: str, processes: int, share: int = 1) -> None:
        key = secrets.token_bytes(16)
        with Listener(("127.0.0.1", 0), authkey=key) as listener:
            told = {PORT: str(listener.address[1]), KEY: key.hex(), "OMP_NUM_THREADS": "1"}
            command = [*launcher(engine, processes), __file__, *sys.argv[1:], f"--share={share}"]
            self.launched = subprocess.Popen(
                command,
                env=os.environ | told | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # as torchrun's are; Linux divides the processor among sessions
            )
            self.connections: list[Connection] = [listener.accept() for _ in range(processes)]

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self.connections:
            connection.send(0)
        self.launched.wait()


def launcher(engine: str, processes: int) -> list[str]:
    if processes == 1:
        return [sys.executable]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = f"--master_port={free.getsockname()[1]}"
    if engine == "torch":
        return [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", port]
    count = [f"--worker_num={processes}", f"--local_worker_num={processes}"]
    logs = ["--log_dir=/tmp/unmask-scaling", "--join=True"]
    return ["msrun", *count, "--master_addr=127.0.0.1", port, *logs, "python"]


# --- the workers ---


def work(arguments: argparse.Namespace) -> None:
    """Do as many steps as are asked for, and tell the time, until none are."""
    overrides = ["device=cpu", f"train.batch_size={arguments.batch}", f"engine={arguments.engine}"]
    config = load_config(f"mae-vit-{arguments.size}", overrides)
    with joined(arguments.engine, "cpu", 600) as (_, world):
        engine = create_engine(config, world)
        engine.load(EngineState(create_objective(config).initial_weights(seed=0)))
        batch = random_batch(config.model, arguments.batch // (world * arguments.share))
        with Client(("127.0.0.1", int(os.environ[PORT])), authkey=bytes.fromhex(os.environ[KEY])) as told:
            while steps := told.recv():
                engine.sum(np.zeros(1))  # all begin at once
                wall, cpu = time.perf_counter(), time.process_time()
                for _ in range(steps):
                    result = engine.train_step([batch], {"lr": 1e-4})
                    engine.read(result)
                told.send(Spent(time.perf_counter() - wall, time.process_time() - cpu))


if __name__ == "__main__":
    (work if PORT in os.environ else compare)(parse_arguments())
