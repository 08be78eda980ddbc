"""Values that are no data: nodata of GeoTIFF and of `data.nodata`, NaN, infinity. Files are written by tifffile."""

import json
import re
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from PIL import Image

from unmask.check import check
from unmask.cli import main
from unmask.config.schema import AugmentConfig, DataConfig, ModelConfig
from unmask.data.batch import Batch, Needs
from unmask.data.decode.picture import DecodeError, Picture
from unmask.data.decode.raster import Raster, open_image
from unmask.data.loader.pipeline import eval_batches, train_batches
from unmask.data.packs.recode import recode
from unmask.data.sources.in_memory import InMemorySource
from unmask.errors import ConfigError

MANY = 10**8
RNG = np.random.default_rng(0)
HOLE = np.s_[4:12, 8:20]
LOWEST = float(np.finfo(np.float64).min)


def geotiff(pixels: NDArray[Any], nodata: str | None = None, **options: Any) -> bytes:
    file = BytesIO()
    tags = [] if nodata is None else [(42113, "s", 0, nodata, True)]
    contig = {"planarconfig": "contig"} if pixels.ndim == 3 else {}
    tifffile.imwrite(file, pixels, extratags=tags, **{"photometric": "minisblack", "metadata": None} | contig | options)
    return file.getvalue()


def npy(array: NDArray[Any]) -> bytes:
    file = BytesIO()
    np.save(file, array)
    return file.getvalue()


def scene(bands: int, dtype: str, hole: float | None, *, band: int | None = None, size: int = 32) -> NDArray[Any]:
    """(size, size, bands) of values from 1 on, with `hole` in a box of all bands, or of one."""
    pixels = RNG.integers(1, 200, (size, size, bands)).astype(dtype)
    if hole is not None:
        with np.errstate(over="ignore"):
            pixels[(*HOLE, slice(None) if band is None else band)] = np.array(hole, np.float64).astype(dtype)
    return pixels


def gaps(shape: tuple[int, ...], band: int | None = None) -> NDArray[np.bool_]:
    mask = np.zeros(shape, bool)
    mask[(*HOLE, slice(None) if band is None else band)] = True
    return mask


