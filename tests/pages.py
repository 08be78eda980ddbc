"""What the tests of pages share: the code a page shows, and settings that make its models small."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SMALL = {
    "model.image_size": 32,
    "model.patch_size": 8,
    "model.width": 32,
    "model.depth": 2,
    "model.heads": 4,
    "model.decoder_width": 16,
    "model.decoder_depth": 1,
    "model.decoder_heads": 2,
    "train.epochs": 2,
    "train.batch_size": 8,
    "device": "cpu",
}


def blocks(language: str, file: str = "README.md") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / file).read_text(encoding="utf-8"), re.M | re.S)


def commands(file: str = "README.md") -> list[str]:
    lines = "\n".join(blocks("bash", file)).splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip()]
