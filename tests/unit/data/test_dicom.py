"""DICOM: files made here by pydicom, and those that come with it, by scanners and other libraries."""

from __future__ import annotations

import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.pixels import get_decoder
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from unmask.cli import main
from unmask.data.decode.picture import DecodeError, FormError
from unmask.data.decode.raster import open_image
from unmask.data.packs.recode import recode
from unmask.data.sources import open_source

MANY = 10**8
HOUNSFIELD = np.linspace(-1000, 2000, 48).reshape(6, 8).round().astype(np.int16)


def dicom(pixels: NDArray[Any], *, mark: bool = True, **tags: Any) -> bytes:
    """A file of (H, W), (frames, H, W) or (H, W, 3) pixels."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    colour = pixels.ndim == 3 and pixels.shape[2] == 3
    file.SamplesPerPixel, file.PhotometricInterpretation = (3, "RGB") if colour else (1, "MONOCHROME2")
    if colour:
        file.PlanarConfiguration = 0
    elif pixels.ndim == 3:
        file.NumberOfFrames = len(pixels)
    file.Rows, file.Columns = pixels.shape[:2] if colour or pixels.ndim == 2 else pixels.shape[1:]
    file.BitsAllocated = file.BitsStored = 8 * pixels.itemsize
    file.HighBit, file.PixelRepresentation = file.BitsStored - 1, int(pixels.dtype.kind == "i")
    file.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(file, name, value)
    out = BytesIO()
    file.save_as(out, enforce_file_format=mark)
    return out.getvalue()


def shown(data: bytes, dtype: str = "uint8", channels: int = 1, **options: Any) -> NDArray[Any]:
    pixels = open_image(data, channels, dtype, MANY, **options).pixels()
    return pixels[:, :, 0] if channels == 1 else pixels


CT = {"RescaleSlope": 2, "RescaleIntercept": -1024}
STORED = ((HOUNSFIELD + 1024) // 2).astype(np.uint16)
UNITS = STORED * 2.0 - 1024


def test_window_of_the_file():
    data = dicom(STORED, **CT, WindowCenter=40, WindowWidth=400)
    expected = np.clip((UNITS - 39.5) / 399 + 0.5, 0, 1)
    assert_array_equal(shown(data), np.rint(255 * expected))
    assert_array_equal(shown(data, "uint16"), np.rint(65535 * expected))


def test_several_windows_and_other_functions():
    two = dicom(STORED, **CT, WindowCenter=[40, 600], WindowWidth=[400, 2000])
    assert_array_equal(shown(two), shown(dicom(STORED, **CT, WindowCenter=40, WindowWidth=400)))
    exact = dicom(STORED, **CT, WindowCenter=40, WindowWidth=400, VOILUTFunction="LINEAR_EXACT")
    assert_array_equal(shown(exact), np.rint(255 * np.clip((UNITS - 40) / 400 + 0.5, 0, 1)))
    sigmoid = dicom(STORED, **CT, WindowCenter=40, WindowWidth=400, VOILUTFunction="SIGMOID")
    assert_array_equal(shown(sigmoid), np.rint(255 / (1 + np.exp(-4 * (UNITS - 40) / 400))))


def test_without_a_window_from_the_least_to_the_greatest():
    assert_array_equal(shown(dicom(STORED)), np.rint(255.0 * (STORED - STORED.min()) / np.ptp(STORED)))


def test_voi_lut():
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4, 0, 16], np.array([0, 1000, 30000, 65535], "<u2").tobytes()
    item = np.array([[0, 1], [2, 9]], np.uint16)
    data = dicom(item, VOILUTSequence=Sequence([table]))
    assert_array_equal(shown(data), np.rint(np.array([[0, 1000], [30000, 65535]]) / 257))


def test_monochrome1_is_inverted():
    plain = dicom(STORED, **CT, WindowCenter=40, WindowWidth=400)
    inverted = dicom(STORED, **CT, WindowCenter=40, WindowWidth=400, PhotometricInterpretation="MONOCHROME1")
    assert_allclose(shown(inverted), 255.0 - shown(plain), atol=1)
    one, other = (shown(each, value_range=(-100.0, 300.0)) for each in (plain, inverted))
    assert_allclose(other, 255.0 - one, atol=1)


def test_float32_is_the_rescaled_value_and_a_range_replaces_the_window():
    data = dicom(STORED, **CT, WindowCenter=40, WindowWidth=400)
    assert_array_equal(shown(data, "float32"), UNITS)
    assert_array_equal(shown(data, value_range=(-1000.0, 1000.0)), np.rint(255 * np.clip((UNITS + 1000) / 2000, 0, 1)))


def test_padding_is_no_data():
    pixels = np.array([[-2000, 5], [7, 9]], np.int16)
    seen = open_image(dicom(pixels, PixelPaddingValue=-2000), 1, "float32", MANY).pixels()
    assert isinstance(seen, np.ma.MaskedArray)
    assert seen[:, :, 0].mask.tolist() == [[True, False], [False, False]]
    small = shown(dicom(pixels, PixelPaddingValue=-2000))
    assert np.asarray(small).ravel()[1:].tolist() == [0, 128, 255]
    keyed = open_image(dicom(pixels), 1, "float32", MANY, nodata=7).pixels()
    assert keyed[:, :, 0].mask.tolist() == [[False, False], [True, False]]


def test_frames_are_channels_or_one_is_named():
    pixels = np.arange(4 * 6 * 5, dtype=np.uint8).reshape(4, 6, 5)
    data = dicom(pixels)
    assert_array_equal(shown(data, "float32", 4), pixels.transpose(1, 2, 0))
    for frame in (0, 2, -1):
        assert_array_equal(shown(data, "float32", frame=frame), pixels[frame])
    with pytest.raises(FormError, match=r"has 4 frames; set data\.frame=N.* or model\.channels=4"):
        shown(data)
    with pytest.raises(DecodeError, match=r"has 4 frames, of which data\.frame=4 is none"):
        shown(data, frame=4)


def test_each_frame_of_an_enhanced_file_has_its_own_rescaling():
    groups = []
    for slope in (1, 10):
        transformation = Dataset()
        transformation.RescaleSlope, transformation.RescaleIntercept, transformation.RescaleType = slope, 0, "US"
        group = Dataset()
        group.PixelValueTransformationSequence = Sequence([transformation])
        groups.append(group)
    data = dicom(np.full((2, 3, 4), 7, np.uint16), PerFrameFunctionalGroupsSequence=Sequence(groups))
    assert shown(data, "float32", 2)[0, 0].tolist() == [7, 70]


@pytest.mark.parametrize(
    "tags", [{"RescaleSlope": 0, "RescaleIntercept": 0}, {"RescaleSlope": 0, "RescaleIntercept": 5}]
)
def test_a_rescaling_that_leaves_nothing_is_refused(tags: dict[str, Any]):
    with pytest.raises(DecodeError, match="RescaleSlope or lookup table makes one value of all its pixels"):
        shown(dicom(STORED, **tags))
    assert not shown(dicom(np.full_like(STORED, 7), **CT)).any()  # an empty frame is one


def test_colour_and_palette():
    colour = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    assert_array_equal(shown(dicom(colour), channels=3), colour)
    palette = get_testdata_file("examples_palette.dcm")
    assert isinstance(palette, str)
    pixels = shown(Path(palette).read_bytes(), channels=3)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    assert pixels.std(2).max() > 10


def test_compressions(tmp_path: Path):
    data = pydicom.dcmread(BytesIO(dicom(STORED, **CT)))
    data.compress(RLELossless)
    out = BytesIO()
    data.save_as(out)
    assert_array_equal(shown(out.getvalue(), "float32"), UNITS)
    data.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    out = BytesIO()
    data.save_as(out)
    with pytest.raises(FormError, match=r"compressed as JPEG Lossless.*pip install pylibjpeg"):
        shown(out.getvalue())


SHIPPED = {
    "CT_small.dcm": (128, 128, 1),
    "MR_small.dcm": (64, 64, 1),
    "MR_small_bigendian.dcm": (64, 64, 1),
    "MR_small_implicit.dcm": (64, 64, 1),
    "MR_small_RLE.dcm": (64, 64, 1),
    "MR_small_padded.dcm": (64, 64, 1),
    "JPEG2000.dcm": (1024, 256, 1),
    "SC_rgb_jpeg_dcmtk.dcm": (100, 100, 3),
    "SC_rgb_rle.dcm": (100, 100, 3),
    "SC_ybr_full_422_uncompressed.dcm": (100, 100, 3),
    "examples_overlay.dcm": (484, 300, 1),
    "rtdose_1frame.dcm": (10, 10, 1),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_files_of_others(name: str):
    path = get_testdata_file(name)
    assert isinstance(path, str)
    height, width, channels = SHIPPED[name]
    image = open_image(Path(path).read_bytes(), channels, "uint8", MANY)
    assert sorted((image.height, image.width)) == sorted((height, width))
    assert image.pixels().std() > 5


@pytest.mark.parametrize("name", ["rtplan.dcm", "ExplVR_LitEndNoMeta.dcm"])
def test_files_without_pixels(name: str):
    path = get_testdata_file(name)
    assert isinstance(path, str)
    with pytest.raises(DecodeError, match="holds no pixels"):
        shown(Path(path).read_bytes())


def test_damage_is_an_error_of_ours():
    data = dicom(STORED, **CT, WindowCenter=40, WindowWidth=400)
    rng = np.random.default_rng(0)
    for _ in range(60):
        broken = bytearray(data[: int(rng.integers(140, len(data) + 1))])
        for place in rng.integers(132, len(broken), 3):
            broken[place] = rng.integers(256)
        try:
            shown(bytes(broken))
        except DecodeError:
            continue
    huge = dicom(STORED, NumberOfFrames=2_000_000_000)
    with pytest.raises(DecodeError):
        open_image(huge, 1, "uint8", MANY)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Class folders with a suffix, without, and beside a DICOMDIR."""
    for place in ("data/a/1.dcm", "data/a/2.DICOM", "data/b/IM-0001", "data/b/1.2.840.55"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        tilt = np.arange(32 * 32).reshape(32, 32) % (7 + len(place))
        (tmp_path / place).write_bytes(dicom(tilt.astype(np.uint16) * 99, **CT, WindowCenter=0, WindowWidth=1500))
    (tmp_path / "data/DICOMDIR").write_bytes((tmp_path / "data/a/1.dcm").read_bytes())
    return tmp_path / "data"


def test_found_by_suffix_and_by_content(study: Path, capsys: pytest.CaptureFixture[str]):
    source = open_source(str(study), key="data.train", labels=True)
    assert [source.name(i) for i in range(len(source))] == ["a/1.dcm", "a/2.DICOM", "b/1.2.840.55", "b/IM-0001"]
    assert main(["stats", str(study)]) == 0
    assert "model.channels=1 data.dtype=uint16" in capsys.readouterr().out
    assert main(["check", str(study), "--out", str(study.parent / "check")]) == 0


def test_a_run(study: Path, tmp_path: Path):
    tiny = "width=16 depth=1 heads=2 decoder_width=16 decoder_depth=1 decoder_heads=2 image_size=16 patch_size=8"
    settings = [f"model.{each}" for each in tiny.split()]
    settings += ["train.batch_size=4", "train.epochs=1", "device=cpu", "optimizer.warmup_epochs=0"]
    assert main(["pretrain", "mae-vit-tiny", *settings, f"data.train={study}", f"output={tmp_path / 'run'}"]) == 0
    assert not (tmp_path / "run" / "bad_files.txt").exists()


def test_without_pydicom_the_line_says_what_to_install(study: Path):
    blocked = "import sys; sys.modules['pydicom'] = None; from unmask.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", blocked, "stats", str(study)], capture_output=True, text=True)
    assert done.returncode == 3
    assert "DICOM is read by pydicom; pip install 'unmask[dicom]'" in done.stderr


