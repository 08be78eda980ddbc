"""A run that is kept in an object store: it works in a folder here, what it writes is sent there, and comes back here.

What is in the store has the layout of a run folder, so a copy of it is a run. Of a checkpoint, checksums.json goes
last: one that has it there is whole. What was sent is never changed, but for the logs, which go before the checkpoint
they belong to; a run that goes on cuts them to its step.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock

from unmask.checkpoint.folder import CHECKSUMS, TENSOR_FILES, folder_step, verify
from unmask.data.sources import remote
from unmask.data.sources.table import cache_folder
from unmask.errors import CheckpointError, ConfigError, DataError
from unmask.files import ASIDE, cause

log = logging.getLogger("unmask")

_CHECKPOINTS = "checkpoints"


def folder_here(url: str) -> Path:
    """Where a run kept at `url` works: runs/<of the URL>/<its last part>. Raises ConfigError."""
    name = url.rstrip("/").rpartition("/")[2]
    if url.startswith("hf://") or not name or name == url.partition("://")[2].rstrip("/"):
        raise ConfigError(f"output={url}: give a folder of an object store, such as s3://BUCKET/PATH")
    return Path("runs") / _key(url) / name


class Mirror:
    """The run in `folder` and its copy at `url`, kept alike by the one process that writes the run."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url.rstrip("/")
        self._sent: dict[str, tuple[int, int]] = {}
        """Size and time of change of each file when it was sent, by its address."""

    def begin(self, *, writes: bool) -> None:
        """Bring what is there. Raises as `bring`; where this process `writes`, also when the store is read-only."""
        bring(self.folder, self.url)
        if not writes:
            return
        with TemporaryDirectory() as empty:
            (Path(empty) / "empty").write_bytes(b"")
            remote.send(Path(empty) / "empty", f"{self.url}/.writable")
        remote.remove(f"{self.url}/.writable")

    def send(self) -> None:
        """Send what is new. A failure is said, and the next call sends it again: the run goes on, whole, here."""
        try:
            self._send()
        except (DataError, OSError) as error:
            reason = error if isinstance(error, DataError) else cause(error)
            log.warning("not sent to %s: %s; the next checkpoint sends it again", self.url, reason)

    def finish(self) -> None:
        """Send what is new. Raises CheckpointError when it cannot be sent; all of it is in the folder here."""
        try:
            self._send()
        except (DataError, OSError) as error:
            reason = error if isinstance(error, DataError) else cause(error)
            raise CheckpointError(f"{reason}. The run is whole in {self.folder}; the same command sends it") from error

    def _send(self) -> None:
        files = sorted(path for path in self.folder.rglob("*") if path.is_file() and not _unfinished(path, self.folder))
        here = {path.relative_to(self.folder).as_posix(): path for path in files}
        for name, path in here.items():
            if not name.startswith(f"{_CHECKPOINTS}/"):
                self._send_file(path, f"{self.url}/{name}")
        for beside in sorted(self.folder.parent.glob(f"{self.folder.name}-*.ckpt")):
            self._send_file(beside, f"{self._parent}/{beside.name}")
        there = _committed(self.url)
        steps = {name.split("/")[1] for name in here if name.startswith(f"{_CHECKPOINTS}/") and name.count("/") == 2}
        for step in sorted(steps - there):
            parts = [path for name, path in here.items() if name.startswith(f"{_CHECKPOINTS}/{step}/")]
            for path in sorted(parts, key=lambda path: path.name == CHECKSUMS):  # the seal goes last
                remote.send(path, f"{self.url}/{_CHECKPOINTS}/{step}/{path.name}")
        for step in sorted(there - steps):
            remote.remove(
                f"{self.url}/{_CHECKPOINTS}/{step}/{CHECKSUMS}"
            )  # first: half a checkpoint must not look whole
            remote.remove(f"{self.url}/{_CHECKPOINTS}/{step}")
        for address in [address for address in self._sent if not self._is_here(address)]:
            remote.remove(address)
            del self._sent[address]

    @property
    def _parent(self) -> str:
        return self.url.rpartition("/")[0]

    def _is_here(self, address: str) -> bool:
        inside = address.startswith(f"{self.url}/")
        root = self.folder if inside else self.folder.parent
        return (root / address.removeprefix(f"{self.url if inside else self._parent}/")).exists()

    def _send_file(self, path: Path, address: str) -> None:
        state = path.stat()
        version = state.st_size, state.st_mtime_ns
        if self._sent.get(address) != version:
            remote.send(path, address)
            self._sent[address] = version


