"""Images given as objects: the same pixels as the files they come from, and one clear refusal of what is not clear."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from PIL import Image

from unmask.data.decode.raster import open_image
from unmask.data.sources import Source, open_source, to_source
from unmask.data.sources.arrays import ArraySource
from unmask.errors import DataError

MANY = 10**7
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (40, 60, 3), np.uint8)
GREY = RGB[:, :, 0]
ALPHA = RNG.integers(0, 256, (40, 60), np.uint8)


def sources(images: Any, *, dtype: str = "uint8", labels: bool = False) -> Source:
    return to_source(images, key="images", labels=labels, dtype=dtype)


def pixels(data: Any, channels: int = 3, dtype: str = "uint8") -> NDArray[Any]:
    return open_image(data, channels, dtype, MANY).pixels()


def rotated(orientation: int) -> dict[str, Any]:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


def with_palette(*, transparency: int | None = None) -> tuple[Image.Image, dict[str, Any]]:
    image = Image.fromarray(RGB).quantize(20)
    return image, {} if transparency is None else {"transparency": transparency}


LZW = {"compression": "tiff_lzw"}
FILES: dict[str, tuple[Image.Image, dict[str, Any]]] = {
    "upright.jpg": (Image.fromarray(RGB), {"quality": 90}),
    "turned.jpg": (Image.fromarray(RGB), {"quality": 90, **rotated(6)}),
    "mirrored.jpg": (Image.fromarray(GREY), rotated(7)),
    "cmyk.jpg": (Image.fromarray(RGB).convert("CMYK"), {}),
    "colour.png": (Image.fromarray(RGB), {}),
    "turned.png": (Image.fromarray(RGB), rotated(8)),
    "alpha.png": (Image.fromarray(np.dstack([RGB, ALPHA])), {}),
    "turned_alpha.png": (Image.fromarray(np.dstack([RGB, ALPHA])), rotated(5)),
    "grey.png": (Image.fromarray(GREY), {}),
    "grey_alpha.png": (Image.fromarray(np.dstack([GREY, ALPHA])), {}),
    "clear_grey.png": (Image.fromarray(GREY), {"transparency": int(GREY[0, 0])}),
    "palette.png": with_palette(),
    "clear_palette.png": with_palette(transparency=3),
    "palette.gif": with_palette(),
    "bits.png": (Image.fromarray(GREY > 127), {}),
    "deep.png": (Image.fromarray(RNG.integers(0, 2**16, (40, 60), np.uint16)), {}),
    "deep.tif": (  # compressed, for Pillow 13 does not turn what it maps from a file
        Image.fromarray(RNG.integers(0, 2**16, (40, 60), np.uint16)),
        {"tiffinfo": {274: 6}, "compression": "tiff_lzw"},
    ),
    "alpha.tif": (Image.fromarray(np.dstack([RGB, ALPHA])), {}),
    "colour.webp": (Image.fromarray(RGB), {"lossless": True, **rotated(6)}),
    "alpha.webp": (Image.fromarray(np.dstack([RGB, ALPHA])), {"lossless": True}),
    "colour.bmp": (Image.fromarray(RGB), {}),
}


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_opened_image_is_what_its_file_is(tmp_path: Path, name: str, loaded: bool):
    image, options = FILES[name]
    path = tmp_path / name
    image.save(path, **options)
    with Image.open(path) as opened:
        if loaded:
            opened.load()
        source = sources([opened])
        assert (len(source), source.name(0), source.labels) == (1, "image 0", None)
        for channels in (1, 3):
            assert_array_equal(pixels(source.read(0), channels), pixels(path.read_bytes(), channels))
        if name.startswith("deep"):
            assert_array_equal(pixels(source.read(0), 1, "uint16"), pixels(path.read_bytes(), 1, "uint16"))
        with Image.open(path) as again:
            assert_array_equal(np.asarray(opened), np.asarray(again))  # still whole


def test_opened_jpeg_is_decoded_at_a_fraction_as_its_file_is(tmp_path: Path):
    Image.fromarray(RGB).resize((900, 600), Image.Resampling.BICUBIC).save(tmp_path / "a.jpg", **rotated(6))
    with Image.open(tmp_path / "a.jpg") as opened:
        crops = [
            open_image(data, 3, "uint8", MANY).crop((20, 30, 500, 600), (64, 64), Image.Resampling.BICUBIC)
            for data in (sources(opened).read(0), (tmp_path / "a.jpg").read_bytes())
        ]
    assert_array_equal(*crops)


def test_changes_to_an_opened_image_count(tmp_path: Path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    Image.fromarray(RGB).resize((600, 400)).save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.png") as opened:
        opened.putpixel((0, 0), (1, 2, 3))
        assert pixels(sources(opened).read(0))[0, 0].tolist() == [1, 2, 3]
    with Image.open(tmp_path / "a.jpg") as opened:
        opened.draft("L", (300, 200))
        assert pixels(sources(opened).read(0), 1).shape == (200, 300, 1)


def test_frame_of_an_animation_is_the_one_sought(tmp_path: Path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "a.tif") as opened:
        opened.seek(1)
        assert pixels(sources(opened).read(0))[0, 0].tolist() == [0, 0, 255]


def test_floating_and_32_bit_images_keep_their_values():
    values = RNG.random((9, 7), np.float32) * 1000
    assert_array_equal(pixels(sources(Image.fromarray(values)).read(0), 1, "float32")[:, :, 0], values)
    whole = np.arange(63, dtype=np.int32).reshape(9, 7) * 10**5
    assert_array_equal(pixels(sources(Image.fromarray(whole)).read(0), 1, "float32")[:, :, 0], whole)


def test_image_whose_file_was_closed_or_is_damaged(tmp_path: Path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened:
        pass
    with pytest.raises(DataError, match=r"^images\[1\] cannot be decoded: "):
        sources([RGB, opened])
    (tmp_path / "half.jpg").write_bytes(b"")
    Image.fromarray(RGB).save(tmp_path / "half.jpg")
    data = (tmp_path / "half.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(data[: len(data) // 2])
    with Image.open(tmp_path / "half.jpg") as opened:  # a bad image, which a model answers with a row of NaN
        source = sources([opened])
    with pytest.raises(DataError, match="cannot be decoded"):
        pixels(source.read(0))


@pytest.mark.parametrize(
    ("images", "shapes"),
    [
        (GREY, [(40, 60, 1)]),
        (RGB, [(40, 60, 3)]),
        (RGB.astype(np.uint16), [(40, 60, 3)]),
        (RNG.random((9, 8, 5)), [(9, 8, 5)]),
        (GREY[:, :, None], [(40, 60, 1)]),
        (np.stack([RGB, RGB, RGB]), [(40, 60, 3)] * 3),
        ([GREY, RGB], [(40, 60, 1), (40, 60, 3)]),
        ((RGB, GREY), [(40, 60, 3), (40, 60, 1)]),
        (np.zeros((1, 1), np.uint8), [(1, 1, 1)]),
    ],
)
def test_arrays_are_taken_as_they_are(images: Any, shapes: list[tuple[int, ...]]):
    source = sources(images)
    read: list[Any] = [source.read(i) for i in range(len(source))]
    assert [data.shape for data in read] == shapes
    given = images if isinstance(images, list | tuple) or images.ndim == 4 else [images]
    for data, array in zip(read, given, strict=True):
        assert data.dtype == array.dtype
        assert_array_equal(data.ravel(), array.ravel())


@pytest.mark.parametrize(
    "shape", [(3, 40, 60), (7, 28, 28), (28, 28, 28), (2, 3, 40, 60), (3,), (2, 2, 9, 9, 3), (0, 5)]
)
def test_unclear_axes_are_refused_with_what_to_do(shape: tuple[int, ...]):
    message = (
        rf"^images is uint8 of shape \({', '.join(map(str, shape))},?\), which is not clearly pixels \(H, W\), "
        r"\(H, W, C\) or \(N, H, W, C\); turn \(C, H, W\) with \.transpose\(1, 2, 0\), and give several grey images "
        r"as \(N, H, W, 1\)$"
    )
    with pytest.raises(DataError, match=message):
        sources(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("dtype", [bool, complex, object])
def test_arrays_without_pixels_are_refused(dtype: type):
    with pytest.raises(DataError, match=r"^images\[0\] is .* not clearly pixels"):
        sources([np.zeros((9, 9), dtype)])


def test_tensors_are_channels_first():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    one = torch.from_numpy(RGB).permute(2, 0, 1)
    assert_array_equal(pixels(sources(one).read(0)), RGB)
    assert_array_equal(pixels(sources(torch.from_numpy(GREY)).read(0), 1)[:, :, 0], GREY)
    several = sources(torch.stack([one, 255 - one]))
    assert len(several) == 2
    assert_array_equal(pixels(several.read(1)), 255 - RGB)
    assert len(sources([one, RGB])) == 2
    trained = one.float().requires_grad_()
    assert_array_equal(pixels(sources(trained, dtype="float32").read(0), 3, "float32"), RGB)
    assert pickle.loads(pickle.dumps(several)).read(0).shape == (40, 60, 3)
    with pytest.raises(
        DataError, match=r"shape \(40, 60, 3\), which is not clearly .*\.permute\(2, 0, 1\).*\(N, 1, H, W\)"
    ):
        sources(torch.from_numpy(RGB))


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_floating_tensors_are_the_pixels_they_were_made_from(kind: str):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    unit = torch.from_numpy(every)[None].to(getattr(torch, kind)) / 255  # as torchvision's ToTensor
    assert_array_equal(pixels(sources(unit).read(0), 1)[:, :, 0], every)
    assert_array_equal(
        pixels(sources(unit, dtype="uint16").read(0), 1, "uint16")[:, :, 0], every.astype(np.uint16) * 257
    )
    assert_array_equal(pixels(sources(unit, dtype="float32").read(0), 1, "float32")[:, :, 0], unit[0].float().numpy())
    half = sources(unit.bfloat16(), dtype="float32").read(0)
    assert isinstance(half, np.ndarray)
    assert half.dtype == np.float32


@pytest.mark.parametrize("values", [(-2.1, 2.6), (0, 255), (0, float("nan"))])
def test_normalised_tensors_are_refused(values: tuple[float, float]):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    tensor = torch.tensor(values, dtype=torch.float32).repeat(3, 9, 9)
    with pytest.raises(DataError, match=r"^images\[1\] has values from .*must have 0 to 1; .*data\.dtype=float32$"):
        sources([RGB, tensor])
    assert len(sources([RGB, tensor], dtype="float32")) == 2


def test_paths_and_bytes(tmp_path: Path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    for images in (
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        data,
        [tmp_path / "a.png"],
        [str(tmp_path / "a.png"), data],
    ):
        assert sources(images).read(0) == data
    assert sources([tmp_path / "a.png"]).name(0) == str(tmp_path / "a.png")
    assert sources(tmp_path).name(0) == "a.png"  # a folder
    np.save(tmp_path / "x.npy", np.stack([RGB]))
    assert isinstance(sources(tmp_path / "x.npy"), ArraySource)
    with pytest.raises(DataError, match=r"nothing\.png is not a file"):
        sources([tmp_path / "nothing.png"])
    with pytest.raises(DataError, match=r"is not a file, and a folder is given alone"):
        sources([tmp_path, tmp_path / "a.png"])
    source = sources([tmp_path / "a.png"])
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"a\.png cannot be read: No such file"):
        source.read(0)


def test_source_is_returned_as_it_is(colours: Path):
    source = open_source(str(colours), key="data.train", labels=True)
    assert sources(source, labels=True) is source


@pytest.mark.parametrize("images", [3, None, {"a": RGB}, {"a.png"}, (image for image in [RGB]), object()])
def test_anything_else_is_one_clear_error(images: Any):
    message = (
        rf"^images is a {type(images).__name__}; give a path, the bytes of a file, a PIL image, an array \(H, W\) or "
        r"\(H, W, C\), a torch tensor \(H, W\) or \(C, H, W\), several of these as a list, an array \(N, H, W, C\), a "
        r"torch tensor \(N, C, H, W\), or a data set with __len__ and __getitem__$"
    )
    with pytest.raises(DataError, match=message):
        sources(images)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], r"^images: no images were given$"),
        ([RGB, 3], r"^images\[1\] is a int, which is no image; give a path"),
        ([RGB, [RGB]], r"^images\[1\] is a list, which is no image"),
        ([RGB, np.stack([RGB, RGB])], r"^images\[1\] holds several images, of shape \(2, 40, 60, 3\)"),
    ],
)
def test_lists_hold_single_images(images: list[Any], message: str):
    with pytest.raises(DataError, match=message):
        sources(images)


def test_fingerprint_tells_other_content(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"a")
    prints = [sources(images).fingerprint() for images in (RGB, RGB + 1, GREY, [RGB, RGB], [tmp_path / "a.png"])]
    (tmp_path / "a.png").write_bytes(b"b")
    prints.append(sources([tmp_path / "a.png"]).fingerprint())
    assert len(set(prints)) == 6
    assert sources(RGB.copy()).fingerprint() == prints[0]
