"""Two machines, as two network namespaces of this one, whose link is cut in the middle of a run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ranks import ENGINES, Ranks, launch, records
from runs import TINY_MODEL

STEPS = 400
RUN = [
    "pretrain",
    "mae-vit-tiny",
    *TINY_MODEL,
    "model.depth=1",
    "data.train=bundled:mnist5k/train",
    "train.batch_size=16",
    f"train.epochs={STEPS * 16 / 4000}",
    f"train.checkpoint_every={20 * 16 / 4000}",
    "train.log_every=1",
    "optimizer.warmup_epochs=0.04",
]
ROOT, PORT = "10.83.0.1", 29500
"""Any do: nothing else is in the namespaces."""


@dataclass
class Node:
    """A machine with a network of its own, which is one cable to the other."""

    name: str
    address: str
    cable: str

    def launch(self, engine: str, *arguments: str | Path, cwd: Path) -> Ranks:
        """One process of two, with those of `ROOT`."""
        cwd.mkdir(exist_ok=True)
        number = self.name[-1]
        options = {
            "torch": ["--nnodes=2"],
            "mindspore": ["--worker_num=2"],
        }[engine]
        options += [f"--node_rank={number}", f"--master_addr={ROOT}", f"--master_port={PORT}"]
        # Gloo asks what address the machine's name has, and it has the same name in both.
        within = ["ip", "netns", "exec", self.name, "env", f"GLOO_SOCKET_IFNAME={self.cable}"]
        return launch(engine, *arguments, f"engine={engine}", cwd=cwd, processes=1, options=options, within=within)

    def ip(self, *arguments: str) -> None:
        subprocess.run(["ip", "-n", self.name, *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    if shutil.which("ip") is None:
        pytest.skip("network namespaces need iproute2")
    made = [Node(f"unmask-{os.getpid()}-{n}", f"10.83.0.{n + 1}", f"u{os.getpid()}n{n}") for n in range(2)]
    try:
        for node in made:
            tried = subprocess.run(["ip", "netns", "add", node.name], capture_output=True, text=True)
            if tried.returncode != 0:
                pytest.skip(f"network namespaces cannot be made here: {tried.stderr.strip()}")
        one, other = made
        peer = ["peer", "name", other.cable, "netns", other.name]
        one.ip("link", "add", one.cable, "type", "veth", *peer)
        for node in made:
            node.ip("address", "add", f"{node.address}/24", "dev", node.cable)
            for device in ("lo", node.cable):
                node.ip("link", "set", device, "up")
        yield made
    finally:
        for node in made:
            subprocess.run(["ip", "netns", "delete", node.name], capture_output=True)


@pytest.mark.campaign
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("cut_off", ["first", "second"])
def test_a_node_that_is_cut_off_is_found_and_the_run_goes_on_exactly(
    engine: str, cut_off: str, nodes: list[Node], tmp_path: Path
) -> None:
    timeout = {"torch": 5, "mindspore": 20}[engine]  # the processes of the latter compile, one before the other
    run = [*RUN, f"train.process_timeout={timeout}"]
    cut = [*run, f"output={tmp_path / 'run'}"]
    both = [node.launch(engine, *cut, cwd=tmp_path / node.name) for node in nodes]
    both[0].until(lambda: len(records(tmp_path)) >= 50)
    workers = [pid for ranks in both for pid in ranks.pids.values()]
    assert len(workers) == 2
    node = nodes[["first", "second"].index(cut_off)]
    node.ip("link", "set", node.cable, "down")
    begun = time.monotonic()
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < begun + timeout + 30, "the processes are still at work"
        time.sleep(0.1)
    print(f"no process left after {time.monotonic() - begun:.1f} s")
    for ranks in both:
        said = ranks.end()
        assert ranks.launcher.returncode != 0
        assert re.search(r"(exitcode *|Error code): *7\b", said), said
        assert "ended or did not answer" in said, said
        assert "the same command goes on from the last checkpoint" in said
    print(f"no launcher left after {time.monotonic() - begun:.1f} s")

    node.ip("link", "set", node.cable, "up")
    again = [node.launch(engine, *cut, cwd=tmp_path / node.name) for node in nodes]
    said = [ranks.end() for ranks in again]
    assert [ranks.launcher.returncode for ranks in again] == [0, 0], said
    assert re.search(r"2 processes, resumed after step \d+\n", "".join(said)), said
    (whole := tmp_path / "whole").mkdir()
    ranks = launch(engine, *run, "output=run", f"engine={engine}", cwd=whole)
    said = ranks.end()
    assert ranks.launcher.returncode == 0, said
    last = Path("run") / "checkpoints" / f"step-{STEPS:08d}"
    for file in (Path("run") / "metrics.jsonl", last / "weights.safetensors", last / "optimizer.safetensors"):
        assert (tmp_path / file).read_bytes() == (whole / file).read_bytes(), file
