"""One HTML file that needs nothing beside it: a page of ours, its data, and its pictures."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.files import written_aside

_ASSETS = resources.files("unmask.report") / "assets"
_LOOK = ("base.js",)
"""What the scripts of all pages begin with."""
_QUALITY = 80


class Blobs:
    """Binary parts of a page: pictures and long rows of numbers, each by the name it is given here."""

    def __init__(self) -> None:
        self._parts: list[tuple[str, bytes]] = []

    def add(self, content: bytes, kind: str) -> str:
        """Keep `content`, of the media type `kind`; returns the name by which the page finds it."""
        self._parts.append((kind, content))
        return f"blob-{len(self._parts)}"

    def array(self, values: NDArray[Any], dtype: str) -> str:
        """The values in C order, little-endian."""
        return self.add(np.ascontiguousarray(values, dtype).tobytes(), "application/octet-stream")

    def picture(self, image: NDArray[np.uint8], quality: int = _QUALITY) -> str:
        """An image (H, W, 3) as WebP."""
        return self.add(webp(image, quality), "image/webp")

    def html(self) -> str:
        """Elements that are not parsed before they are used, so that a large page opens at once."""
        element = '<script type="text/plain" id="blob-{}" data-kind="{}">{}</script>'
        return "\n".join(
            element.format(number, kind, base64.b64encode(content).decode())
            for number, (kind, content) in enumerate(self._parts, 1)
        )


def webp(image: NDArray[np.uint8], quality: int = _QUALITY) -> bytes:
    """An image (H, W, 3) as WebP."""
    from PIL import Image

    held = io.BytesIO()
    Image.fromarray(image).save(held, "WEBP", quality=quality, method=4)
    return held.getvalue()


def page(name: str, scripts: Sequence[str], data: Mapping[str, Any], blobs: Blobs | None = None) -> str:
    """The page `assets/NAME.html` with its style, its scripts, `data` as JSON, and `blobs`.

    Whatever names and texts `data` holds, none of it is read as markup: the scripts put it in as text.
    """
    filled = _read(f"{name}.html")
    parts = {
        "STYLE": _read("style.css"),
        "DATA": json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        "BLOBS": "" if blobs is None else blobs.html(),
        "SCRIPT": "\n".join(_read(script) for script in (*_LOOK, *scripts)),
    }
    pieces = filled.split("@@")  # what stands between two marks is the name of a part, and no part is looked at again
    return "".join(parts[piece] if number % 2 else piece for number, piece in enumerate(pieces))


def write_page(out: Path, text: str) -> None:
    """Write it whole or not at all. Raises OSError."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(out) as path:
        path.write_text(text, encoding="utf-8", errors="backslashreplace")


def _read(asset: str) -> str:
    return (_ASSETS / asset).read_text(encoding="utf-8")
