"""Models of the Hugging Face hub, to and from: hf://OWNER/NAME[@REVISION][/FILE or /FOLDER].

Through huggingface_hub, with its cache, token, endpoint and offline mode as its users know them: HF_HOME, HF_TOKEN,
HF_ENDPOINT, HF_HUB_OFFLINE. Of several processes on one machine, its file lock lets one download.
"""

from __future__ import annotations

import errno
import logging
import re
import sys
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote

from unmask.checkpoint.folder import CHECKSUMS, STATE, TENSOR_FILES
from unmask.errors import CheckpointError, ConfigError
from unmask.files import cause

if TYPE_CHECKING:
    from huggingface_hub import HfApi

log = logging.getLogger("unmask")

_PREFIX = re.compile(r"hf://(?:models/)?|hf[-_]hub:")
_REST = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>refs/[\w-]+/[\w.-]+|[^/@\s]+))?(?:/(?P<path>.*))?")
_OTHER_KINDS = ("datasets/", "spaces/", "buckets/", "kernels/")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
"""Of files that may hold weights, the first preferred: it is the one that cannot hold anything else."""
_NOT_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state.*)\.(bin|pth?)")
_NAMED = 8
"""How many files a message names."""
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)
_OF_NETWORK = ("http", "h11", "h2", "requests", "urllib3")
"""Packages through which huggingface_hub has spoken to servers, in its versions."""
LOGIN = "log in with `hf auth login` or set HF_TOKEN"


@dataclass(frozen=True)
class HubName:
    """A repository of models on the hub, or something in it."""

    repo: str
    """OWNER/NAME."""
    revision: str | None = None
    """A branch, a tag or a commit; None: the main branch."""
    path: str = ""
    """A file or a folder in it; "" is all of it."""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf://{self.repo}{revision}" + (f"/{self.path}" if self.path else "")


def is_hub_name(name: str) -> bool:
    """Whether it begins as a name of the hub, in the notation of the hub (hf://) or of timm (hf-hub:, hf_hub:)."""
    return _PREFIX.match(name) is not None


def parse(name: str) -> HubName:
    """Raises ConfigError for a name of another form."""
    prefix = _PREFIX.match(name)
    rest = name[prefix.end() :] if prefix else ""
    match = _REST.fullmatch(rest)
    path = PurePosixPath((match and match["path"]) or "")
    if match is None or rest.startswith(_OTHER_KINDS) or ".." in path.parts:
        raise ConfigError(f"{name} names no model of the hub; write hf://OWNER/NAME[@REVISION][/FILE]")
    revision = match["revision"]
    return HubName(match["repo"], revision and unquote(revision), "" if path == PurePosixPath() else str(path))


def download(name: str) -> Path:
    """The file or folder of that name in the cache of the hub, with all that reading it takes and nothing else.

    Where the hub cannot be reached, what the cache holds of the revision. Raises ConfigError for a name that is none
    or without huggingface_hub, CheckpointError for everything else that goes wrong.
    """
    place, api = parse(name), _api(name)
    from huggingface_hub import constants, hf_hub_download

    try:
        timeout = constants.HF_HUB_ETAG_TIMEOUT
        info = api.model_info(place.repo, revision=place.revision, files_metadata=True, timeout=timeout)
    except Exception as error:  # the versions of huggingface_hub have no base class in common
        return _from_cache(place, error)
    sizes = {file.rfilename: file.size for file in info.siblings or []}
    target, files = _wanted(place, sizes)
    folder = _snapshot(place)
    try:
        if folder is None or folder.name != info.sha or _not_whole(folder, files, sizes):
            # The first one by the revision asked for, which the cache then knows without the hub; all of one commit.
            first = hf_hub_download(place.repo, files[0], revision=place.revision)
            folder = Path(first).parents[files[0].count("/")]
            for file in files[1:]:
                hf_hub_download(place.repo, file, revision=folder.name)
            for file in _not_whole(folder, files, sizes):  # cut off by a crash: the cache itself looks at names only
                hf_hub_download(place.repo, file, revision=folder.name, force_download=True)
    except Exception as error:
        raise CheckpointError(f"{place} cannot be downloaded: {_reason(place, error)}") from error
    return folder / target


def pinned(name: str) -> str:
    """The name with the commit that was downloaded in place of the branch or tag; any other name as it is."""
    if not is_hub_name(name):
        return name
    place = parse(name)
    snapshot = _snapshot(place)
    return name if snapshot is None else str(HubName(place.repo, snapshot.name, place.path))


