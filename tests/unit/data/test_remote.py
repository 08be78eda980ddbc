"""Sources behind URLs: from a server that speaks the S3 protocol, and from a web server that fails on request."""

import errno
import http.server
import io
import os
import re
import tarfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from runs import TINY_MODEL
from unmask.cli import main
from unmask.config.schema import AugmentConfig, DataConfig, ModelConfig
from unmask.data.batch import Needs
from unmask.data.loader.pipeline import train_batches
from unmask.data.sources import Source, files, open_source, remote
from unmask.errors import DataError, StorageError

s3fs = pytest.importorskip("s3fs", reason="remote sources need unmask[remote]")
FILES = {f"class{i % 3}/{i:03}.jpg": b"%d" % i * (100 + i) for i in range(12)}


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)


def make_data(root: Path) -> Path:
    """The same images as a folder, a tar, shards, Parquet, a list and an array."""
    for name, data in FILES.items():
        (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "images" / name).write_bytes(data)
    parts = {"all.tar": list(FILES), "shard-0.tar": list(FILES)[:5], "shard-1.tar": list(FILES)[5:]}
    for part, names in parts.items():
        with tarfile.open(root / part, "w") as tar:
            for name in names:
                tar.add(root / "images" / name, name)
    rows = [{"image": {"bytes": data}, "label": int(name[5])} for name, data in sorted(FILES.items())]
    (root / "table").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), root / "table" / "train-0.parquet", row_group_size=4)
    (root / "list.csv").write_text("path,label\n" + "".join(f"images/{name},{name[:6]}\n" for name in sorted(FILES)))
    np.save(root / "x.npy", np.arange(12 * 4, dtype=np.uint8).reshape(12, 2, 2))
    np.save(root / "labels.npy", np.arange(12) % 3)
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def s3(data: Path, store: Any) -> str:
    """URL of a bucket that holds the data."""
    for path in data.rglob("*"):
        if path.is_file():
            store.put_object(Bucket="bucket", Key=f"data/{path.relative_to(data)}", Body=path.read_bytes())
    store.put_object(Bucket="bucket", Key="data/images/", Body=b"")  # as consoles mark a folder
    return "s3://bucket/data"


def open_images(spec: str) -> Source:
    return open_source(spec, key="data.train", labels=True)


def rows(source: Source) -> list[tuple[str, bytes, int]]:
    assert source.labels is not None
    return [(source.name(i), np.asarray(source.read(i)).tobytes(), int(source.labels[i])) for i in range(len(source))]


KINDS = ["images", "all.tar", "shard-{0..1}.tar", "shard-*.tar", "table", "table/*.parquet", "list.csv", "x.npy"]


@pytest.mark.parametrize("kind", KINDS)
def test_object_store_gives_what_the_disk_gives(data: Path, s3: str, kind: str):
    here, there = open_images(f"{data}/{kind}"), open_images(f"{s3}/{kind}")
    assert rows(there) == rows(here)
    assert there.class_names == here.class_names
    assert there.fingerprint() == here.fingerprint()


def test_missing_objects_are_named(s3: str):
    with pytest.raises(DataError, match=r"s3://bucket/data/none\.tar cannot be read: no such file"):
        open_images(f"{s3}/none.tar")
    with pytest.raises(DataError, match=r"s3://nobucket/x\.tar cannot be read: no such file"):
        open_images("s3://nobucket/x.tar")


def test_changed_object_is_indexed_anew(s3: str):
    import boto3

    client: Any = boto3.client("s3")
    for number in (1, 2):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as tar:
            info = tarfile.TarInfo(f"a/{number}.jpg")
            info.size = 1
            tar.addfile(info, io.BytesIO(b"%d" % number))
            tar.addfile(tarfile.TarInfo("b/0.jpg"))
        client.put_object(Bucket="bucket", Key="change.tar", Body=file.getvalue())
        assert rows(open_images("s3://bucket/change.tar"))[0] == (f"a/{number}.jpg", b"%d" % number, 0)
    client.close()


