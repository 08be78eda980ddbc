"""A recipe on a number of nodes: checked, and as the commands of a shell, whatever the platform."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unmask.config.load import load_config, task_of
from unmask.config.schema import Config
from unmask.data.batch import check_shares
from unmask.data.sources.files import is_remote
from unmask.errors import ConfigError

LAUNCHERS = {"torch": "torchrun", "mindspore": "msrun"}
"""What starts the processes of an engine."""
GRACE = 300
"""Seconds that a job which must stop has to finish its step and save."""
RESTARTS = 3
"""How often a job is started again after an error, such as a lost process."""
PORT = "29500"
"""Of the first node, where a platform gives each job a network of its own."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""Line breaks, YAML's among them, and what else is not text."""


@dataclass(frozen=True)
class Job:
    """A recipe with its settings, on `nodes` machines with `cards` accelerators each: one process a card."""

    recipe: str
    settings: tuple[str, ...]
    config: Config
    nodes: int
    cards: int

    @property
    def processes(self) -> int:
        return self.nodes * self.cards

    @property
    def title(self) -> str:
        count = f"{self.nodes} node{'s' * (self.nodes > 1)}"
        return f"{self.config.objective.task} {self.recipe} on {count} of {self.cards}"

    @property
    def output(self) -> str:
        assert self.config.output is not None  # `prepare`
        return self.config.output

    @property
    def name(self) -> str:
        """Of the run folder, as every platform takes a name: lower case, digits and hyphens."""
        last = self.output.rstrip("/").rpartition("/")[2].lower()
        return "-".join(["unmask", *re.findall("[a-z0-9]+", last)])[:40].rstrip("-")

    @property
    def device(self) -> str:
        """What the cards are: cpu, cuda or npu."""
        kind = self.config.device.partition(":")[0]
        auto = "npu" if self.config.engine == "mindspore" else "cuda"
        return {"auto": auto, "ascend": "npu"}.get(kind.lower(), kind)

    @property
    def cpus(self) -> int:
        """Cores of a node: for each process one, and one for each of its loader processes."""
        return self.cards * (1 + self.config.data.workers)

    @property
    def words(self) -> list[str]:
        """The arguments of `unmask`."""
        assert self.config.objective.task is not None  # `prepare`
        return [self.config.objective.task, self.recipe, *self.settings]

    def command(self, *, rank: str, address: str, port: str = PORT, logs: str | None = None) -> list[str]:
        """What starts the processes of one node, as words of a shell, `words` last.

        `rank` of the node, `address` and `port` of the first one, and `logs`, the folder of msrun's, are words that the
        shell expands there.
        """
        unmask = ["unmask", *map(shlex.quote, self.words)]
        if self.processes == 1:
            return unmask
        launcher = LAUNCHERS[self.config.engine]
        where = [f"--node_rank={rank}", f"--master_addr={address}", f"--master_port={port}"]
        if self.config.engine == "mindspore":
            where = where if self.nodes > 1 else ["--master_addr=127.0.0.1", where[-1]]
            counts = [f"--worker_num={self.processes}", f"--local_worker_num={self.cards}"]
            logs = logs or shlex.quote(f"{self.folder}/msrun")
            return [launcher, *counts, *where, f"--log_dir={logs}", "--join=True", "python", "-m", *unmask]
        where = [f"--nnodes={self.nodes}", *where] if self.nodes > 1 else ["--standalone"]
        return [launcher, *where, f"--nproc_per_node={self.cards}", "-m", *unmask]

    @property
    def is_file(self) -> bool:
        """Whether the recipe is a file, not one of the package's."""
        return Path(self.recipe).suffix in (".yaml", ".yml")

    @property
    def folder(self) -> Path:
        """Where the run works: `output`, or the folder beside which a URL is kept."""
        if is_remote(self.output):
            from unmask.checkpoint.mirror import folder_here

            return folder_here(self.output)
        return Path(self.output)

    def check_reachable(self, platform: str, below: str | None = None) -> None:
        """Raise ConfigError for a setting that names a place on this machine, which the platform's does not see.

        `below`: a folder that it does see.
        """
        data, evaluate = self.config.data, self.config.evaluate
        places = {"output": self.output, "init": self.config.init, "data.train": data.train, "data.val": data.val}
        if data.val_share is not None:
            del places["data.val"]
        places |= {"data.unlabelled": data.unlabelled, "data.exclude": data.exclude}
        places |= {"evaluate.train": evaluate.train, "evaluate.val": evaluate.val}
        for key, place in places.items():
            if place is None or is_remote(place) or place.startswith("bundled:"):
                continue
            if below is None or not Path(place.partition("#")[0]).is_relative_to(below):
                there = "" if below is None else f", or a place below {below}"
                raise ConfigError(
                    f"{key}={place} is not there on {platform}; give a URL, such as s3://BUCKET/PATH{there}"
                )


@dataclass(frozen=True)
class Options:
    """What a job needs that no recipe says. Each platform takes some."""

    partition: str | None = None
    time: str | None = None
    accelerator: str | None = None
    image: str | None = None
    volume: str | None = None
    flavor: str | None = None


def prepare(recipe: str, settings: Sequence[str], nodes: int = 1, cards: int = 1) -> Job:
    """A job whose recipe and settings can be trained on so many cards. Raises ConfigError."""
    for word in (recipe, *settings):
        if _CONTROL.search(word) or not _is_utf8(word):
            raise ConfigError(f"{word!r} has a character that cannot stand in a job: a line break or no UTF-8")
    config = load_config(recipe, settings)
    task_of(config)
    if config.data.train is None:
        raise ConfigError("data.train is not set; give the folder of images: data.train=FOLDER")
    if config.output is None:
        raise ConfigError(
            "output is not set, without which a job that is started again does not find its run: output=FOLDER"
        )
    if config.engine not in LAUNCHERS:
        raise ConfigError(f"engine={config.engine}: jobs are for {' and '.join(LAUNCHERS)}, whose launchers are known")
    job = Job(recipe, tuple(settings), config, nodes, cards)
    if job.device not in ("cpu", "cuda", "npu"):
        raise ConfigError(f"device={config.device} is not one of a cluster; set device=auto, or cpu, cuda, npu")
    if cards > 1 and ":" in config.device:
        raise ConfigError(f"device={config.device} is one card for {cards} processes; set device=auto")
    check_shares(config.train.batch_size, config.train.accumulate, job.processes, config.augment)
    return job


def shell_path(path: str) -> str:
    """A path as a word of a shell, which knows the home folder behind a `~` at its start."""
    home, slash, rest = path.partition("/")
    return f"{home}{slash}{shlex.quote(rest) if rest else ''}" if re.fullmatch(r"~\w*", home) else shlex.quote(path)


def _is_utf8(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True