def check_upload(name: str, *, private: bool) -> frozenset[str] | None:
    """The files that a repository to be written to has; None where there is none yet.

    Raises ConfigError for a name that is none, without huggingface_hub, and for a public repository that was to be
    private; CheckpointError where the hub refuses or cannot be reached.
    """
    place = _repository(name)
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = _api(name).model_info(place.repo, revision=place.revision)
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{place} cannot be written: {_reason(place, error)}") from error
    except RepositoryNotFoundError:  # also one that a stranger may not see: creating it will tell
        if place.revision:
            raise ConfigError(f"{place} is to be created, with a main branch alone; write hf://{place.repo}") from None
        return None
    except Exception as error:
        raise CheckpointError(f"{place} cannot be written: {_reason(place, error)}") from error
    if private and not info.private:
        raise ConfigError(f"{place} is public already; make it private in its settings, or leave out --private")
    return frozenset(file.rfilename for file in info.siblings or [])


def upload(folder: Path, name: str, *, create: bool, private: bool, message: str) -> str:
    """Send all files of `folder` in one commit, to a repository that is to be created or there; returns the commit.

    What is in the repository under other names stays there. A file that the hub has is not sent again. Raises
    CheckpointError; what was sent by then belongs to no commit, and nobody sees it.
    """
    place, api = _repository(name), _api(name)
    from huggingface_hub import CommitOperationAdd

    files = sorted(path for path in folder.rglob("*") if path.is_file())
    left = ""
    try:
        if create:
            api.create_repo(place.repo, private=private or None, exist_ok=True)
            left = "; the repository was created and is empty, and the same command fills it"
        operations = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
        with _bars_on_terminals_alone():
            return api.create_commit(place.repo, operations, commit_message=message, revision=place.revision).oid
    except Exception as error:
        raise CheckpointError(f"{place} cannot be written: {_reason(place, error, write=True)}{left}") from error


@contextmanager
def _bars_on_terminals_alone() -> Generator[None]:
    """As huggingface_hub does by itself when it downloads, but not when it uploads."""
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    silence = not sys.stderr.isatty() and constants.HF_HUB_DISABLE_PROGRESS_BARS is None
    if silence:
        disable_progress_bars()
    try:
        yield
    finally:
        if silence:
            enable_progress_bars()


def _repository(name: str) -> HubName:
    place = parse(name)
    if place.path:
        raise ConfigError(f"{name} names a file; write to a repository: hf://{place.repo}")
    return place


def _api(name: str) -> HfApi:
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise ConfigError(f"{name} needs huggingface_hub: pip install 'unmask[hub]'") from None
    return HfApi(library_name="unmask")


def _wanted(place: HubName, files: Collection[str]) -> tuple[str, list[str]]:
    """What is read, a file or a folder ("" is the whole repository), and all files that it takes.

    Never two copies of the weights. Raises CheckpointError where there are none, or several that may be meant.
    """
    if place.path in files:
        return place.path, [place.path]
    folder = f"{place.path}/" if place.path else ""
    below = sorted(file.removeprefix(folder) for file in files if file.startswith(folder))
    here = [file for file in below if "/" not in file]
    if CHECKSUMS in here:  # a checkpoint of ours
        weights = TENSOR_FILES["ema" if TENSOR_FILES["ema"] in here else "weights"]
        parts = [CHECKSUMS, STATE, weights, TENSOR_FILES["buffers"]]
    elif weights := _with_config(here):
        parts = ["config.json", "preprocessor_config.json", *weights]
    else:
        found = [file for file in here if file.endswith(_SUFFIXES) and not _NOT_WEIGHTS.fullmatch(file)]
        preferred = [file for file in found if file.endswith(_SUFFIXES[0])] or found
        if len(preferred) == 1:
            return folder + preferred[0], [folder + preferred[0]]
        raise CheckpointError(_no_weights(place, preferred, below))
    return place.path, [folder + file for file in parts if file in here]


def _with_config(here: Collection[str]) -> list[str]:
    """Names of the weights beside config.json, where transformers and timm look for them."""
    if "config.json" not in here:
        return []
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        whole, index = stem + suffix, f"{stem}{suffix}.index.json"
        if whole in here:
            return [whole]
        if index in here:
            shard = re.compile(rf"{stem}-\d+-of-\d+{re.escape(suffix)}")
            return [index, *(file for file in here if shard.fullmatch(file))]
    return []


