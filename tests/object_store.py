"""A store of the S3 protocol on loopback, for the conftest of tests that need one."""

from collections.abc import Iterator
from typing import Any
from urllib.request import Request, urlopen

import pytest


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    """Client of a store of the S3 protocol that is not Amazon's, with an empty bucket called `bucket`."""
    moto = pytest.importorskip("moto.server", reason="moto is the S3 server")
    s3fs: Any = pytest.importorskip("s3fs", reason="s3:// needs unmask[remote]")
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        host, port = server.get_host_and_port()
        # What an earlier server of this process held is still there.
        urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()
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
