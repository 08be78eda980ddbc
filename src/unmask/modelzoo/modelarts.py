"""Huawei Cloud's ModelArts, as the model zoo used it: data and results in an object store, processes that it started.

docs/modelarts.md lists what is assumed of the platform, on which this was not run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from unmask.config.schema import Config
from unmask.data.sources import remote
from unmask.data.sources.files import is_remote
from unmask.errors import ConfigError, DataError
from unmask.files import cause, written_aside
from unmask.modelzoo.rank_table import read_rank_table

MARKER = ".brought.json"
"""In a folder that was brought from a URL, written last: that URL."""
PORT = "29500"
_LAUNCHERS = {"TORCHELASTIC_RUN_ID", "MS_ROLE"}
_AT_ONCE = 16


@dataclass(frozen=True)
class Places:
    """What is brought before the run, and where the run works. None: nothing, or as without the platform."""

    data_url: str | None
    checkpoint_url: str | None
    load_path: str | None
    folder: str | None

    def bring(self, config: Config) -> Config:
        """Bring data and checkpoint; returns the config with tars in the place of folders where such were brought.

        Each process of a machine calls this: one brings, the others wait. Raises DataError.
        """
        data = config.data
        if self.data_url is not None and data.train is not None:
            bring(self.data_url, _place_of(self.data_url, Path(data.train.partition("#")[0])))
            paths = {"train": _opened(data.train), "val": data.val and _opened(data.val)}
            config = config.model_copy(update={"data": data.model_copy(update=paths)})
        if self.checkpoint_url is not None and self.load_path is not None:
            bring(self.checkpoint_url, Path(self.load_path))
        return config


def bring(url: str, folder: Path) -> None:
    """Copy all below `url` to `folder`, once a machine; what is there in the same size stays. Raises DataError."""
    marker = folder / MARKER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if marker.exists() and json.loads(marker.read_text(encoding="utf-8")) == url:
                return
            files = list(remote.walk(url))
            if not files:
                raise DataError(f"{url} holds nothing to bring to {folder}")

            def fetch(file: tuple[str, int]) -> None:
                name, size = file
                path = folder / name
                if path.exists() and path.stat().st_size == size:
                    return
                path.parent.mkdir(parents=True, exist_ok=True)
                with written_aside(path, cache=True) as aside:
                    remote.fetch(f"{url.rstrip('/')}/{name}", aside)

            with ThreadPoolExecutor(_AT_ONCE) as pool:
                list(pool.map(fetch, files))
            marker.write_text(json.dumps(url), encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write {folder}, where {url} is brought to: {cause(error)}") from error


def _place_of(url: str, images: Path) -> Path:
    """Where what is at `url` belongs so that `images` are in their place: there, or above, if it holds such a name."""
    if not is_remote(url):
        raise ConfigError(f"data_url={url} is no URL, such as obs://BUCKET/PATH")
    if images.suffix == ".json":  # img_ids
        return images.parent
    names = {name.removesuffix(".tar") for name, _, _ in remote.listing(url)}
    return images.parent if images.name in names else images


def _opened(path: str) -> str:
    """`path`, or the tars that were brought in its place, which are read without being unpacked."""
    folder = Path(path)
    if path.partition("#")[1] or is_remote(path):
        return path
    if not folder.exists() and folder.with_name(f"{folder.name}.tar").exists():
        return f"{path.rstrip('/')}.tar"
    if folder.is_dir():
        names = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]
        if names and all(name.endswith(".tar") for name in names):
            return f"{path.rstrip('/')}/*.tar"
    return path


def join(env: Mapping[str, str], *, on_modelarts: bool, engine: str) -> dict[str, str]:
    """What torchrun would have set, from what a rank table or ModelArts says of a process for each card or machine.

    Empty where a launcher started the process, and where it is alone. Raises ConfigError when what is set cannot be.
    """
    if env.keys() & _LAUNCHERS:
        return {}
    if env.get("RANK_TABLE_FILE") and env.get("RANK_ID"):
        return _by_rank_table(env)
    machines, index = _machine(env) if on_modelarts else (1, 0)
    if machines > 1:
        if engine == "mindspore":
            raise ConfigError(f"{machines} machines: MindSpore needs RANK_TABLE_FILE to join them; or --engine torch")
        return _variables(env, rank=index, world=machines, local=0, first=_first_host(env))
    if int(env.get("RANK_SIZE") or env.get("WORLD_SIZE") or 1) > 1 and not env.get("MASTER_ADDR"):
        name = "RANK_SIZE" if env.get("RANK_SIZE") else "WORLD_SIZE"
        raise ConfigError(
            f"{name}={env[name]} is set, but neither torchrun, msrun nor a rank table says where the others are; "
            f"unset {name}, or set use_parallel False"
        )
    return {}


def torchrun(env: Mapping[str, str], arguments: Sequence[str]) -> list[str] | None:
    """The command that works on all cards of a machine of which ModelArts started one process; None with one card.

    `arguments` are those of unmask. Raises ConfigError as `join`.
    """
    cards = _number(env, "MA_NUM_GPUS") or 1
    if cards == 1 or env.keys() & (_LAUNCHERS | {"RANK_TABLE_FILE"}):
        return None
    machines, index = _machine(env)
    where = ["--standalone"]
    if machines > 1:
        where = [f"--nnodes={machines}", f"--node_rank={index}", f"--master_addr={_first_host(env)}"]
        where.append(f"--master_port={env.get('MASTER_PORT') or PORT}")
    launcher = [sys.executable, "-m", "torch.distributed.run", *where, f"--nproc_per_node={cards}"]
    return [*launcher, "-m", "unmask", *arguments]


def _machine(env: Mapping[str, str]) -> tuple[int, int]:
    """How many machines there are, and which this is."""
    machines = _number(env, "VC_WORKER_NUM", "MA_NUM_HOSTS", "DLS_TASK_NUMBER") or 1
    index = _number(env, "VC_TASK_INDEX", "DLS_TASK_INDEX") or 0
    if index >= machines:
        raise ConfigError(f"VC_TASK_INDEX={index}, but VC_WORKER_NUM says that there are {machines} machines")
    return machines, index


def _by_rank_table(env: Mapping[str, str]) -> dict[str, str]:
    servers = read_rank_table(env["RANK_TABLE_FILE"])
    devices = [device for server in servers for device in server.devices]
    rank, world = _number(env, "RANK_ID"), _number(env, "RANK_SIZE") or len(devices)
    if rank is None or rank >= world or world != len(devices):
        raise ConfigError(
            f"RANK_ID={env['RANK_ID']} of RANK_SIZE={world} does not go with the {len(devices)} devices of "
            f"RANK_TABLE_FILE={env['RANK_TABLE_FILE']}"
        )
    local = _number(env, "ASCEND_DEVICE_ID", "DEVICE_ID")
    first = servers[0].address if len(servers) > 1 else "127.0.0.1"
    return _variables(env, rank=rank, world=world, local=int(devices[rank]) if local is None else local, first=first)


def _variables(env: Mapping[str, str], *, rank: int, world: int, local: int, first: str) -> dict[str, str]:
    port = env.get("MASTER_PORT") or PORT
    values = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": local, "MASTER_ADDR": first, "MASTER_PORT": port}
    return {name: str(value) for name, value in values.items()}


def _first_host(env: Mapping[str, str]) -> str:
    """Of VC_WORKER_HOSTS, or of the older BATCH_CUSTOM0_HOSTS, which has a port with it."""
    hosts = env.get("VC_WORKER_HOSTS") or env.get("BATCH_CUSTOM0_HOSTS") or ""
    first = hosts.partition(",")[0].strip().partition(":")[0]
    if not first:
        raise ConfigError("several machines, but neither VC_WORKER_HOSTS nor BATCH_CUSTOM0_HOSTS names the first")
    return first


def _number(env: Mapping[str, str], *names: str) -> int | None:
    """The first of these that is set. Raises ConfigError for one that is no number."""
    for name in names:
        if value := env.get(name):
            if not value.isdecimal():
                raise ConfigError(f"{name}={value} is not a number")
            return int(value)
    return None