def bring(folder: Path, url: str, *, leave_out: Collection[str] = ()) -> None:
    """Bring the run at `url`, if there is one, to `folder`; where that has a later checkpoint, nothing is brought.

    Each process of a machine may call this: one brings, the others wait. `leave_out` names files of checkpoints that
    are not needed. Raises DataError when the store cannot be read, CheckpointError when the folder cannot be written.
    """
    url = url.rstrip("/")
    try:
        with _locked(folder):
            there = _committed(url)
            here = {path.name for path in (folder / _CHECKPOINTS).glob("step-*")}
            if not there or max(map(_step, there)) <= max(map(_step, here), default=-1):
                return
            for name, _ in remote.walk(url):
                if not name.startswith(f"{_CHECKPOINTS}/"):
                    _fetch(f"{url}/{name}", folder / name)
            for step in sorted(there - here):
                _bring_checkpoint(f"{url}/{_CHECKPOINTS}/{step}", folder / _CHECKPOINTS / step, leave_out)
    except OSError as error:
        raise CheckpointError(f"cannot write {folder}, where {url} is brought to: {cause(error)}") from error


def brought_model(url: str) -> Path:
    """Where in the cache the model at `url`, a run or a single file, was brought to.

    Raises DataError when the store cannot be read, CheckpointError when there is no run.
    """
    name = url.rstrip("/").rpartition("/")[2]
    if Path(name).suffix in (".pth", ".pt", ".ckpt", ".safetensors", ".bin", ".tar"):
        _, version = remote.state(url)
        path = cache_folder() / "models" / _key(f"{url} {version}") / name
        with _locked(path):
            if not path.exists():
                _fetch(url, path)
        return path
    folder = cache_folder() / "models" / _key(url) / name
    bring(folder, url, leave_out=[TENSOR_FILES["optimizer"]])
    if not (folder / _CHECKPOINTS).is_dir():
        raise CheckpointError(f"{url} holds no run: there is no whole checkpoint in {url}/{_CHECKPOINTS}")
    return folder


def _locked(path: Path) -> FileLock:
    """Held by the one process of this machine that brings `path`, beside which a failed start leaves nothing."""
    locks = cache_folder() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    return FileLock(locks / _key(str(path.absolute())))


def _bring_checkpoint(url: str, folder: Path, leave_out: Collection[str]) -> None:
    unfinished = folder.with_name(f"{ASIDE}{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    names = [name for name, _, is_folder in remote.listing(url) if not is_folder and name not in leave_out]
    for name in names:
        _fetch(f"{url}/{name}", unfinished / name)
    try:
        verify(unfinished, only=names)
    except CheckpointError as error:
        log.warning("%s is damaged and not taken: %s", url, error)
        shutil.rmtree(unfinished)
        return
    unfinished.replace(folder)


def _fetch(url: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{ASIDE}{path.name}")
    remote.fetch(url, unfinished)
    unfinished.replace(path)


def _committed(url: str) -> set[str]:
    """Names of the folders of the checkpoints that are whole in the store."""
    if not remote.exists(f"{url}/{_CHECKPOINTS}"):
        return set()
    found = {name for name, _, is_folder in remote.listing(f"{url}/{_CHECKPOINTS}") if is_folder}
    steps = {name for name in found if folder_step(Path(name)) is not None}
    return {name for name in steps if remote.exists(f"{url}/{_CHECKPOINTS}/{name}/{CHECKSUMS}")}


def _unfinished(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _step(name: str) -> int:
    step = folder_step(Path(name))
    return -1 if step is None else step


def _key(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]
