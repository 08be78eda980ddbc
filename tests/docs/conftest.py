from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from object_store import store

__all__ = ["store"]


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folders the README speaks of."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for folder in ("photos", *(f"labelled/{part}/{label}" for part in ("train", "val") for label in ("cat", "dog"))):
        Path(folder).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(Path(folder) / f"{i}.jpg")
