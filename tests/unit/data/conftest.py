from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """40 JPEGs in 2 class folders, each of one grey: 6 times its number."""
    root = tmp_path / "colours"
    for number in range(40):
        path = root / ("even", "odd")[number % 2] / f"{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (48, 40), (6 * number,) * 3).save(path, quality=95)
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Indexes go where the test ends with them."""
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    """Client of a store of the S3 protocol that is not Amazon's, with an empty bucket called `bucket`."""
    moto = pytest.importorskip("moto.server", reason="moto is the S3 server")
    s3fs: Any = pytest.importorskip("s3fs", reason="s3:// needs unmask[remote]")
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        host, port = server.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "someone")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        import boto3

        client: Any = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        yield client
        client.close()
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()
