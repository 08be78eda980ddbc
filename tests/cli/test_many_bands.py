"""Images of 12 bands and 16 bits, from `unmask stats` to a picture, as a user types it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from unmask.checkpoint import load_newest
from unmask.cli import main
from unmask.report.log import read_log

BANDS, SIDE, COUNT = 12, 32, 16
TINY = [
    *("model.image_size=32", "model.patch_size=8", "model.width=48", "model.depth=2", "model.heads=4"),
    *("model.decoder_width=48", "model.decoder_depth=1", "model.decoder_heads=4", "device=cpu"),
    *("optimizer.base_lr=0.05", "optimizer.warmup_epochs=0", "train.batch_size=8", "train.epochs=20"),
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Slopes of brightness in every band, with values as satellites send them: a tenth of the range."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    for number in range(COUNT):
        slope = rng.normal(size=2)
        light = (slope[0] * y + slope[1] * x)[:, :, None] * np.linspace(0.5, 2, BANDS)
        pixels = (3000 + 1000 * light + rng.normal(0, 30, (SIDE, SIDE, BANDS))).clip(0, 65535).astype(np.uint16)
        path = tmp_path / "scenes" / f"{number:02}.tif"
        path.parent.mkdir(exist_ok=True)
        tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig")
    return tmp_path / "scenes"


def test_stats_pretrain_reconstruct(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", str(scenes)]) == 0
    *table, model, statistics = capsys.readouterr().out.splitlines()
    assert model == "model.channels=12 data.dtype=uint16"
    pixels = np.concatenate([tifffile.imread(path).reshape(-1, BANDS) for path in scenes.iterdir()]) / 65535
    keys = dict(pair.split("=") for pair in statistics.split(" "))
    for key, expected in (("data.mean", pixels.mean(0)), ("data.std", pixels.std(0))):
        np.testing.assert_allclose([float(v) for v in keys[key].strip("[]").split(",")], expected, rtol=1e-5)
    assert "16 images: 16 12 x uint16" in table

    pasted = [*model.split(" "), *statistics.split(" ")]
    run = tmp_path / "run"
    assert main(["pretrain", "mae-vit-tiny", f"data.train={scenes}", *TINY, *pasted, f"output={run}"]) == 0
    losses = [row["loss"] for row in read_log(run / "metrics.jsonl")]
    assert len(losses) == 40
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    kernel = load_newest(run / "checkpoints").state.weights["patch_embed.proj.weight"]
    assert kernel.shape == (48, BANDS, 8, 8)

    picture = tmp_path / "picture.png"
    assert main(["reconstruct", str(run), str(scenes), "--count", "2", "--out", str(picture)]) == 0
    with Image.open(picture) as drawn:
        assert np.asarray(drawn.convert("L")).std() > 10


def test_a_recipe_for_colour_refuses_with_the_keys_to_set(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", "mae-vit-tiny", f"data.train={scenes}", *TINY, f"output={tmp_path / 'run'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "has 12 channels of uint16, the run 3; set model.channels=12 data.dtype=uint16" in line
    assert line.endswith("data.mean and data.std that `unmask stats` prints")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        (["data.dtype=uint16"], "data.dtype=uint16 with model.channels=3"),
        (["data.dtype=float32"], "data.dtype=float32 with model.channels=3"),
        (
            ["model.channels=2", "data.mean=[0.5,0.5]", "data.std=[1,1]"],
            "data.dtype=uint8 with model.channels=2",
        ),
    ],
)
@pytest.mark.parametrize(
    ("policy", "key", "off"),
    [
        ("augment.policy=rand-m9-mstd0.5-inc1", "policy", "null"),
        ("augment.policy=3a", "policy", "null"),
        ("augment.color_jitter=0.4", "color_jitter", "0"),
    ],
)
def test_what_is_defined_on_8_bit_colour_is_refused_elsewhere(
    settings: list[str], kind: str, policy: str, key: str, off: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", "mae-vit-tiny", "data.train=nowhere", *settings, policy]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"augment.{key} is for 8-bit images of 1 or 3 channels, not {kind}; set augment.{key}={off}" in line