class Web(http.server.ThreadingHTTPServer):
    """Files with ranges and listings; `fail` says what to do to the next answers."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.fail: list[str] = []
        self.fail_heads = 0
        self.told_shorter = 0
        self.gets: list[tuple[str, str]] = []
        self.sent = 0
        self.closing = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.SimpleHTTPRequestHandler):
    server: Web

    def __init__(self, request: Any, address: Any, server: Web) -> None:
        super().__init__(request, address, server, directory=str(server.root))

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def translate_path(self, path: str) -> str:
        return super().translate_path(re.sub("^http://[^/]*", "", path))  # a proxy is asked for whole addresses

    def do_HEAD(self) -> None:
        if self.server.fail_heads:
            self.server.fail_heads -= 1
            self.send_error(500)
        else:
            super().do_HEAD()

    def send_header(self, keyword: str, value: str) -> None:
        shorter = self.server.told_shorter if keyword == "Content-Length" and self.command == "HEAD" else 0
        super().send_header(keyword, str(int(value) - shorter) if shorter else value)

    def send_for_ever(self, how: str, data: bytes) -> None:
        """Until nobody listens: the file byte by byte, or more than the file, with its length or in chunks."""
        chunk = {"slow": data[:1], "endless": bytes(2**16), "chunks": b"10000\r\n" + bytes(2**16) + b"\r\n"}[how]
        if how == "chunks":
            self.protocol_version = "HTTP/1.1"
        self.send_response(206)
        if how == "slow":
            self.send_header("Content-Length", str(len(data)))
        elif how == "chunks":
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with suppress(OSError):
            while not self.server.closing.wait(0.02 if how == "slow" else 0):
                self.wfile.write(chunk)
                self.server.sent += len(chunk)

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            super().do_GET()
            return
        self.server.gets.append((self.path, self.headers.get("Range", "")))
        how = self.server.fail.pop(0) if self.server.fail else ""
        if how.isdigit():
            self.send_error(int(how))
            return
        data, status = path.read_bytes(), 200
        if how != "no range" and (found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))):
            first, last = int(found[1]), int(found[2]) + 1 if found[2] else None
            data, status = data[: last and last - first] if how == "elsewhere" else data[first:last], 206
        if how in ("slow", "endless", "chunks"):
            self.send_for_ever(how, data)
        elif how != "drop":
            self.send_response(status)
            if how == "elsewhere":
                self.send_header("Content-Range", f"bytes 0-{len(data) - 1}/{path.stat().st_size}")
            if how != "no length":
                self.send_header("Content-Length", str(len(data) if how != "short" else len(data) // 2))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if how in ("truncate", "short") else data)
        self.close_connection = True


@pytest.fixture
def web(data: Path) -> Iterator[Web]:
    with Web(data) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    "kind", ["images", "all.tar", "shard-{0..1}.tar", "table/train-0.parquet", "list.csv", "x.npy"]
)
def test_web_server_gives_what_the_disk_gives(data: Path, web: Web, kind: str):
    here, there = open_images(f"{data}/{kind}"), open_images(f"{web.url}/{kind}")
    assert rows(there) == rows(here)
    assert there.class_names == here.class_names


def test_proxies_are_asked_where_the_environment_says_so(data: Path, web: Web, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HTTP_PROXY", web.url)
    expected = rows(open_images(f"{data}/all.tar"))
    assert rows(open_images("http://no-such-host.invalid/all.tar")) == expected
    assert {path for path, _ in web.gets} == {"http://no-such-host.invalid/all.tar"}
    web.gets.clear()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert rows(open_images(f"{web.url}/all.tar")) == expected
    assert {path for path, _ in web.gets} == {"/all.tar"}


@pytest.mark.parametrize("failure", ["500", "503", "429", "drop", "truncate", "short", "elsewhere"])
def test_failures_are_tried_again(web: Web, failure: str):
    source = open_images(f"{web.url}/all.tar")
    data = source.read(3)
    web.fail = [failure] * (remote.ATTEMPTS - 1)
    assert source.read(3) == data
    assert not web.fail


@pytest.mark.parametrize("failure", ["500", "drop", "truncate", "short", "elsewhere"])
def test_lasting_failure_is_one_clear_error(web: Web, failure: str):
    source = open_images(f"{web.url}/all.tar")
    web.gets.clear()
    web.fail = [failure] * 100
    with pytest.raises(DataError, match=r"http://.*/all\.tar cannot be read, 5 attempts: \w+") as caught:
        source.read(0)
    assert "\n" not in str(caught.value)
    assert remote.ATTEMPTS <= len(web.gets) <= 2 * remote.ATTEMPTS  # the client below may repeat once by itself


@pytest.mark.parametrize(("failure", "message"), [("403", "403"), ("404", "no such file"), ("no range", "read ranges")])
def test_what_will_not_change_is_not_tried_again(web: Web, failure: str, message: str):
    source = open_images(f"{web.url}/all.tar")
    web.gets.clear()
    web.fail = [failure] * 100
    with pytest.raises(DataError, match=message):
        source.read(0)
    assert len(web.gets) == 1


@pytest.mark.parametrize("whole", [False, True], ids=["a range", "whole"])
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("slow", "only .* bytes came in|did not end in time"),
        ("endless", "more than the|does not say|in time"),
        ("chunks", "more than the|in time"),
    ],
)
def test_a_body_that_never_ends_is_ended(
    web: Web, how: str, message: str, whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "x").write_bytes(bytes(100_000))
    web.root = tmp_path
    monkeypatch.setattr(remote, "_SILENT_SECONDS", 0.2)
    monkeypatch.setattr(remote, "_MOST_BYTES", 10**6)
    web.fail = [how] * 100
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError, match=message):
        files.read(f"{web.url}/x", 0, None if whole else 50_000)
    assert web.sent < remote.ATTEMPTS * 2 * 10**7  # what the buffers of the system hold, each time


@pytest.mark.parametrize("what", ["a range", "whole", "a copy"])
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("slow", "only .* bytes came in|did not end in time"),
        ("endless", "more than the|did not end in time"),
        ("chunks", "more than the|did not end in time"),
    ],
)
def test_a_body_of_an_object_store_that_never_ends_is_ended(
    web: Web, how: str, message: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    content = np.random.default_rng(0).bytes(100_000)
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket/x").write_bytes(content)
    web.root = tmp_path
    for name, value in (("ACCESS_KEY_ID", "someone"), ("SECRET_ACCESS_KEY", "secret"), ("ENDPOINT_URL", web.url)):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setattr(remote, "_SILENT_SECONDS", 0.2)
    monkeypatch.setattr(remote, "_MOST_BYTES", 10**6)
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    s3fs.S3FileSystem.clear_instance_cache()
    web.fail = [how] * 100
    monkeypatch.setattr(remote, "_RANGE", 30_000)
    act = {
        "a range": lambda: files.read("s3://bucket/x", 0, 50_000),
        "whole": lambda: files.read("s3://bucket/x"),
        "a copy": lambda: remote.fetch("s3://bucket/x", tmp_path / "copy"),
    }[what]
    with pytest.raises(StorageError, match=rf"s3://bucket/x cannot be read, 2 attempts: .*({message})"):
        act()
    assert web.sent < 2 * 2 * 10**7 * (remote._RANGES if what == "a copy" else 1)
    if what == "a copy":
        assert (tmp_path / "copy").stat().st_size <= 100_000
        web.fail.clear()
        monkeypatch.setattr(remote, "_SILENT_SECONDS", 30)  # a busy machine is no failure
        remote.fetch("s3://bucket/x", tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == content


@pytest.mark.parametrize("how", ["slow", "endless"])
def test_a_copy_that_never_ends_is_ended(web: Web, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "x").write_bytes(bytes(100_000))
    web.root = tmp_path
    monkeypatch.setattr(remote, "_SILENT_SECONDS", 0.2)
    web.fail = [how] * 100
    with pytest.raises(StorageError, match=r"more than the 100000 bytes|only .* bytes came in|in time"):
        remote.fetch(f"{web.url}/x", tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_size < 10**7


def test_a_server_that_says_less_than_it_has(data: Path, web: Web, tmp_path: Path):
    for kind in ("all.tar", "shard-{0..1}.tar", "table/train-0.parquet"):
        web.told_shorter = (data / kind.replace("{0..1}", "1")).stat().st_size // 2
        with pytest.raises(DataError, match=r"truncated|not a whole Parquet|more than the"):
            open_images(f"{web.url}/{kind}")
    web.told_shorter = 5000
    with pytest.raises(StorageError, match="more than the"):
        remote.fetch(f"{web.url}/all.tar", tmp_path / "copy")
    web.fail = ["no length"]
    with pytest.raises(StorageError, match="does not say how large the file is"):
        files.read(f"{web.url}/list.csv")


def test_failing_object_store_is_one_clear_error(web: Web, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", web.url)
    s3fs.S3FileSystem.clear_instance_cache()
    web.fail = ["500"] * 100
    with pytest.raises(DataError, match=r"s3://images/class0/000\.jpg cannot be read, 5 attempts: "):
        files.read("s3://images/class0/000.jpg", 0, 5)
    assert remote.ATTEMPTS <= len(web.gets) <= 2 * remote.ATTEMPTS
    web.fail = ["500", "truncate"]
    assert files.read("s3://images/class0/000.jpg", 0, 5) == FILES["class0/000.jpg"][:5]
    monkeypatch.setattr(remote, "_SILENT_SECONDS", 0.2)
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    web.fail = ["slow"] * 100
    with pytest.raises(StorageError, match=r"s3://images/class0/000\.jpg cannot be read, 2 attempts: .*(only|in time)"):
        files.read("s3://images/class0/000.jpg", 0, 100)


def test_server_that_recovers_while_the_file_is_looked_for(web: Web):
    web.fail_heads, web.fail = 2, ["500"] * 2
    assert len(open_images(f"{web.url}/all.tar")) == 12
    web.fail_heads, web.fail = 100, ["500"] * 100
    with pytest.raises(DataError, match=r"all\.tar cannot be read, 5 attempts: .*500"):
        open_images(f"{web.url}/all.tar")


def test_server_that_is_not_there():
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9/x\.tar cannot be read, 5 attempts: Client"):
        open_images("http://127.0.0.1:9/x.tar")


def test_unknown_protocol_and_missing_package():
    with pytest.raises(DataError, match="Protocol not known"):
        open_images("nothing://x.tar")
    with pytest.raises(DataError, match=r"gs://bucket/x\.tar needs gcsfs"):
        open_images("gs://bucket/x.tar")


def test_cache_answers_and_stays_below_its_limit(web: Web, cache: Path, monkeypatch: pytest.MonkeyPatch):
    source = open_images(f"{web.url}/all.tar")
    monkeypatch.setenv("UNMASK_REMOTE_CACHE_GB", "0.001")
    monkeypatch.setattr(remote, "_DRAWERS", 1)
    first = rows(source)
    web.gets.clear()
    assert rows(source) == first
    assert not web.gets
    kept = sorted(path for path in (cache / "remote").rglob("*") if path.is_file())
    kept[0].write_bytes(b"cut")  # as after a full disk
    assert rows(source) == first
    assert len(web.gets) == 1

    monkeypatch.setenv("UNMASK_REMOTE_CACHE_GB", "0.000003")  # 3,000 bytes of some 7,000
    monkeypatch.setattr(remote, "_from_cache", lambda path: None)
    for path in kept:
        path.rename((cache / "remote" / kept[0].parent.name) / path.name)
    for i in range(40):
        folder = cache / "remote" / kept[0].parent.name
        remote._into_cache(folder / f"{i}", bytes(500))
        assert sum(path.stat().st_size for path in folder.iterdir()) <= 3000
    assert {path.name for path in folder.iterdir()} == {f"{i}" for i in range(34, 40)}


def test_cache_limit_must_be_a_number(web: Web, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("UNMASK_REMOTE_CACHE_GB", "much")
    with pytest.raises(DataError, match="UNMASK_REMOTE_CACHE_GB=much is not a number"):
        open_images(f"{web.url}/all.tar")


@pytest.mark.parametrize(("failure", "workers"), [("404", 0), ("503", 1), ("truncate", 0), ("drop", 0)])
def test_a_store_that_fails_is_no_bad_image(data: Path, web: Web, failure: str, workers: int, tmp_path: Path):
    """Replaced by others, they would make another run of it, and nobody would know."""
    images = tmp_path / "images"
    for number in range(12):
        images.mkdir(exist_ok=True)
        Image.new("L", (16, 16), number).save(images / f"{number:02}.png")
    (tmp_path / "list.txt").write_text("".join(f"images/{number:02}.png\n" for number in range(12)))
    web.root = tmp_path
    source = open_source(f"{web.url}/list.txt", key="data.train", labels=False)
    web.fail = [""] * 5 + [failure] * 1000
    with pytest.raises(DataError, match=r"http://127.*/images/\d+\.png cannot be read"):
        for _ in train_batches(
            source,
            needs=Needs(),
            model=ModelConfig(image_size=(16, 16), patch_size=8),
            data=DataConfig(workers=workers),
            augment=AugmentConfig(),
            seed=0,
            batch_size=4,
            accumulate=1,
            start_step=0,
            stop_step=6,
        ):
            pass


@pytest.mark.parametrize("failure", ["503", "slow", "endless", "404"])
def test_a_run_ends_with_the_name_of_what_failed(
    web: Web,
    failure: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    (tmp_path / "images").mkdir()
    for number in range(12):
        noise = np.random.default_rng(number).integers(0, 256, (28, 28), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"images/{number:02}.png")
    (tmp_path / "list.txt").write_text("".join(f"images/{number:02}.png\n" for number in range(12)))
    web.root = tmp_path
    monkeypatch.setattr(remote, "_SILENT_SECONDS", 0.2)
    s3fs.S3FileSystem.clear_instance_cache()
    web.fail = [""] * 40 + [failure] * 1000
    settings = [*TINY_MODEL, "train.batch_size=4", "train.epochs=30", "train.checkpoint_every=1", "data.workers=0"]
    data, run = f"data.train={web.url}/list.txt", tmp_path / "run"
    assert main(["pretrain", "mae-vit-tiny", *settings, data, f"output={run}"]) == 3
    assert re.search(r"unmask: http://127.*/images/\d+\.png cannot be read", capsys.readouterr().err)
    assert not (run / "bad_files.txt").exists()
    assert list((run / "checkpoints").glob("step-*")), "what was computed is kept"


def test_a_disk_that_fails_is_no_bad_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.jpg").write_bytes(b"x")
    source = open_source(str(tmp_path), key="data.train", labels=False)

    def failing(*_: Any) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("unmask.data.sources.files.os.read", failing)  # a disk cannot be broken here
    with pytest.raises(StorageError, match=r"a\.jpg cannot be read: Input/output error"):
        source.read(0)


class Odd(http.server.BaseHTTPRequestHandler):
    """Answers by the first folder of what it is asked for, and counts."""

    asked = 0

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        Odd.asked += 1
        how = self.path.split("/")[1]
        places = {"circle": self.path, "further": f"{self.path}x", "elsewhere": "file:///etc/passwd", "login": "/page"}
        if how == "page":
            page = b"<!DOCTYPE html><html>Please log in</html>"
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page if self.command == "GET" else b"")
            return
        self.send_response(302 if how in places else int(how))
        if how in places:
            self.send_header("Location", places[how])
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self) -> None:
        self.do_GET()


@pytest.fixture(scope="module")
def odd() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Odd) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["a.tar", "list.csv", "x.npz", "t.parquet", "photos"])
@pytest.mark.parametrize(
    ("how", "message", "most"),
    [
        ("circle", "sends whoever asks from one address to the next without end", 22),
        ("further", "sends whoever asks from one address to the next without end", 22),
        ("elsewhere", "NonHttpUrlRedirectClientError: file:///etc/passwd", 2),
        ("204", "the server answers 204 No Content, and no file", 2),
        ("300", "the server answers 300 Multiple Choices, and no file", 2),
        ("302", "the server answers 302 Found, and no file", 2),
        ("511", "511, message='Network Authentication Required'", 2),
        ("login", "is a web page, not the file|holds no images", 16),
    ],
)
def test_answers_that_are_no_file_are_told_at_once(odd: str, how: str, message: str, most: int, name: str):
    Odd.asked = 0
    with pytest.raises(DataError, match=message) as caught:
        open_source(f"{odd}/{how}/{name}", key="data.train", labels=False)
    assert "\n" not in str(caught.value)
    assert Odd.asked <= most


def test_a_server_out_of_order_is_none_without_a_pack(data: Path, web: Web):
    """A folder whose manifest cannot be asked for is not taken for one of plain tars."""
    (data / "packed").mkdir()
    (data / "packed/manifest.json").write_text("{}")
    for name in ("all.tar", "shard-0.tar"):
        (data / "packed" / name).write_bytes((data / name).read_bytes())
    web.fail_heads, web.fail = 100, ["503"] * 100
    with pytest.raises(StorageError, match=r"packed/manifest\.json cannot be read, 5 attempts: .*503"):
        open_source(f"{web.url}/packed", key="data.train", labels=False)


def test_names_on_a_web_server_are_those_on_its_disk(tmp_path: Path, web: Web):
    names = [
        "a b.jpg",
        "a#b.jpg",
        "a%20b.jpg",
        "a?b.jpg",
        "\xe4.jpg",
        "\u72ac.jpg",
        "a&b+c;d.jpg",
        "'q'.jpg",
        "<x>.jpg",
    ]
    for number, name in enumerate([f"{folder}/{name}" for folder in ("cat", "d\xf6g \u72ac") for name in names]):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(b"%d" % number)
    web.root = tmp_path
    here, there = open_images(f"{tmp_path}/set"), open_images(f"{web.url}/set")
    assert rows(there) == rows(here)
    assert there.class_names == here.class_names


@pytest.mark.parametrize(
    "page", ['<a href="more/">', '<a href="a/"></a><a href="b/">', '<a href="x.jpg"></a><a href="d/">']
)
def test_a_server_with_one_page_for_everything_comes_to_an_end(page: str, monkeypatch: pytest.MonkeyPatch):
    def answer(self: Odd) -> None:
        self.send_response(200 if self.path.endswith("/") else 404)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page.encode() if self.command == "GET" else b"")

    monkeypatch.setattr(Odd, "do_GET", answer)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Odd) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            with pytest.raises(DataError, match=r"/photos leads on and on, to .*; name a folder below it"):
                open_source(f"http://127.0.0.1:{server.server_address[1]}/photos", key="data.train", labels=False)
        finally:
            server.shutdown()
            thread.join()
