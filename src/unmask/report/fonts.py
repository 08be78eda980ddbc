"""Fonts for the names in pictures: those of classes and files may be in any script."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.report.progress import say

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

_ALWAYS = range(0x80)
"""Characters that every font has; that of Pillow has few more."""
_LIKELY = re.compile(
    r"cjk|sourcehan|noto|wqy|droid|unifont|fallback|msyh|simhei|pingfang|hiragino|malgun|gothic|unicode"
)
_STYLED = re.compile(r"bold|italic|oblique|black|light|thin|medium|heavy|mono|serif|condensed")
_told: set[str] = set()


@contextmanager
def drawing(texts: Iterable[str]) -> Generator[None]:
    """Within, matplotlib makes and draws `texts` with installed fonts where its own has no such characters."""
    import matplotlib as mpl
    from matplotlib.font_manager import fontManager

    files = [file for file in _fonts_for(frozenset("".join(texts))) if file != _own()]
    for file in files:
        fontManager.addfont(file)
    families = ["sans-serif", *(_family(file) for file in files)]
    with mpl.rc_context({"font.family": families}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # said already, once
        yield


def pillow_fonts(size: int, texts: Iterable[str]) -> Callable[[str], FreeTypeFont]:
    """For Pillow, which draws a text with one font: that of Pillow, or the installed one that has most of a text."""
    from PIL import ImageFont

    default: Any = ImageFont.load_default(size)  # of Pillow without FreeType another kind, which draws as well
    fonts = [(_characters(file), ImageFont.truetype(file, size)) for file in _fonts_for(frozenset("".join(texts)))]

    def font_of(text: str) -> FreeTypeFont:
        codes = {ord(c) for c in text}
        if text.isascii() or not fonts:
            return default
        return max(fonts, key=lambda font: len(codes & font[0]))[1]

    return font_of


@functools.lru_cache(64)
def _fonts_for(characters: frozenset[str]) -> tuple[str, ...]:
    """Files of installed fonts that together have what the usual one lacks, as far as there are any."""
    missing = {ord(c) for c in characters if ord(c) not in _ALWAYS and c.isprintable()}
    if not missing:
        return ()
    from matplotlib.font_manager import findSystemFonts

    chosen: list[str] = []
    for file in [_own(), *sorted(findSystemFonts(), key=_rank)]:
        found = missing & _characters(file)
        if found:
            chosen.append(file)
            missing -= found
        if not missing:
            break
    if unknown := "".join(map(chr, sorted(missing - set(map(ord, _told))))):
        _told.update(unknown)
        shown = unknown if len(unknown) <= 10 else f"{unknown[:10]}…"
        say(f"no font here has {shown}, boxes in pictures; install one, such as Noto Sans CJK (fonts-noto-cjk)")
    return tuple(chosen)


def _own() -> str:
    """Matplotlib's: it has Greek, Cyrillic, Arabic and much else."""
    import matplotlib as mpl

    return str(Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


def _rank(file: str) -> tuple[bool, bool, str]:
    name = Path(file).name.lower()
    return not _LIKELY.search(name), bool(_STYLED.search(name)), name


@functools.lru_cache(1024)
def _characters(file: str) -> frozenset[int]:
    """Those that a font has; none of one that cannot be scaled, such as of coloured pictures, or read."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(file)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError):
        return frozenset()


def _family(file: str) -> str:
    from matplotlib.ft2font import FT2Font

    return FT2Font(file).family_name
