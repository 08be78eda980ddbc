"""Files behind URLs, through fsspec: requests are repeated when the network fails, and what is read can be cached.

Credentials and endpoints are given as to the store's own tools: for `s3://`, the AWS environment variables and
files, AWS_ENDPOINT_URL for stores that are not Amazon's (`obs://`, MinIO, Ceph …); for anything else fsspec knows,
FSSPEC_<PROTOCOL>_<OPTION>, such as FSSPEC_S3_ANON=true for public buckets.

What comes is bounded, whatever the server does: in bytes by what was asked for, and in time by a slowest rate.

UNMASK_REMOTE_CACHE_GB=20 keeps up to 20 GB of what was read below UNMASK_CACHE, the least recently used going first.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from unmask.data.sources.base import printable
from unmask.data.sources.table import cache_folder
from unmask.errors import DataError, StorageError
from unmask.files import written_aside

T = TypeVar("T")

ATTEMPTS = 5
FIRST_WAIT = 0.5
"""Seconds; doubles with each attempt."""
_CONNECT_SECONDS = 10
_SILENT_SECONDS = 30
"""A connection that is silent for this many seconds has failed."""
_SLOWEST = 4096
"""Bytes a second; what comes slower than this, after as many seconds, has failed too."""
_MOST_BYTES = 2**30
"""Of a file that is read whole without being asked for its size: a list, an image."""
_PIECE = 2**18
"""Bytes of an answer looked at at a time."""
_RANGE, _RANGES = 2**24, 4
"""Bytes of a copy that are asked for at a time, and how many times at once."""
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "hf": "huggingface_hub"}
_VERSION_KEYS = ("ETag", "etag", "LastModified", "last_modified", "mtime", "generation", "md5Hash", "blob_id")
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_DRAWERS = 256
"""Folders of the cache; each is kept below its share of the limit, so that none needs to know the others."""


def state(url: str) -> tuple[int, str]:
    """Size in bytes, and what changes when the file does."""
    info: dict[str, Any] = _attempt(url, lambda fs, path: fs.info(path, **_within(fs)))
    if info.get("type") == "directory":
        raise DataError(f"{printable(url)} is a folder, not a file")
    if info.get("mimetype") == "text/html":
        raise DataError(
            f"{printable(url)} is a web page, not the file; name the file itself, or log in where it is kept"
        )
    if info.get("size") is None:
        raise DataError(f"{printable(url)}: the server does not say how large the file is; use one that does")
    return int(info["size"]), " ".join(str(info[key]) for key in _VERSION_KEYS if info.get(key))


def exists(url: str) -> bool:
    def look(fs: Any, path: str) -> bool:
        if "http" not in fs.protocol:
            return bool(fs.exists(path, **_within(fs)))
        try:  # its own `exists` takes a server that is out of order for one that has nothing
            info: dict[str, Any] = fs.info(path, **_within(fs))
        except Exception as raised:
            error = _cause(raised)
            if isinstance(error, FileNotFoundError) or (400 <= getattr(error, "status", 0) < 500 and _final(error)):
                return False
            raise
        return info.get("mimetype") != "text/html"  # what some servers have for all that is not there

    return _attempt(url, look)


def listing(url: str) -> Iterator[tuple[str, int, bool]]:
    """Name, size (0 where the store does not tell) and whether it is a folder, of everything directly in a folder."""
    entries: list[dict[str, Any]] = _attempt(
        url, lambda fs, path: fs.ls(path.rstrip("/") + "/", detail=True, **_within(fs, _MOST_BYTES))
    )
    folder = url.rstrip("/").partition("://")[2]
    for entry in entries:
        path = entry["name"].rstrip("/").rpartition("://")[2]
        name = path.rpartition("/")[2]
        if path != folder and not name.startswith((".", "?")):  # a store may list the folder itself
            yield name, int(entry.get("size") or 0), entry["type"] == "directory" or entry["name"].endswith("/")


def walk(url: str, below: str = "") -> Iterator[tuple[str, int]]:
    """Path below `url`, and size, of every file in a folder and the folders in it; hidden names are left out."""
    for name, size, is_folder in listing(f"{url.rstrip('/')}/{below}"):
        if is_folder:
            yield from walk(url, f"{below}{name}/")
        else:
            yield f"{below}{name}", size


def read(url: str, start: int, length: int | None, version: str) -> bytes:
    """Exactly `length` bytes from `start`, or the whole file."""
    kept = _kept(url, start, length, version)
    if kept is not None and (data := _from_cache(kept)) is not None and len(data) == length:
        return data

    def fetch(fs: Any, path: str) -> bytes:
        within = _within(fs, _MOST_BYTES if length is None else length)
        if "s3" in fs.protocol:
            from fsspec.asyn import sync

            data = cast(bytes, sync(fs.loop, _s3_body, fs, path, start, length, **within))
        elif length is None:
            data = cast(bytes, fs.cat_file(path, **within))
        else:
            # The hub's file system reads 5 MB ahead unless told otherwise.
            options = {"cache_type": "none"} if url.startswith("hf://") else {}
            data = cast(bytes, fs.cat_file(path, start=start, end=start + length, **options, **within))
        if length is not None and len(data) < length:
            raise OSError(f"{len(data)} of {length} bytes came")
        if length is not None and len(data) > length:
            raise ValueError("the server does not read ranges; use one that does, or download the file")
        return data

    data = b"" if length == 0 else _attempt(url, fetch)
    if kept is not None:
        _into_cache(kept, data)
    return data


async def _s3_body(fs: Any, path: str, start: int, length: int | None) -> bytes:
    """What s3fs would read at once, piece by piece, so that what is longer than it should be ends."""
    bucket, key, version = fs.split_path(path)
    of_version = {"VersionId": version} if version else {}
    ranged = {} if length is None else {"Range": f"bytes={start}-{start + length - 1}"}
    answer: dict[str, Any] = await fs._call_s3("get_object", Bucket=bucket, Key=key, **of_version, **ranged)
    body, told, begun, data = answer["Body"], answer.get("ContentLength"), time.monotonic(), bytearray()
    most = min(_MOST_BYTES if length is None else length, _MOST_BYTES if told is None else told)
    try:
        while piece := await body.read(_PIECE):
            data += piece
            _check_pace(len(data), most, begun)
    finally:
        body.close()
    return bytes(data)


async def _s3_copy(fs: Any, there: str, path: Path, size: int) -> None:
    """In ranges, some at a time. Of a range that s3fs copies it would take all that comes."""
    starts = iter(range(0, size, _RANGE))
    with path.open("wb") as file:

        async def take() -> None:
            for start in starts:
                data = await _s3_body(fs, there, start, min(_RANGE, size - start))
                file.seek(start)
                file.write(data)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(_RANGES):
                    group.create_task(take())
        except BaseExceptionGroup as failed:  # one is enough, and tells what the others do
            raise failed.exceptions[0] from None


def fetch(url: str, path: Path) -> None:
    """The file at `url`, of any size, as `path`. Raises DataError; OSError when `path` cannot be written."""
    path.write_bytes(b"")

    def copy(fs: Any, there: str) -> None:
        size = fs.info(there, **_within(fs))["size"]
        if "s3" in fs.protocol:
            from fsspec.asyn import sync

            sync(fs.loop, _s3_copy, fs, there, path, size, **_within(fs, size))
        else:
            fs.get_file(there, str(path), callback=_pace(size))
        if (found := path.stat().st_size) != size:
            raise ConnectionError(f"{found} of {size} bytes came")

    _attempt(url, copy)


def send(path: Path, url: str) -> None:
    """A file, of any size, to `url`; it may grow meanwhile. Raises DataError; OSError when `path` cannot be read."""
    size = path.stat().st_size

    def copy(fs: Any, there: str) -> None:
        fs.put_file(str(path), there)
        if (found := fs.info(there)["size"]) < size:
            with suppress(Exception):  # half a file must not look like one
                fs.rm_file(there)
            raise ConnectionError(f"{found} of {size} bytes came")

    _attempt(url, copy, "written")


@contextmanager
def written(url: str, aside: Path | None = None) -> Generator[Path]:
    """A file here to write to, which is sent to `url` at the end and removed; nothing is sent after an error.

    `aside`: where, for those who may write the same file at the same time.
    """
    aside = aside or staging(url)
    try:
        aside.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        send(aside, url)
    except OSError as error:
        raise DataError(f"cannot write {aside}, which is to become {printable(url)}: {error.strerror}") from None
    finally:
        with suppress(OSError):
            aside.unlink()


def staging(url: str) -> Path:
    """Where in the cache files on their way to `url` are kept until they have been sent."""
    return cache_folder() / "upload" / hashlib.sha256(url.encode("utf-8", "surrogateescape")).hexdigest()


def remove(url: str) -> None:
    """A folder and all in it, if it is there."""
    _attempt(url, lambda fs, path: fs.rm(path, recursive=True) if fs.exists(path) else None, "removed")


def _attempt(url: str, act: Callable[[Any, str], T], done: str = "read") -> T:
    """What `act` returns for the file system and path of `url`; repeated with growing pauses while it fails.

    `done` completes the message "URL cannot be …".
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return act(*_open(url))
        except DataError:
            raise
        except Exception as raised:  # the stores' libraries share no base class
            error = _cause(raised)
            if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
                raise error from None  # what cannot be written here is no failure of the store
            if _final(error):
                raise StorageError(f"{printable(url)} cannot be {done}: {_reason(error)}") from None
            if attempt == ATTEMPTS:
                raise StorageError(
                    f"{printable(url)} cannot be {done}, {ATTEMPTS} attempts: {_reason(error)}"
                ) from None
        time.sleep(FIRST_WAIT * 2 ** (attempt - 1) * (1 + secrets.randbelow(100) / 100))  # not all at the same time
    raise AssertionError