CASES: dict[str, tuple[bytes, int, str, float | None, int | None]] = {
    "tag, 12 bands of uint16": (geotiff(scene(12, "uint16", 0), "0"), 12, "uint16", None, None),
    "tag, float32": (geotiff(scene(4, "float32", -9999), "-9999.0"), 4, "float32", None, None),
    "tag, lowest float64": (geotiff(scene(2, "float64", LOWEST), repr(LOWEST)), 2, "float32", None, None),
    "tag as GDAL shortens it": (
        geotiff(scene(2, "float32", np.finfo(np.float32).min), "-3.40282346638529e+38"),
        2,
        "float32",
        None,
        None,
    ),
    "tag, 8-bit grey": (geotiff(scene(1, "uint8", 255)[:, :, 0], "255"), 1, "uint8", None, None),
    "tag, 8-bit colour": (geotiff(scene(3, "uint8", 0), "0", photometric="rgb"), 3, "uint8", None, None),
    "tag in one band only": (geotiff(scene(4, "uint16", 0, band=2), "0"), 4, "uint16", None, 2),
    "key": (npy(scene(3, "uint8", 0)), 3, "uint8", 0, None),
    "key over tag": (geotiff(scene(5, "uint16", 7777), "9"), 5, "uint16", 7777, None),
    "NaN": (npy(scene(3, "float32", np.nan)), 3, "float32", None, None),
    "NaN as a tag": (geotiff(scene(3, "float32", np.nan), "nan"), 3, "float32", None, None),
    "infinity": (npy(scene(6, "float32", -np.inf)), 6, "float32", None, None),
    "beyond float32": (npy(scene(2, "float64", 1e300)), 2, "float32", None, None),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_no_data_is_masked_and_the_rest_as_it_was(case: str):
    data, channels, dtype, nodata, band = CASES[case]
    pixels = open_image(data, channels, dtype, MANY, None, nodata).pixels()
    assert isinstance(pixels, np.ma.MaskedArray)
    assert pixels.dtype == dtype
    assert_array_equal(np.ma.getmaskarray(pixels), gaps(pixels.shape, band))
    assert np.isfinite(np.asarray(pixels)).all()
    assert pixels.min() >= 1
    assert pixels.max() < 200


@pytest.mark.parametrize("case", CASES)
def test_a_smaller_copy_averages_the_data_alone(case: str):
    data, channels, dtype, nodata, _ = CASES[case]
    small = open_image(data, channels, dtype, MANY, None, nodata).crop((0, 0, 32, 32), (8, 8), Image.Resampling.BOX)
    mask = np.ma.getmaskarray(small)
    assert mask.any()
    assert mask.sum() < gaps((8, 8, channels)).size / 4
    assert (np.asarray(small)[~mask] > 30).all()  # no gap is mixed in: the mean of 16 values of 1 to 199


@pytest.mark.parametrize("resample", [Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.NEAREST])
def test_an_even_picture_stays_even_around_a_gap(resample: Image.Resampling):
    pixels = np.full((32, 32, 2), 1234.0, np.float32)
    pixels[HOLE] = np.nan
    small = Raster(npy(pixels), 2, "float32", MANY).crop((0, 0, 32, 32), (11, 13), resample)
    assert 0 < np.ma.getmaskarray(small).mean() < 0.3
    assert_allclose(small.compressed(), 1234, rtol=1e-5)


def test_crops_of_a_large_file_that_is_read_in_parts():
    pixels = RNG.integers(1, 200, (1100, 1100, 2)).astype(np.uint16)
    pixels[100:200, 100:300] = 0
    raster = Raster(geotiff(pixels, "0", tile=(256, 256)), 2, "uint16", MANY)
    assert isinstance(raster.crop((100, 100, 200, 100), (16, 16), Image.Resampling.BICUBIC), np.ma.MaskedArray)
    beside = raster.crop((400, 400, 64, 64), (64, 64), Image.Resampling.BICUBIC)
    assert type(beside) is np.ndarray
    assert_array_equal(beside, pixels[400:464, 400:464])


def test_luma_needs_all_three_and_grey_gives_three():
    colour = scene(3, "uint8", 0, band=1)
    grey = open_image(geotiff(colour, "0", photometric="rgb"), 1, "uint8", MANY).pixels()
    assert_array_equal(np.ma.getmaskarray(grey), gaps((32, 32, 1)))
    three = open_image(geotiff(scene(1, "uint8", 0)[:, :, 0], "0"), 3, "uint8", MANY).pixels()
    assert_array_equal(np.ma.getmaskarray(three), gaps((32, 32, 3)))


def test_a_palette_has_its_nodata_among_the_entries():
    indices = scene(1, "uint8", 0)[:, :, 0]
    image = Image.fromarray(indices, "L")
    image.putpalette(RNG.integers(0, 256, 768).astype(np.uint8).tobytes())
    file = BytesIO()
    image.save(file, "TIFF", tiffinfo={42113: "0"})
    assert image.mode == "P"
    pixels = open_image(file.getvalue(), 3, "uint8", MANY).pixels()
    assert_array_equal(np.ma.getmaskarray(pixels), gaps((32, 32, 3)))


def test_16_bits_in_an_8_bit_model_are_as_without_a_tag():
    pixels = RNG.integers(1, 65536, (32, 32)).astype(np.uint16)
    plain = open_image(geotiff(pixels), 3, "uint8", MANY).pixels()
    tagged = open_image(geotiff(pixels, "0"), 3, "uint8", MANY).pixels()
    assert_array_equal(tagged, plain)


@pytest.mark.parametrize("nodata", [None, "-9999", "256"])
def test_without_such_values_nothing_changes(nodata: str | None):
    pixels = scene(3, "uint8", None)
    raster = Raster(geotiff(pixels, nodata, photometric="rgb"), 3, "uint8", MANY).pixels()
    assert type(raster) is np.ndarray
    assert_array_equal(raster, pixels)
    assert isinstance(open_image(geotiff(pixels, photometric="rgb"), 3, "uint8", MANY), Picture)


@pytest.mark.parametrize(
    "data",
    [
        geotiff(np.full((32, 32, 4), 3, np.uint16), "3"),
        npy(np.full((8, 8, 3), np.nan, np.float32)),
        npy(np.full((8, 8, 3), 1e300)),
    ],
)
def test_an_image_without_any_data_is_refused(data: bytes):
    channels, dtype = (4, "uint16") if data[:2] == b"II" else (3, "float32")
    with pytest.raises(DecodeError, match="holds no data"):
        open_image(data, channels, dtype, MANY)


def test_a_tag_that_is_no_number_names_the_key():
    data = geotiff(scene(4, "uint16", 0), "none")
    with pytest.raises(DecodeError, match=r"GDAL_NODATA='none', which is no number; set data\.nodata"):
        open_image(data, 4, "uint16", MANY)
    assert isinstance(open_image(data, 4, "uint16", MANY, None, 0).pixels(), np.ma.MaskedArray)


# --- batches ---

MODEL = ModelConfig(image_size=(16, 16), patch_size=8, channels=4, width=16, depth=1, heads=2, decoder_heads=1)
DATA = DataConfig(dtype="uint16", mean=(0.1, 0.2, 0.3, 0.4), std=(0.1,) * 4, nodata=0)
FILL = np.rint(65535 * np.array(DATA.mean)).astype(np.uint16)


def batches(images: list[bytes], data: DataConfig, *, valid_pixels: bool, steps: int = 3, workers: int = 0):
    source = InMemorySource(images, key="data.train", dtype=data.dtype)
    return [
        batch
        for step in train_batches(
            source,
            needs=Needs(valid_pixels=valid_pixels),
            model=MODEL,
            data=data.model_copy(update={"workers": workers}),
            augment=AugmentConfig(),
            seed=0,
            batch_size=4,
            accumulate=1,
            start_step=0,
            stop_step=steps,
        )
        for batch in step
    ]


def test_gaps_are_filled_with_the_mean_and_told_in_the_batch():
    images = [geotiff(scene(4, "uint16", 0 if number % 2 else None)) for number in range(4)]
    seen: list[bool] = []
    for batch in batches(images, DATA, valid_pixels=True):
        valid = batch.inputs["valid_pixels"]
        assert valid.shape == batch.images.shape
        seen += valid.all((1, 2, 3)).tolist()
        assert_array_equal(batch.images[~valid], np.broadcast_to(FILL, batch.images.shape)[~valid])
    assert any(seen)
    assert not all(seen)
    (plain, *_) = batches(images, DATA, valid_pixels=False)
    assert "valid_pixels" not in plain.inputs


def test_batches_without_gaps_hold_what_they_always_did():
    images = [geotiff(scene(4, "uint16", None)) for _ in range(4)]
    for batch in batches(images, DATA, valid_pixels=True):
        assert "valid_pixels" not in batch.inputs


def test_loader_processes_make_the_same():
    images = [geotiff(scene(4, "uint16", 0 if number == 1 else None)) for number in range(4)]
    ours, theirs = (batches(images, DATA, valid_pixels=True, workers=workers) for workers in (0, 2))
    for one, other in zip(ours, theirs, strict=True):
        assert_array_equal(one.images, other.images)
        assert one.inputs.keys() == other.inputs.keys()
        for name, array in one.inputs.items():
            assert_array_equal(array, other.inputs[name])


def test_evaluation_has_the_mask_too_and_an_empty_image_is_bad():
    images = [geotiff(scene(4, "uint16", 0)), geotiff(np.zeros((32, 32, 4), np.uint16))]
    source = InMemorySource(images, key="images", dtype="uint16")
    (batch,) = eval_batches(source, needs=Needs(valid_pixels=True), model=MODEL, data=DATA, seed=0, batch_size=2)
    assert isinstance(batch, Batch)
    assert batch.valid is not None
    assert batch.valid.tolist() == [True, False]
    assert not batch.inputs["valid_pixels"][0].all()


def test_a_policy_would_move_pixels_away_from_their_mask():
    images = [npy(scene(3, "uint8", 0))] * 4
    source = InMemorySource(images, key="data.train", dtype="uint8")
    data = DataConfig(nodata=0)
    steps = train_batches(
        source,
        needs=Needs(valid_pixels=True),
        model=MODEL.model_copy(update={"channels": 3}),
        data=data,
        augment=AugmentConfig(policy="3a"),
        seed=0,
        batch_size=4,
        accumulate=1,
        start_step=0,
        stop_step=1,
    )
    with pytest.raises(ConfigError, match=r"set augment\.policy=null"):
        list(steps)


# --- commands ---


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Six of 4 bands: two whole, two with a gap, one mostly gap, one all gap."""
    (tmp_path / "scenes").mkdir()
    for number in range(6):
        pixels = scene(4, "float32", -9999.0 if number in (2, 3) else None)
        if number >= 4:
            pixels[: 24 if number == 4 else 32] = -9999
        (tmp_path / "scenes" / f"{number}.tif").write_bytes(geotiff(pixels, "-9999"))
    return tmp_path / "scenes"


def test_stats_are_of_the_data_alone(scenes: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["stats", str(scenes)]) == 3  # one of six has nothing
    capsys.readouterr()
    assert main(["stats", str(scenes), "--set", "data.max_bad_share=0.2"]) == 0
    said = capsys.readouterr().out
    pixels = np.concatenate([tifffile.imread(scenes / f"{number}.tif").reshape(-1, 4) for number in range(5)])
    data = [band[band != -9999].astype(np.float64) for band in pixels.T]
    (mean,) = [line.split("data.mean=[")[1].split("]")[0] for line in said.splitlines() if "data.mean" in line]
    (std,) = [line.split("data.std=[")[1].split("]")[0] for line in said.splitlines() if "data.std" in line]
    assert_allclose([float(v) for v in mean.split(",")], [band.mean() for band in data], rtol=1e-5)
    assert_allclose([float(v) for v in std.split(",")], [band.std() for band in data], rtol=1e-5)
    assert "no data: 18.75% of the values" in said
    assert "mostly no data: 4.tif" in said
    assert "left out: 5.tif: holds no data" in said


def test_the_key_is_for_stats_and_check_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "data").mkdir()
    for number in range(3):
        Image.fromarray(scene(3, "uint8", 0)).save(tmp_path / "data" / f"{number}.png")
    assert main(["stats", str(tmp_path / "data"), "--set", "data.nodata=0"]) == 0
    said = capsys.readouterr().out
    assert "no data: 9.38% of the values" in said
    assert "data.nodata=0" in said.splitlines()[-2]
    assert main(["stats", str(tmp_path / "data"), "--set", "data.flip=0"]) == 2
    assert "data.flip: `unmask stats` takes model.channels, data.dtype" in capsys.readouterr().err


def test_check_names_what_is_mostly_no_data(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    check(str(scenes), tmp_path / "out")
    found = json.loads((tmp_path / "out" / "check.json").read_text())
    assert found["nodata"] == ["4.tif"]
    assert found["broken"] == ["5.tif"]
    assert "mostly no data" in capsys.readouterr().out


def test_a_pack_keeps_what_is_no_data_or_refuses():
    floats = recode(geotiff(scene(4, "float32", -9999), "-9999"), 16, 90, max_pixels=MANY)
    small = open_image(floats, 4, "float32", MANY).pixels()
    assert isinstance(small, np.ma.MaskedArray)
    assert small.min() >= 1
    whole = geotiff(scene(4, "uint16", 0), "0")
    assert recode(whole, None, 90, max_pixels=MANY) is whole
    with pytest.raises(DecodeError, match="pack without --short-side"):
        recode(whole, 16, 90, max_pixels=MANY)


RUN = [
    *("model.image_size=16", "model.patch_size=8", "model.channels=4", "model.width=16", "model.depth=1"),
    *("model.heads=2", "model.decoder_width=16", "model.decoder_depth=1", "model.decoder_heads=2"),
    *("data.dtype=float32", "data.mean=[100,100,100,100]", "data.std=[50,50,50,50]", "data.max_bad_share=0.5"),
    *("train.batch_size=4", "train.checkpoint_every=1", "optimizer.warmup_epochs=0", "train.log_every=1"),
    *("train.precision=fp32", "device=cpu"),
]


def test_a_run_leaves_gaps_out_and_says_how_much(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    settings = [*RUN, f"data.train={scenes}", "train.epochs=3"]
    assert main(["pretrain", "mae-vit-tiny", *settings, f"output={tmp_path / 'whole'}"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < row["loss"] < 20 for row in rows if "loss" in row)
    assert "5.tif\tholds no data" in (tmp_path / "whole" / "bad_files.txt").read_text()
    said = capsys.readouterr().out
    assert said.count("some values are no data (data.nodata, NaN, infinity): filled with data.mean") == 1
    share, mostly, shown = re.findall(r"no data: ([\d.]+)% of the values shown; (\d+) of (\d+) images", said)[0]
    assert 5 < float(share) < 60
    assert 0 < int(mostly) < int(shown) == 4 * len(rows)


@pytest.mark.parametrize("recipe", ["mae-vit-tiny", "finetune-vit-tiny"])
def test_a_run_with_gaps_goes_on_as_if_it_had_not_stopped(recipe: str, scenes: Path, tmp_path: Path):
    """Also across loader processes; a classifier is only shown what was filled in."""
    for number in range(6):
        (scenes / str(number % 2)).mkdir(exist_ok=True)
        (scenes / f"{number}.tif").rename(scenes / str(number % 2) / f"{number}.tif")
    run, command = tmp_path / "run", recipe.partition("-")[0].replace("mae", "pretrain")
    settings = [*RUN, f"data.train={scenes}", f"output={run}", "train.epochs=4", "train.keep=9", "augment.policy=null"]
    assert main([command, recipe, *settings]) == 0

    def end() -> list[bytes]:
        return [
            (run / name).read_bytes() for name in ("metrics.jsonl", "checkpoints/step-00000006/weights.safetensors")
        ]

    whole = end()
    for step in sorted((run / "checkpoints").iterdir())[1:]:
        shutil.rmtree(step)
    assert main([command, recipe, *settings, "data.workers=1"]) == 0
    assert end() == whole


def test_a_pack_takes_the_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "data").mkdir()
    for number in range(3):
        Image.fromarray(scene(3, "uint8", 0)).save(tmp_path / "data" / f"{number}.png")
    pack = ["pack", str(tmp_path / "data")]
    assert main([*pack, str(tmp_path / "as is"), "--set", "data.nodata=0"]) == 0
    assert main([*pack, str(tmp_path / "small"), "--short-side", "16", "--set", "data.nodata=0"]) == 3
    assert "values that are no data, which a smaller copy mixes in; pack without" in capsys.readouterr().err
    assert main([*pack, str(tmp_path / "mixed"), "--short-side", "16"]) == 0
    photo = BytesIO()
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(photo, "JPEG")
    assert recode(photo.getvalue(), 16, 90, max_pixels=MANY, nodata=0)[:2] == b"\xff\xd8"
