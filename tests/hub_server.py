"""A server on loopback that speaks the protocol of the Hugging Face hub, for models and data sets.

What the clients are told is what it does: refuse strangers, break connections, count bytes. The clients are real.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

TOKEN = "hf_of_the_owner"
LARGE = 100_000
"""Bytes from which a file is kept outside of git, as the hub keeps large files."""


@dataclass
class Repo:
    """A repository: a folder of files for each commit, the newest at the end."""

    name: str
    """OWNER/NAME of a model, datasets/OWNER/NAME of a data set."""
    root: Path
    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.commit("first")

    @property
    def folder(self) -> Path:
        """The files of the main branch."""
        return self.root / self.branches["main"]

    def commit(self, message: str, branch: str = "main") -> Path:
        """A new commit of a branch with the files of the last one, to be changed."""
        before = self.branches.get(branch)
        sha = hashlib.sha1(f"{self.name} {len(self.messages)}".encode()).hexdigest()
        if before is None:
            (self.root / sha).mkdir(parents=True)
        else:
            shutil.copytree(self.root / before, self.root / sha)
        self.branches[branch] = sha
        self.messages.append(message)
        return self.root / sha

    def at(self, revision: str) -> str | None:
        """The commit of a branch or of itself."""
        sha = self.branches.get(revision, revision)
        return sha if sha and (self.root / sha).is_dir() else None


class Hub(http.server.ThreadingHTTPServer):
    """Serves repositories kept below `root`."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        """Large files by their SHA-256."""
        self.sent = 0
        """Bytes of files."""
        self.requests: list[str] = []
        """METHOD /path of each."""
        self.break_after: list[int] = []
        """For each of the next downloads of a large file, after how many bytes the connection breaks."""
        self.full = ""
        """What is answered with 507, insufficient storage, such as `PUT /large/`: the begin of METHOD /path."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def create(self, name: str, **options: Any) -> Repo:
        self.repos[name] = Repo(name, self.root / name, **options)
        return self.repos[name]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no fault."""


def connect(monkeypatch: pytest.MonkeyPatch, hub: Hub, cache: Path) -> None:
    """As if HF_ENDPOINT and HF_HUB_CACHE were set, which huggingface_hub reads once, when it is imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # another protocol, to other servers
    monkeypatch.setenv("HF_TOKEN", "")


def environment(hub: Hub, home: Path, **more: str) -> dict[str, str]:
    """What a user sets for a command."""
    return os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": "", **more}


@contextmanager
def serving(root: Path) -> Iterator[Hub]:
    root.mkdir(exist_ok=True)
    hub = Hub(root)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