def _open(url: str) -> tuple[Any, str]:
    protocol = url.partition("://")[0]
    if protocol == "obs":
        if not os.environ.get("AWS_ENDPOINT_URL"):
            raise DataError(
                f"{printable(url)} is read by the S3 protocol, which needs AWS_ENDPOINT_URL, such as "
                "https://obs.cn-north-4.myhuaweicloud.com"
            )
        protocol, url = "s3", f"s3{url.removeprefix('obs')}"
    try:
        from fsspec.core import url_to_fs

        # A listing kept from an earlier call would hide changes.
        return url_to_fs(url, use_listings_cache=False, **_options(protocol))
    except ImportError:
        package = _PACKAGES.get(protocol, f"fsspec's package for {protocol}")
        remote = package == "s3fs" or protocol.startswith("http")
        extra = " (pip install unmask[remote])" if remote else " (pip install unmask[hub])" if protocol == "hf" else ""
        needed = "fsspec and aiohttp" if protocol.startswith("http") else package
        raise DataError(f"{printable(url)} needs {needed}{extra}") from None


def _options(protocol: str) -> dict[str, Any]:
    """Settings with which attempts are counted here, not also in the layers below, and a silent connection ends."""
    if protocol in ("s3", "s3a"):
        times = {"connect_timeout": _CONNECT_SECONDS, "read_timeout": _SILENT_SECONDS}
        return {"config_kwargs": {"retries": {"total_max_attempts": 1}, **times}}
    if protocol in ("http", "https"):
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENT_SECONDS)
        client = {"timeout": timeout, "trust_env": True}  # HTTP_PROXY, NO_PROXY, .netrc
        return {"client_kwargs": {**client, "response_class": _bounded_response()}}
    return {}


