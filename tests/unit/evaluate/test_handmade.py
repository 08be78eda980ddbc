"""Features by hand, against what they are said to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unmask.config.load import check_config
from unmask.data.sources import open_source
from unmask.errors import DataError
from unmask.evaluate.handmade import Handmade, fields, oriented_gradients


def stripes(side: int, turn: float) -> np.ndarray:
    """(1, side, side, 1) waves whose brightness changes in the direction `turn`, radians from the x axis."""
    y, x = np.mgrid[:side, :side]
    return (0.5 + 0.5 * np.sin((x * np.cos(turn) + y * np.sin(turn)) * 0.8)).astype(np.float32)[None, ..., None]


@pytest.mark.parametrize("side", [32, 45, 128])
@pytest.mark.parametrize("bin", [0, 2, 5, 8])
def test_an_orientation_is_in_its_bin(side: int, bin: int) -> None:
    blocks = oriented_gradients(stripes(side, bin * np.pi / 9))
    assert blocks.shape == (1, 7, 7, 36)
    assert blocks.reshape(-1, 9).sum(0).argmax() == bin


def test_the_sign_of_a_gradient_does_not_count() -> None:
    images = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    np.testing.assert_allclose(oriented_gradients(1 - images), oriented_gradients(images), atol=1e-4)


def test_blocks_are_of_length_one_and_flat_ground_is_nothing() -> None:
    images = np.random.default_rng(0).random((2, 40, 24, 3), np.float32)
    np.testing.assert_allclose((oriented_gradients(images) ** 2).sum(-1), 1, rtol=0.01)
    assert not oriented_gradients(np.full_like(images, 0.7)).any()


@pytest.mark.parametrize(("channels", "colours"), [(1, 4), (3, 64), (12, 0)])
def test_fields_and_colours(channels: int, colours: int) -> None:
    image = np.zeros((1, 16, 16, channels), np.float32)
    image[:, :4, 4:8] = 1.0
    found = fields(image)[0]
    assert found.size == 2 * 16 * channels + colours
    mean = found[: 16 * channels].reshape(4, 4, channels)
    assert mean[0, 1].tolist() == [1.0] * channels
    assert mean.sum() == channels
    if colours:
        seen = found[-colours:] ** 2
        assert seen[0] == pytest.approx(15 / 16)
        assert seen[-1] == pytest.approx(1 / 16)


def test_they_tell_stripes_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for name, turn in (("across", 0.0), ("slanted", 0.9), ("down", np.pi / 2)):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(6):
                image = stripes(24, turn)[0, :, :, 0] * 150 + rng.integers(0, 100, (24, 24))
                Image.fromarray(image.astype(np.uint8)).save(tmp_path / part / name / f"{i}.png")
    (tmp_path / "train" / "down" / "broken.png").write_bytes(b"no image")
    config = check_config(
        {
            "task": "finetune",
            "model": {"image_size": 24, "patch_size": 8, "channels": 1},
            "data": {"mean": [0.5], "std": [0.5], "max_bad_share": 0.1},
        }
    )
    sources = [open_source(str(tmp_path / part), key="x", labels=True) for part in ("train", "val")]
    handmade = Handmade(sources[0], config)
    train, val = (handmade.features(source, "") for source in sources)
    assert (train.labels == -1).sum() == 1
    strict = config.model_copy(update={"data": config.data.model_copy(update={"max_bad_share": 0.01})})
    with pytest.raises(DataError, match=r"1 of 19 images .* cannot be decoded.*such as down/broken\.png"):
        Handmade(sources[0], strict).features(sources[0], "train")
    assert handmade.fit(train, 3).accuracy(val, np.arange(18)) > 0.9


@pytest.mark.parametrize(
    ("height", "width", "described"),
    [(24, 24, 9 * 400), (7, 40, 0), (224, 96, 9 * 400)],
    ids=["small", "too small for a dictionary", "large and narrow"],
)
def test_images_are_shrunk_to_32_pixels_and_described_in_three_ways(
    height: int, width: int, described: int, tmp_path: Path
) -> None:
    for i in range(2):
        (tmp_path / f"{i}").mkdir()
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (height, width), np.uint8)).save(
            tmp_path / f"{i}" / "0.png"
        )
    source = open_source(str(tmp_path), key="x", labels=True)
    model = {"image_size": [height, width], "patch_size": 1, "channels": 1}
    config = check_config({"task": "finetune", "model": model, "data": {"mean": [0.5], "std": [0.5]}})
    handmade = Handmade(source, config)
    assert sum(handmade.widths[2:]) == described
    assert handmade.features(source, "").values.shape == (2, sum(handmade.widths))


def test_an_image_and_its_mirror_image_are_the_same_where_left_and_right_mean_nothing(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24), np.uint8)
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "0.png")
    Image.fromarray(pixels[:, ::-1].copy()).save(tmp_path / "a" / "1.png")
    source = open_source(str(tmp_path), key="x", labels=True)
    model = {"image_size": 24, "patch_size": 8, "channels": 1}
    for flip, same in ((0.5, True), (0.0, False)):
        data = {"mean": [0.5], "std": [0.5], "flip": flip, "eval_crop": 1}
        config = check_config({"task": "finetune", "model": model, "data": data})
        one, other = Handmade(source, config).features(source, "").values
        assert np.allclose(one, other, atol=1e-6) == same