def test_a_pack_keeps_the_file_and_makes_no_smaller_copy():
    data = dicom(STORED, **CT)
    assert recode(data, None, 90, max_pixels=MANY) is data
    with pytest.raises(DecodeError, match="pack without --short-side"):
        recode(data, 4, 90, max_pixels=MANY)


def test_a_pack_of_studies_is_read_as_they_are(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(3):
        (frames / f"{number}.dcm").write_bytes(dicom(np.stack([STORED + number * 9] * 3), **CT))
    for images, settings in ((study, []), (frames, ["--set", "data.frame=-1"])):
        pack = tmp_path / f"pack of {images.name}"
        assert main(["pack", str(images), str(pack), *settings]) == 0
        assert main(["pack", "--verify", str(pack)]) == 0
        capsys.readouterr()
        figures: list[list[str]] = []
        for place in (images, pack):
            assert main(["stats", str(place), *settings]) == 0
            figures.append(capsys.readouterr().out.splitlines()[-2:])
        assert figures[0] == figures[1]


def test_doctor_names_compressions_without_a_decoder(capsys: pytest.CaptureFixture[str]):
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    for name, syntax in (("JPEG Lossless", JPEGLosslessSV1), ("JPEG-LS", JPEGLSLossless), ("RLE", RLELossless)):
        assert (f"no DICOM compressed as {name}" in said) != get_decoder(syntax).is_available