def _within(fs: Any, size: int = 0) -> dict[str, float]:
    """The longest that a file system of many requests at once may take for `size` bytes: its option `timeout`."""
    return {"timeout": 2 * _SILENT_SECONDS + size / _SLOWEST} if fs.async_impl else {}


def _check_pace(came: int, expected: int | None, begun: float) -> None:
    """Raise OSError where more came than was expected, or less than in this time from a connection that works."""
    if expected is not None and came > expected:
        raise ConnectionError(f"more than the {expected} bytes that were expected came")
    if (seconds := time.monotonic() - begun) > _SILENT_SECONDS and came < (seconds - _SILENT_SECONDS) * _SLOWEST:
        raise ConnectionError(f"only {came} bytes came in {seconds:.0f} s")


def _pace(size: int | None) -> Any:
    """Watches a file being copied here."""
    from fsspec.callbacks import Callback

    begun = time.monotonic()

    class Pace(Callback):
        def call(self, hook_name: str | None = None, **kwargs: Any) -> None:
            _check_pace(self.value, size, begun)

    return Pace()


@cache
def _bounded_response() -> type:
    """aiohttp's response, which reads no more than was asked for, nor for ever."""
    from aiohttp import ClientResponse

    class Response(ClientResponse):
        def raise_for_status(self) -> None:
            super().raise_for_status()
            if self.status not in (200, 206):  # a redirection to nowhere, or nothing
                raise ValueError(f"the server answers {self.status} {self.reason}, and no file")

        async def read(self) -> bytes:
            if self._body is None:  # what a page says about an error is not looked at
                self._body = b"" if self.status >= 400 else await self._bounded()
            return self._body

        async def _bounded(self) -> bytes:
            asked = self.request_info.headers.get("Range", "")
            first, _, last = asked.removeprefix("bytes=").partition("-")
            most = int(last) - int(first) + 1 if first and last else _MOST_BYTES
            told = self.headers.get("Content-Length", "")
            chunked = "chunked" in self.headers.get("Transfer-Encoding", "").lower()
            if not (asked or told or chunked):
                raise ValueError("the server does not say how large the file is; use one that does")
            if asked and self.status != 206 and told.isdecimal() and int(told) > most:
                raise ValueError("the server does not read ranges; use one that does, or download the file")
            given = self.headers.get("Content-Range", "")
            if asked and self.status == 206 and given and not given.startswith(f"bytes {first}-"):
                raise OSError(f"{printable(given)} came in place of {asked}")
            body, begun = bytearray(), time.monotonic()
            try:
                async for chunk in self.content.iter_any():
                    body += chunk
                    _check_pace(len(body), most, begun)
            except BaseException:
                self.close()
                raise
            return bytes(body)

    return Response