class _RefusedError(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.headers = status, {"X-Error-Code": code, "X-Error-Message": message}


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path, query = url.path, parse_qs(url.query)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append(f"{self.command} {unquote(path)}")
        api, at = r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)", r"/(?P<revision>[^/]+)"
        routes = [
            (rf"GET {api}(/revision{at})?", self._info),
            (rf"GET {api}/tree{at}/?(?P<path>.*)", self._tree),
            (rf"POST {api}/paths-info{at}", self._paths),
            (rf"POST {api}/preupload{at}", self._preupload),
            (rf"POST {api}/commit{at}", self._commit),
            (rf"(GET|HEAD) /(?P<kind>datasets/)?(?P<name>[^/]+/[^/]+)/resolve{at}/(?P<path>.+)", self._file),
            (r"POST /(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
            (r"PUT /large/(?P<oid>\w+)", self._large),
            (r"POST /api/repos/create", self._create),
            (r"POST /api/validate-yaml", self._validate),
        ]
        try:
            if self.server.full and f"{self.command} {path}".startswith(self.server.full):
                raise _RefusedError(507, "", "no space left")
            for pattern, act in routes:
                if match := re.fullmatch(pattern, f"{self.command} {path}"):
                    parts = {name: part and unquote(part) for name, part in match.groupdict().items()}
                    act(body=body, query=query, **parts)
                    return
            raise _RefusedError(404)
        except _RefusedError as refused:
            self._send(refused.status, b"{}", refused.headers)

    do_GET = do_HEAD = do_POST = do_PUT = _answer  # noqa: N815 (names that http.server gives)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    # --- reading ------------------------------------------------------------------------------------------------------

    def _repo(self, kind: str | None, name: str) -> Repo:
        repo = self.server.repos.get(f"datasets/{name}" if kind and kind.startswith("datasets") else name)
        if repo is None or (repo.private and not self._owner):
            # The hub does not tell a stranger which of the two it is.
            raise _RefusedError(404 if self._owner else 401, "RepoNotFound", "Repository not found")
        return repo

    @property
    def _owner(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _at(self, kind: str | None, name: str, revision: str | None) -> tuple[Repo, str]:
        repo = self._repo(kind, name)
        sha = repo.at(revision or "main")
        if sha is None:
            raise _RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repo, sha

    def _info(self, kind: str, name: str, revision: str | None, **_: Any) -> None:
        repo, sha = self._at(kind, name, revision)
        folder = repo.root / sha
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        siblings = [{"rfilename": str(path.relative_to(folder)), "size": path.stat().st_size} for path in files]
        gated = "manual" if repo.gated else False
        info = {"id": name, "sha": sha, "siblings": siblings, "private": repo.private, "gated": gated, "tags": []}
        self._json(info)

    def _tree(self, kind: str, name: str, revision: str, path: str, query: dict[str, list[str]], **_: Any) -> None:
        repo, sha = self._at(kind, name, revision)
        folder = repo.root / sha
        if not (folder / path).is_dir():
            raise _RefusedError(404, "EntryNotFound")
        recursive = query.get("recursive", [""])[0].lower() in ("1", "true")
        entries = sorted((folder / path).rglob("*") if recursive else (folder / path).iterdir())
        self._json([self._entry(folder, entry) for entry in entries])

    def _paths(self, kind: str, name: str, revision: str, body: bytes, **_: Any) -> None:
        repo, sha = self._at(kind, name, revision)
        text = body.decode()
        paths = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text)["paths"]
        entries = [repo.root / sha / path for path in paths]
        self._json([self._entry(repo.root / sha, entry) for entry in entries if entry.exists()])

    def _entry(self, folder: Path, path: Path) -> dict[str, Any]:
        name = str(path.relative_to(folder))
        if path.is_dir():
            return {"type": "directory", "oid": "1" * 40, "size": 0, "path": name}
        data = path.read_bytes()
        entry = {"type": "file", "oid": _git_id(data), "size": len(data), "path": name}
        large = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return entry | ({"lfs": large} if len(data) >= LARGE else {})

    def _file(self, kind: str | None, name: str, revision: str, path: str, **_: Any) -> None:
        repo, sha = self._at(kind, name, revision)
        if repo.gated and not self._owner:
            raise _RefusedError(403, "GatedRepo", "Access is restricted")
        file = repo.root / sha / path
        if not file.is_file():
            raise _RefusedError(404, "EntryNotFound", "Entry not found")
        data = file.read_bytes()
        etag = hashlib.sha256(data).hexdigest() if len(data) >= LARGE else _git_id(data)
        headers = {"X-Repo-Commit": sha, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        first, last, status = 0, len(data) - 1, 200
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last, status = int(asked[1]), min(int(asked[2] or last), last), 206
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        part = data[first : last + 1]
        if self.command == "GET":
            if len(data) >= LARGE and self.server.break_after:
                self._send(status, part, headers, only=self.server.break_after.pop(0))
                return
            self.server.sent += len(part)
        self._send(status, part, headers)

    # --- writing ------------------------------------------------------------------------------------------------------

    def _check_owner(self) -> None:
        if not self._owner:
            raise _RefusedError(401, "", "Invalid username or password.")

    def _create(self, body: bytes, **_: Any) -> None:
        self._check_owner()
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] == "others":
            raise _RefusedError(403, "", "You don't have the rights to create a model under the namespace others")
        answer = {"url": f"{self.server.url}/{name}", "name": name}
        if name in self.server.repos:
            self._send(409, json.dumps(answer | {"error": "You already created this model repo"}).encode(), _JSON)
            return
        self.server.create(name, private=asked.get("visibility") == "private" or asked.get("private", False))
        self._json(answer)

    def _validate(self, body: bytes, **_: Any) -> None:
        asked = json.loads(body)
        try:
            header = yaml.safe_load(asked["content"].split("---\n")[1])
            errors = [] if isinstance(header, dict) else [{"message": "no metadata"}]
        except (yaml.YAMLError, IndexError) as error:
            errors = [{"message": str(error)}]
        self._send(400 if errors else 200, json.dumps({"errors": errors, "warnings": []}).encode(), _JSON)

    def _preupload(self, kind: str, name: str, revision: str, body: bytes, **_: Any) -> None:
        self._check_owner()
        self._at(kind, name, revision)
        files = json.loads(body)["files"]
        modes = ["lfs" if file["size"] >= LARGE else "regular" for file in files]
        answers = [
            {"path": f["path"], "uploadMode": m, "shouldIgnore": False} for f, m in zip(files, modes, strict=True)
        ]
        self._json({"files": answers})

    def _batch(self, name: str, body: bytes, **_: Any) -> None:
        self._check_owner()
        self._repo(None, name)
        objects: list[dict[str, Any]] = []
        for wanted in json.loads(body)["objects"]:
            there = wanted["oid"] in self.server.large
            upload = {"actions": {"upload": {"href": f"{self.server.url}/large/{wanted['oid']}"}}}
            objects.append(wanted | ({} if there else upload))
        self._json({"transfer": "basic", "objects": objects}, "application/vnd.git-lfs+json")

    def _large(self, oid: str, body: bytes, **_: Any) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise _RefusedError(400)
        self.server.large[oid] = body
        self._send(200, b"", {})

    def _commit(self, kind: str, name: str, revision: str, body: bytes, **_: Any) -> None:
        self._check_owner()
        repo, _sha = self._at(kind, name, revision)
        if revision not in repo.branches:
            raise _RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        lines = [json.loads(line) for line in body.splitlines()]
        folder = repo.commit(lines[0]["value"]["summary"], revision)
        for line in lines[1:]:
            value = line["value"]
            (folder / value["path"]).parent.mkdir(parents=True, exist_ok=True)
            content = (
                self.server.large[value["oid"]] if line["key"] == "lfsFile" else base64.b64decode(value["content"])
            )
            (folder / value["path"]).write_bytes(content)
        url = f"{self.server.url}/{name}/commit/{folder.name}"
        self._json({"success": True, "commitOid": folder.name, "commitUrl": url})

    # --- answering ----------------------------------------------------------------------------------------------------

    def _json(self, value: Any, kind: str = "application/json") -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": kind})

    def _send(self, status: int, data: bytes, headers: dict[str, str], only: int | None = None) -> None:
        """`only`: break the connection after so many bytes."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(data[:only])
        if only is not None:
            self.server.sent += min(only, len(data))
            self.close_connection = True


_JSON = {"Content-Type": "application/json"}


def _git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
