"""The HTTP side of `unmask serve`: one page, and a small API with limits, whose errors are JSON."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message

from unmask.errors import ConfigError, DataError, UnmaskError
from unmask.report.page import page
from unmask.serve.answers import WANTED, Answers, Question

POLICY = (
    "default-src 'none'; img-src 'self' blob: data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'"
)
_DRAINED = 4
"""Times the most bytes that are read of a body that is too large."""
_PARAMETERS = ("want", "top", "mask_ratio", "seed", "hidden", "patch", "block")

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """What one request may ask of the server."""

    bytes: int = 20 * 2**20
    """Of a body, all its images together."""
    images: int = 64
    """In a request."""
    seconds: float = 30.0
    """Until the answer, reading the request and waiting for others included."""
    waiting: int = 16
    """Requests in the queue; more are sent away at once."""


def create_app(answers: Answers, limits: Limits, hosts: tuple[str, ...] | None = None) -> Starlette:
    """The server as an ASGI application.

    `hosts`: names by which it may be called, None: any. A server on loopback must refuse others, or pages of strangers
    could reach it by a name of theirs that means this machine.
    """
    desk = _Desk(answers, limits)

    async def home(_request: Request) -> Response:
        html = page("serve", ("serve.js",), answers.about() | {"limits": vars(limits)})
        return HTMLResponse(html, headers={"Content-Security-Policy": POLICY})

    async def about(_request: Request) -> Response:
        return JSONResponse(answers.about() | {"limits": vars(limits)})

    async def look(request: Request) -> Response:
        question = _question(request, answers)
        answers.check(question)  # before the images are sent

        async def read_and_answer() -> list[dict[str, Any]]:
            images = await _images(request, limits)
            found = await desk.ask(lambda: answers.answer([content for _, content in images], question))
            return [{"name": name, **one} for (name, _), one in zip(images, found, strict=True)]

        return JSONResponse({"images": await desk.in_time(read_and_answer())})

    async def picture(request: Request) -> Response:
        index = int(request.path_params["index"])
        content = await desk.in_time(desk.ask(lambda: answers.picture(index)))
        return Response(content, media_type="image/webp", headers={"Cache-Control": "max-age=3600"})

    routes = [
        Route("/", home),
        Route("/api/model", about),
        Route("/api/look", look, methods=["POST"]),
        Route("/api/images/{index:int}", picture),
    ]

    def failed(_request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            return _error(error.status_code, error.detail, error.headers)
        for kind, status in ((ConfigError, 400), (DataError, 404), (UnmaskError, 500)):
            if isinstance(error, kind):
                return _error(status, str(error))
        return _error(500, "the server failed; its own output says how")

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncGenerator[None]:
        yield
        desk.close()

    app = Starlette(
        routes=routes,
        exception_handlers=dict.fromkeys((HTTPException, UnmaskError, Exception), failed),
        lifespan=lifespan,
    )
    if hosts is not None:
        app.add_middleware(_KnownHosts, hosts=hosts)
    return app


class _Desk:
    """One thread asks the model; the others wait in a short line."""

    def __init__(self, answers: Answers, limits: Limits) -> None:
        self._limits, self._waiting = limits, 0
        self._thread = ThreadPoolExecutor(1, "unmask")

    async def ask(self, work: Callable[[], T]) -> T:
        if self._waiting >= self._limits.waiting:
            raise HTTPException(503, "busy: too many requests wait; ask again later", {"Retry-After": "1"})
        self._waiting += 1
        loop = asyncio.get_running_loop()
        future = self._thread.submit(work)
        # Also of a request that did not wait for its answer: the model is still at it.
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._left))
        return await asyncio.wrap_future(future)

    async def in_time(self, answer: Awaitable[T]) -> T:
        try:
            return await asyncio.wait_for(answer, self._limits.seconds)
        except TimeoutError:
            raise HTTPException(504, f"no answer within {self._limits.seconds:g} seconds") from None

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _left(self) -> None:
        self._waiting -= 1


class _KnownHosts:
    """Refuses requests whose Host is none of the server's names."""

    def __init__(self, app: Any, hosts: tuple[str, ...]) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
            name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
            if name not in self._hosts:
                await _error(421, "this server is not known by that name; start it with --host")(scope, receive, send)
                return
        await self._app(scope, receive, send)


async def _images(request: Request, limits: Limits) -> list[tuple[str, bytes]]:
    """Name and content of each: the parts of a form, or the body, which is one image."""
    told = request.headers.get("content-length", "0")
    if told.isdecimal() and int(told) > limits.bytes:
        await _drain(request.receive, limits)
        raise _too_large(limits)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    counted = Request(request.scope, _counted(request.receive, limits))
    try:
        if kind != "multipart/form-data":
            body = await counted.body()
            if not body:
                raise HTTPException(400, "the body is empty; send an image, or a form with images")
            return [("", body)]
        async with counted.form(max_files=limits.images, max_fields=0) as form:
            parts = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
            if not parts:
                raise HTTPException(400, "the form holds no image")
            return [(part.filename or "", await part.read()) for part in parts]
    except MultiPartException as error:
        raise HTTPException(400, f"the form cannot be read: {error.message}") from None
    except ClientDisconnect:
        raise HTTPException(400, "the request broke off") from None


def _counted(receive: Any, limits: Limits) -> Callable[[], Awaitable[Message]]:
    left = limits.bytes

    async def counted() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            await _drain(receive, limits)
            raise _too_large(limits)
        return message

    return counted


async def _drain(receive: Any, limits: Limits) -> None:
    """Read and forget what is still sent, within reason: a client that is cut off while it sends reads no answer."""
    left, more = _DRAINED * limits.bytes, True
    while more and left > 0:
        message = await receive()
        left -= len(message.get("body", b""))
        more = message.get("more_body", False)


def _too_large(limits: Limits) -> HTTPException:
    return HTTPException(413, f"more than {limits.bytes} bytes", {"Connection": "close"})


def _question(request: Request, answers: Answers) -> Question:
    """From the query. Raises HTTPException for what is no value, with what is one."""
    query = request.query_params
    if unknown := sorted(set(query) - set(_PARAMETERS)):
        raise HTTPException(400, f"{unknown[0]} is no parameter; there are {', '.join(_PARAMETERS)}")
    want = frozenset(word for text in query.getlist("want") for word in text.split(",") if word)
    if strange := sorted(want - set(WANTED)):
        raise HTTPException(400, f"want={strange[0]}: there are {', '.join(WANTED)}")
    given: dict[str, Any] = {"want": want or answers.can - {"crop", "embedding", "attention"} or answers.can}
    for name, kind, low, high in (
        ("top", int, 1, 1000),
        ("mask_ratio", float, 0, 1),
        ("seed", int, 0, 2**31 - 1),
        ("patch", int, 0, 2**31 - 1),
        ("block", int, -1000, 1000),
    ):
        if name in query:
            given[name] = _number(name, query[name], kind, low, high)
    if "hidden" in query:
        words = [word for word in query["hidden"].split(",") if word]
        given["hidden"] = tuple(_number("hidden", word, int, 0, 2**31 - 1) for word in words)
    return Question(**given)


def _number(name: str, text: str, kind: type[int] | type[float], low: float, high: float) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise HTTPException(400, f"{name}={text[:40]} is no {kind.__name__} from {low:g} to {high:g}")
    return value


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    content = json.dumps({"error": " ".join(message.split())}, ensure_ascii=True)
    return Response(content, status, media_type="application/json", headers=headers)
