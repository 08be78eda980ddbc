"""A trained model behind HTTP: `unmask serve`."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any

from unmask.checkpoint.store import Choice
from unmask.data.sources.base import printable
from unmask.errors import ConfigError, EngineError
from unmask.evaluate.inference import load
from unmask.report.progress import say

MAX_PIXELS = 40_000_000
"""An image with more is refused, by default, before it is decoded: a stranger's file may be made to fill the memory."""
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")


def serve(
    model: str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    images: str | None = None,
    most: int = 10_000,
    settings: Sequence[str] = (),
    checkpoint: Choice = "last",
    engine: str | None = None,
    device: str = "auto",
    precision: str = "fp32",
    batch_size: int = 64,
) -> None:
    """Answer about images, on a page and by a REST API, until it is interrupted; see docs/serve.md.

    `images`: among these, at most `most` of them, neighbours are found. On a loopback address only names of this
    machine are answered. The other arguments are those of `load`. Raises ConfigError where a package is missing or the
    address cannot be had, and what `load` raises.
    """
    try:
        import python_multipart  # noqa: F401  # pyright: ignore[reportUnusedImport]
        import uvicorn

        from unmask.serve.app import Limits, create_app
    except ImportError:
        raise EngineError("serving needs packages that are not installed: pip install 'unmask[serve]'") from None
    from unmask.serve.answers import Answers

    own = [f"data.max_pixels={MAX_PIXELS}", *settings]
    how: dict[str, Any] = {"engine": engine, "device": device, "precision": precision, "batch_size": batch_size}
    hosts = _LOOPBACK if host in _LOOPBACK else None
    with _bound(host, port) as listening, load(model, checkpoint, settings=own, **how) as loaded:
        name = os.fspath(model)
        app = create_app(Answers(loaded, name, images, most), Limits(), hosts)
        listening.listen()  # whoever reads the address may ask at once
        address = listening.getsockname()
        url = f"http://{f'[{address[0]}]' if ':' in address[0] else address[0]}:{address[1]}"
        say(f"{name} at {url} (Ctrl-C stops it)")
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=3,
            limit_concurrency=256,
        )
        uvicorn.Server(config).run(sockets=[listening])


def _bound(host: str, port: int) -> socket.socket:
    """A socket at that address, before any long work. Raises ConfigError where it cannot be had."""
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host.strip("[]"), port))
    except (OSError, ValueError, TypeError) as error:  # a name may be no name at all
        made.close()
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConfigError(
            f"--host {printable(host)} --port {port}: {reason}; name another (--port 0: any that is free)"
        ) from None
    return made
