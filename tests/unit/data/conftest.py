from pathlib import Path

import pytest
from PIL import Image

from object_store import store

__all__ = ["store"]


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