def _no_weights(place: HubName, found: list[str], below: list[str]) -> str:
    if found:
        return f"{place} holds several files of weights; name one of them, such as {_inside(place, found)}"
    if place.path and not below:
        return f"{place}: there is no such file or folder in {HubName(place.repo, place.revision)}"
    deeper = [file for file in below if file.endswith((*_SUFFIXES, CHECKSUMS)) and "/" in file]
    folders = {str(PurePosixPath(file).parent) for file in deeper if file.endswith(CHECKSUMS)}
    if deeper := sorted(folders | {file for file in deeper if str(PurePosixPath(file).parent) not in folders}):
        return f"{place} holds weights in its folders; name one of them, such as {_inside(place, deeper)}"
    holds = f"it holds {', '.join(below[:_NAMED])}{' …' if len(below) > _NAMED else ''}" if below else "it is empty"
    return f"{place} holds no weights that can be read ({', '.join(_SUFFIXES)}); {holds}"


def _inside(place: HubName, names: list[str]) -> str:
    full = [str(HubName(place.repo, place.revision, str(PurePosixPath(place.path) / name))) for name in names]
    return ", ".join(full[:_NAMED]) + (" …" if len(full) > _NAMED else "")


def _not_whole(folder: Path, files: list[str], sizes: Mapping[str, int | None]) -> list[str]:
    """Files that are missing in the cache, or of another size than on the hub."""
    here = {file: (folder / file).stat().st_size for file in files if (folder / file).is_file()}
    return [file for file in files if file not in here or sizes[file] not in (None, here[file])]


def _from_cache(place: HubName, error: Exception) -> Path:
    """What the cache holds, when the hub does not answer; `error` is why. Raises CheckpointError."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    reason = _reason(place, error)
    if _is_final(error):
        raise CheckpointError(f"{place} cannot be read: {reason}") from error
    if (folder := _snapshot(place)) is None:
        raise CheckpointError(f"{place} cannot be read: {reason}, and it is not in the cache") from error
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    try:
        target, _ = _wanted(place, files)
    except CheckpointError as incomplete:
        raise CheckpointError(
            f"{place} cannot be read: {reason}, and the cache has not all of it: {incomplete}"
        ) from error
    if not isinstance(error, OfflineModeIsEnabled):
        log.warning("%s: %s; reading the copy in the cache, of commit %s", place, reason, folder.name)
    return folder / target


def _snapshot(place: HubName) -> Path | None:
    """The folder of the cache with what was downloaded of a revision; None where nothing was."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    repository = Path(constants.HF_HUB_CACHE).expanduser() / repo_folder_name(repo_id=place.repo, repo_type="model")
    revision = place.revision or constants.DEFAULT_REVISION
    reference = repository / "refs" / revision
    try:
        commit = reference.read_text().strip() if reference.is_file() else revision
    except OSError:
        return None
    snapshot = repository / "snapshots" / commit
    return snapshot if _COMMIT.fullmatch(commit) and snapshot.is_dir() else None


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _is_final(error: Exception) -> bool:
    """Whether the hub has answered, so that the cache must not."""
    from huggingface_hub.errors import HFValidationError

    status = _status(error)
    return isinstance(error, HFValidationError) or (
        status is not None and 400 <= status < 500 and status not in (408, 429)
    )


def _reason(place: HubName, error: Exception, *, write: bool = False) -> str:
    """Why, and what to do, in one line."""
    from huggingface_hub import constants, errors

    while isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # why the file had to be in the cache
    endpoint, status = constants.ENDPOINT, _status(error)
    if isinstance(error, errors.GatedRepoError):
        return f"its owner asks to accept terms first: {endpoint}/{place.repo}; then {LOGIN}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{endpoint} has no such model, or it is private: {LOGIN}" if not write else f"{LOGIN} ({status})"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{place.repo} has no revision {place.revision or constants.DEFAULT_REVISION}"
    if isinstance(error, errors.LocalTokenNotFoundError) or status == 401:
        return f"{endpoint} does not know you: {LOGIN}"
    if status == 403:
        return f"your token may not {'write' if write else 'read'} it; {LOGIN}, with one that may"
    if status is not None:
        said = getattr(error, "server_message", None)
        return f"{endpoint} answered {status}" + (f": {' '.join(said.split())}" if said else "")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, errors.HFValidationError):
        return cause(error)
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
        return f"{cause(error)}: {constants.HF_HUB_CACHE} (HF_HOME=FOLDER puts the cache elsewhere)"
    what = f"{type(error).__name__}: {cause(error)}"
    of_network = isinstance(error, OSError) or type(error).__module__.startswith(_OF_NETWORK)
    return f"the connection to {endpoint} failed ({what})" if of_network else what
