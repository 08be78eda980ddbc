"""Data sets of the Hugging Face hub: from a server on loopback that speaks its protocol."""

import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unmask.data.sources import open_source
from unmask.errors import DataError

pytest.importorskip("huggingface_hub", reason="hf:// needs huggingface_hub")
from fsspec.config import conf

REPO = "datasets/someone/photos"
IMAGES = [b"%d" % i * (100_000 + i) for i in range(12)]


class Hub(http.server.ThreadingHTTPServer):
    """Serves the files below `root` as the data set REPO."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.sent = 0
        """Bytes of files."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if re.fullmatch(f"/api/{REPO}(/revision/main)?", path):
            self._json({"id": "someone/photos", "sha": "a" * 40, "siblings": [], "private": False, "tags": []})
        elif (found := re.fullmatch(f"/api/{REPO}/tree/main/?(.*)", path)) and (self.server.root / found[1]).is_dir():
            self._json([self._entry(entry) for entry in sorted((self.server.root / found[1]).iterdir())])
        elif (found := re.fullmatch(f"/{REPO}/resolve/main/(.+)", path)) and (self.server.root / found[1]).is_file():
            self._file((self.server.root / found[1]).read_bytes())
        else:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound" if REPO in path else "RepoNotFound"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        paths = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
        entries = (self.server.root / path for path in paths)
        self._json([self._entry(entry) for entry in entries if entry.exists()])

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _entry(self, path: Path) -> dict[str, Any]:
        kind = "directory" if path.is_dir() else "file"
        size = path.stat().st_size if path.is_file() else 0
        return {"type": kind, "oid": "1" * 40, "size": size, "path": str(path.relative_to(self.server.root))}

    def _file(self, data: bytes) -> None:
        if asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            first, last = int(asked[1]), min(int(asked[2]), len(data) - 1)
            self.server.sent += last + 1 - first
            self._send(206, data[first : last + 1], {"Content-Range": f"bytes {first}-{last}/{len(data)}"})
        else:
            self.server.sent += len(data)
            self._send(200, data, {})

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    (tmp_path / "hub").mkdir()
    hub = Hub(tmp_path / "hub")
    monkeypatch.setitem(conf, "hf", {"endpoint": f"http://127.0.0.1:{hub.server_port}"})
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    yield hub
    hub.shutdown()
    hub.server_close()


def write(path: Path, images: list[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"image": {"bytes": image, "path": None}, "label": index % 3} for index, image in enumerate(images)]
    features = {"label": {"_type": "ClassLabel", "names": ["a", "b", "c"]}, "image": {"_type": "Image"}}
    table = pa.Table.from_pylist(rows)
    info = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(info), path, row_group_size=2, compression="none")


def open_hub(path: str) -> Any:
    return open_source(f"hf://{REPO}{path}", key="data.train", labels=True)


def test_only_split_of_a_data_set_is_found_by_its_name(hub: Hub):
    (hub.root / "README.md").write_text("---\n---\n")
    for part, images in enumerate((IMAGES[:5], IMAGES[5:])):
        write(hub.root / "data" / f"train-0000{part}-of-00002.parquet", images)
    source = open_hub("")
    assert [source.read(index) for index in range(12)] == IMAGES
    assert source.class_names == ("a", "b", "c")
    assert source.labels.tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 0, 1, 2, 0]


def test_several_splits_are_asked_for(hub: Hub):
    for split in ("train", "test"):
        write(hub.root / "mnist" / f"{split}-00000-of-00001.parquet", IMAGES)
    with pytest.raises(DataError, match=rf"hf://{REPO}/mnist holds test, train; name one of them, such as hf://"):
        open_hub("")
    assert len(open_hub("/mnist/train-*.parquet")) == 12


def test_several_configurations_are_asked_for(hub: Hub):
    for name in ("large", "small"):
        write(hub.root / name / "train-00000-of-00001.parquet", IMAGES)
    with pytest.raises(DataError, match=rf"photos has Parquet or Arrow files in large, small; name one .*{REPO}/large"):
        open_hub("")
    assert len(open_hub("/small")) == 12


def test_image_files_are_read_one_by_one(hub: Hub):
    for index, image in enumerate(IMAGES):
        (hub.root / "abc"[index % 3]).mkdir(exist_ok=True)
        (hub.root / "abc"[index % 3] / f"{index}.jpg").write_bytes(image)
    source = open_hub("")
    assert source.class_names == ("a", "b", "c")
    assert source.read(2) == IMAGES[6]
    assert hub.sent == len(IMAGES[6])


def test_reading_brings_no_more_than_what_is_asked_for(hub: Hub):
    write(hub.root / "train.parquet", IMAGES)
    source = open_hub("/train.parquet")
    hub.sent = 0
    source.read(5)
    assert hub.sent < 3 * len(IMAGES[5]), "one group of two images, of a file of twelve"


def test_data_set_that_is_not_there(hub: Hub):
    with pytest.raises(DataError, match=r"hf://datasets/someone/else/? cannot be read: no such file or folder"):
        open_source("hf://datasets/someone/else", key="data.train", labels=False)