def _cause(error: Exception) -> Exception:
    """fsspec reports a web server that does not answer as a missing file."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and isinstance(cause, Exception):
        return cause if type(cause).__module__.startswith("aiohttp") or type(cause) is ValueError else error
    return error


def _final(error: Exception) -> bool:
    """Whether another attempt would end the same way."""
    status = getattr(error, "status", None)
    if _in_a_circle(error):
        return True
    if isinstance(status, int):
        return (400 <= status < 500 and status not in (408, 429)) or status in (501, 505, 511)
    if type(error).__name__.startswith("NonHttpUrl"):
        return True
    lasting = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError, TypeError)
    return isinstance(error, lasting) or "Credentials" in type(error).__name__


def _in_a_circle(error: Exception) -> bool:
    return type(error).__name__ == "TooManyRedirects"


def _reason(error: Exception) -> str:
    if _in_a_circle(error):
        return "the server sends whoever asks from one address to the next without end"
    if isinstance(error, FileNotFoundError):
        return "no such file or folder"
    if isinstance(error, TimeoutError) and not str(error):
        return "it did not end in time"
    if type(error) is ValueError:  # our own
        return str(error)
    return printable(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)


def _limit() -> int:
    """Bytes that one drawer of the cache may hold; 0 without a cache."""
    value = os.environ.get("UNMASK_REMOTE_CACHE_GB") or "0"
    try:
        return int(float(value) * 1e9) // _DRAWERS
    except (ValueError, OverflowError):
        raise DataError(f"UNMASK_REMOTE_CACHE_GB={value} is not a number of gigabytes") from None


def _kept(url: str, start: int, length: int | None, version: str) -> Path | None:
    """File of the cache for this part; None where it is not to be kept."""
    if length is None or not 0 < length <= _limit():
        return None
    key = hashlib.sha256(f"{url}\n{start}\n{length}\n{version}".encode("utf-8", "surrogateescape")).hexdigest()
    return cache_folder() / "remote" / key[:2] / key[2:]


def _from_cache(path: Path) -> bytes | None:
    try:
        data = path.read_bytes()
        os.utime(path)  # what was used last goes last
    except OSError:
        return None
    return data


def _into_cache(path: Path, data: bytes) -> None:
    """A cache that cannot be written costs speed, nothing else."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.scandir(path.parent) as entries:
            files = sorted((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path) for entry in entries)
        excess = sum(size for _, size, _ in files) + len(data) - _limit()
        for _, size, old in files:
            if excess <= 0:
                break
            Path(old).unlink(missing_ok=True)
            excess -= size
        with written_aside(path, cache=True) as aside:
            aside.write_bytes(data)
