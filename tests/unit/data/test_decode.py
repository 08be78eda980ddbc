"""Every conversion against values computed by hand, or by Pillow from the pixels the file was made of."""

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from PIL import Image

from unmask.data.augment.crop import random_resized_crop_box
from unmask.data.decode.picture import DecodeError, Picture, upright
from unmask.data.rng import Op, generator

PHOTOS = Path(__file__).parents[4] / "shared" / "data" / "photos-1k"
MANY = 10**8
RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (6, 4, 3), np.uint8)
GREY = RNG.integers(0, 256, (6, 4), np.uint8)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def smooth(height: int, width: int) -> Image.Image:
    """A picture JPEG changes little."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, (x + y) % 256 // 4], -1).astype(np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_colour(kind: str):
    data = encode(Image.fromarray(COLOUR), kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert_array_equal(Picture(data, 3, MANY).pixels(), COLOUR)


def test_jpeg_as_pillow_decodes_it():
    data = encode(smooth(40, 60), "JPEG", quality=90)
    assert_array_equal(Picture(data, 3, MANY).pixels(), np.asarray(Image.open(BytesIO(data))))


def test_grey_becomes_three_equal_channels():
    assert_array_equal(Picture(encode(Image.fromarray(GREY)), 3, MANY).pixels(), np.repeat(GREY[:, :, None], 3, 2))
    assert_array_equal(Picture(encode(Image.fromarray(GREY)), 1, MANY).pixels(), GREY[:, :, None])


def test_colour_becomes_luma():
    luma = COLOUR @ np.array([0.299, 0.587, 0.114])
    assert_allclose(Picture(encode(Image.fromarray(COLOUR)), 1, MANY).pixels()[:, :, 0], luma, atol=0.51)


def test_bilevel():
    bits = GREY > 127
    assert_array_equal(Picture(encode(Image.fromarray(bits)), 1, MANY).pixels()[:, :, 0], bits * 255)


def over_white(pixels: NDArray[np.uint8], alpha: NDArray[Any]) -> NDArray[np.float64]:
    share = np.asarray(alpha, np.float64)[:, :, None] / 255
    return pixels * share + 255 * (1 - share)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_alpha_is_laid_over_white(kind: str):
    data = encode(Image.fromarray(np.dstack([COLOUR, GREY])), kind)
    assert_allclose(Picture(data, 3, MANY).pixels(), over_white(COLOUR, GREY), atol=1)


def test_grey_with_alpha_is_laid_over_white():
    alpha = GREY[::-1]
    data = encode(Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha)]))
    assert_allclose(Picture(data, 1, MANY).pixels(), over_white(GREY[:, :, None], alpha), atol=1)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_transparent_palette_entry_is_white(kind: str):
    indices = np.array([[0, 1], [2, 1]], np.uint8)
    image = Image.frombytes("P", (2, 2), indices.tobytes())
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    plain = [[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [40, 50, 60]]]
    assert Picture(encode(image, kind), 3, MANY).pixels().tolist() == plain
    clear = [[[10, 20, 30], [255, 255, 255]], [[70, 80, 90], [255, 255, 255]]]
    assert Picture(encode(image, kind, transparency=1), 3, MANY).pixels().tolist() == clear


def test_transparent_colour_is_white():
    pixels = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    data = encode(Image.fromarray(pixels), transparency=(4, 5, 6))
    assert Picture(data, 3, MANY).pixels().tolist() == [[[1, 2, 3], [255, 255, 255]]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_divided_by_257(kind: str):
    values = np.array([[0, 128, 129, 257], [32767, 32768, 65406, 65535]], np.uint16)
    grey = Picture(encode(Image.fromarray(values), kind), 1, MANY).pixels()[:, :, 0]
    assert grey.tolist() == [[0, 0, 1, 1], [127, 128, 254, 255]]
    assert_array_equal(grey, np.rint(values / 257))


def test_big_endian_sixteen_bit_grey():
    values = np.array([[0, 1000, 65535]], ">u2")
    data = encode(Image.frombytes("I;16B", (3, 1), values.tobytes()), "TIFF")
    assert Picture(data, 1, MANY).pixels()[:, :, 0].tolist() == [[0, 4, 255]]


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_without_a_range_are_refused(dtype: type):
    data = encode(Image.fromarray(np.array([[-1, 70000]], dtype)), "TIFF")
    with pytest.raises(DecodeError, match="no defined range"):
        Picture(data, 1, MANY).pixels()


def test_cmyk_jpeg():
    inks = np.zeros((8, 8, 4), np.uint8)
    inks[..., 0] = 255  # all cyan
    data = encode(Image.frombytes("CMYK", (8, 8), inks.tobytes()), "JPEG", quality=100)
    assert_allclose(Picture(data, 3, MANY).pixels()[4, 4], [0, 255, 255], atol=3)


def test_ycck_jpeg():
    """As Adobe writes it: luma and chroma of the inks taken as RGB, black inverted. Pillow writes only CMYK."""
    planes = [np.full((8, 8), value, np.uint8) for value in (76, 85, 255, 255)]  # cyan ink, which is (255, 0, 0)
    data = encode(Image.merge("CMYK", [Image.fromarray(255 - plane) for plane in planes]), "JPEG", quality=100)
    transform = data.index(b"Adobe") + 11
    ycck = data[:transform] + b"\x02" + data[transform + 1 :]
    assert_allclose(Picture(ycck, 3, MANY).pixels()[4, 4], [0, 255, 255], atol=3)


TURNS = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
    8: lambda p: np.rot90(p),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, kind: str):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(COLOUR), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    expected = TURNS[orientation](COLOUR)
    picture = Picture(data, 3, MANY)
    assert (picture.height, picture.width) == expected.shape[:2]
    assert_array_equal(picture.pixels(), expected)


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("place", ["last", "before the pixels"])
@pytest.mark.parametrize("mark", [b"Exif\0\0", b""])
def test_exif_of_webp_wherever_and_however_it_stands(orientation: int, place: str, mark: bytes):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(COLOUR), "WEBP", exif=exif, lossless=True)
    chunks: list[bytes] = []
    start = 12
    while start < len(data):
        end = start + 8 + int.from_bytes(data[start + 4 : start + 8], "little")
        chunks.append(data[start : end + end % 2])
        start = end + end % 2
    head, pixels, last = chunks
    tags = mark + last[8:].removeprefix(b"Exif\0\0")
    last = b"EXIF" + len(tags).to_bytes(4, "little") + tags + bytes(len(tags) % 2)
    body = b"WEBP" + head + (pixels + last if place == "last" else last + pixels)
    picture = Picture(b"RIFF" + len(body).to_bytes(4, "little") + body, 3, MANY)
    assert_array_equal(picture.pixels(), TURNS[orientation](COLOUR))


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_crop_of_a_turned_jpeg_is_in_upright_pixels(orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(smooth(400, 640), "JPEG", quality=95, exif=exif)
    box = (100, 50, 240, 200)
    upright = Image.fromarray(np.ascontiguousarray(TURNS[orientation](np.asarray(Image.open(BytesIO(data))))))
    expected = upright.resize((30, 25), Image.Resampling.BICUBIC, (100, 50, 340, 250))
    cropped = Picture(data, 3, MANY).crop(box, (25, 30), Image.Resampling.BICUBIC)
    assert np.abs(cropped.astype(int) - np.asarray(expected)).mean() < 1


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_does_not_matter():
    data = encode(smooth(8, 8), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert Picture(data, 3, MANY).pixels().shape == (8, 8, 3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation(kind: str):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert_allclose(Picture(data, 3, MANY).pixels(), np.broadcast_to([255, 0, 0], (8, 8, 3)), atol=3)


def test_arrays_are_taken_as_they_are():
    assert_array_equal(Picture(COLOUR, 3, MANY).pixels(), COLOUR)
    assert_array_equal(Picture(GREY[:, :, None], 1, MANY).pixels(), GREY[:, :, None])
    assert_array_equal(Picture(GREY[:, :, None], 3, MANY).pixels(), np.repeat(GREY[:, :, None], 3, 2))
    with pytest.raises(DecodeError, match=r"shape \(6, 4, 2\)"):
        Picture(COLOUR[:, :, :2], 3, MANY).pixels()


def test_format_is_told_from_the_content():
    assert Picture(encode(Image.fromarray(COLOUR), "PNG"), 3, MANY).pixels().shape == (6, 4, 3)
    with pytest.raises(DecodeError, match="not a JPEG, PNG, WebP, GIF, BMP or TIFF file"):
        Picture(encode(Image.fromarray(COLOUR), "PPM"), 3, MANY).pixels()


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 12\n", "`git lfs pull` brings it"),
        (b"\n<!DOCTYPE html><html>Not found</html>", "but a page of HTML"),
        (b"<html><body>Sign in</body></html>", "but a page of HTML"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "but HEIC, as phones write it"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avif", "but AVIF"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "but JPEG 2000"),
        (b"\xff\x0a\0\0", "but JPEG XL"),
        (b"<?xml version='1.0'?>\n<Error><Code>AccessDenied</Code></Error>", "but an answer in XML"),
        (b'<?xml version="1.0"?><svg xmlns="x"/>', "but SVG"),
        (b'{"message": "Not Found"}', "but an answer in JSON"),
        (bytes(400), "but nothing but zeros"),
    ],
)
def test_what_is_often_found_in_place_of_an_image_is_named(data: bytes, what: str):
    with pytest.raises(DecodeError, match=f"BMP or TIFF file, .*{what}"):
        Picture(data, 3, MANY)


@pytest.mark.parametrize(("kind", "count", "value"), [(2, 2, b"6\0\0\0"), (5, 1, b"\0\0\0\x1a"), (3, 2, b"\0\6\0\6")])
def test_an_orientation_that_is_no_number_is_passed_over_as_viewers_do(kind: int, count: int, value: bytes):
    """As text, as a fraction, as two."""
    tiff = b"MM\0*\0\0\0\x08\0\1\x01\x12" + struct.pack(">HI", kind, count) + value + b"\0" * 4
    exif = b"Exif\0\0" + tiff + struct.pack(">II", 6, 1)
    data = encode(Image.fromarray(COLOUR), "JPEG")
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
    assert Picture(data, 3, MANY).pixels().shape == COLOUR.shape


def test_crop_is_pillow_antialiased_resize():
    image = smooth(90, 70)
    cropped = Picture(encode(image), 3, MANY).crop((5, 10, 60, 50), (20, 30), Image.Resampling.BICUBIC)
    expected = np.asarray(image.crop((5, 10, 65, 60)).resize((30, 20), Image.Resampling.BICUBIC))
    assert_allclose(cropped.astype(int), expected, atol=1)


@pytest.mark.parametrize(("side", "decoded"), [(800, 100), (792, 200), (400, 200), (396, 400), (200, 400), (198, 800)])
def test_reduced_decoding_leaves_twice_the_output(side: int, decoded: int):
    """Width decoded of an image 800 wide, to crop `side` pixels to 50."""
    picture = Picture(encode(smooth(800, 800), "JPEG"), 3, MANY)
    picture.crop((0, 0, side, side), (50, 50), Image.Resampling.BICUBIC)
    assert picture._decoded[800 // decoded].shape[1] == decoded


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="needs the photographs of ../shared/data/photos-1k")
@pytest.mark.parametrize("side", [64, 224])
def test_crops_of_photographs_are_those_of_full_decoding_and_pillow(side: int):
    """Mean difference in grey levels: at 64 of images decoded at half their size or less, at 224 of the resizing."""
    differences: list[float] = []
    for path in sorted(PHOTOS.iterdir())[::8]:
        data = path.read_bytes()
        picture = Picture(data, 3, MANY)
        rng = generator(0, 0, len(data), Op.CROP)
        box = random_resized_crop_box(rng, (picture.height, picture.width), (0.2, 1), (3 / 4, 4 / 3))
        cropped = picture.crop(box, (side, side), Image.Resampling.BICUBIC).astype(int)
        if side == 64 and 1 in picture._decoded:
            continue  # the crop is too small
        left, top, width, height = box
        image = Image.open(BytesIO(data)).convert("RGB").crop((left, top, left + width, top + height))
        expected = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))
        differences.append(float(np.abs(cropped - expected).mean()))
    assert len(differences) > 50
    assert np.mean(differences) <= {64: 0.6, 224: 0.25}[side]
    assert np.percentile(differences, 99) <= {64: 2, 224: 0.5}[side]


@pytest.mark.parametrize("kind", ["L", "RGB"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("progressive", [False, True])
def test_both_decoders_give_the_same(kind: str, channels: int, factor: int, progressive: bool):
    image = smooth(203, 317).convert(kind)
    picture = Picture(encode(image, "JPEG", quality=90, progressive=progressive), channels, MANY)
    fast = picture._fast_jpeg(factor)
    assert (fast is None) == (kind == "RGB" and channels == 1)
    if fast is not None:
        assert_array_equal(fast, upright(picture._by_pillow(factor), 1))


def test_several_crops_of_one_picture():
    data = encode(smooth(300, 400), "JPEG")
    picture = Picture(data, 3, MANY)
    for box in ((0, 0, 400, 300), (10, 20, 100, 90), (10, 20, 100, 90)):
        alone = Picture(data, 3, MANY).crop(box, (32, 32), Image.Resampling.BICUBIC)
        assert_array_equal(picture.crop(box, (32, 32), Image.Resampling.BICUBIC), alone)


def test_pillow_decides_about_files_with_errors():
    data = encode(smooth(64, 64), "JPEG")
    untidy = data[:-2] + bytes(20) + data[-2:]
    assert Picture(untidy, 3, MANY)._fast_jpeg(1) is None
    assert_array_equal(Picture(untidy, 3, MANY).pixels(), np.asarray(Image.open(BytesIO(data))))
    cut = encode(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)), "JPEG")[:-2000]
    assert Picture(cut, 3, MANY)._fast_jpeg(1) is None
    with pytest.raises(DecodeError, match="truncated"):
        Picture(cut, 3, MANY).pixels()


def test_a_jpeg_that_lacks_its_end_mark_alone_has_all_its_pixels():
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    for mode in ("RGB", "L"):
        whole = encode(Image.fromarray(noise).convert(mode), "JPEG")
        expected = Picture(whole, 3, MANY).pixels()
        for data in (whole[:-2], whole[:-2] + bytes(40)):
            assert_array_equal(Picture(data, 3, MANY).pixels(), expected)
        for cut in (4, 12, 200):
            with pytest.raises(DecodeError, match="truncated"):
                Picture(whole[:-cut], 3, MANY).pixels()


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP", b"tEXt"])
def test_long_texts_in_a_png_do_not_hide_the_picture(kind: bytes):
    plain = encode(Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)), "PNG")
    text = zlib.compress(bytes(5 << 20))
    body = {
        b"zTXt": b"Comment\0\0" + text,
        b"iTXt": b"Comment\0\1\0\0\0" + text,
        b"iCCP": b"profile\0\0" + text,
        b"tEXt": b"Comment\0" + b"x" * (5 << 20),
    }[kind]
    chunk = len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
    data = plain[:33] + chunk + plain[33:]  # behind the header
    assert_array_equal(Picture(data, 3, MANY).pixels(), Picture(plain, 3, MANY).pixels())


def test_a_picture_beyond_what_any_compressor_does_is_refused_unread():
    data = encode(Image.new("RGB", (8000, 8000)), "WEBP", lossless=True)
    with pytest.raises(DecodeError, match=r"claims 192000000 bytes of pixels in a file of \d+"):
        Picture(data, 3, MANY)
    assert Picture(encode(Image.new("RGB", (4000, 4000))), 3, MANY).pixels().max() == 0


def png(bits: int, kind: int, row: bytes, transparent: bytes) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    width = 8 * len(row) // (bits * {0: 1, 2: 3}[kind])
    head = struct.pack(">IIBBBBB", width, 1, bits, kind, 0, 0, 0)
    parts = [(b"IHDR", head), (b"tRNS", transparent), (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize(
    ("data", "values"),
    [
        (png(2, 0, b"\x1b", b"\0\1"), [0, 255, 170, 255]),
        (png(4, 0, b"\xa3", b"\0\3"), [170, 255]),
        (png(1, 0, b"\x40", b"\0\0"), [255] * 8),
        (png(8, 0, b"\7\x09", b"\0\7"), [255, 9]),
        (png(16, 0, struct.pack(">HH", 1000, 40000), struct.pack(">H", 1000)), [255, 156]),
        (png(16, 2, struct.pack(">6H", 0x1234, 0, 0, 0x5634, 0, 0), struct.pack(">3H", 0x1234, 0, 0)), [255, 26]),
    ],
)
def test_a_transparent_grey_or_colour_of_any_depth_is_white(data: bytes, values: list[int]):
    assert Picture(data, 1, MANY).pixels().ravel().tolist() == values


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32])
def test_pixels_with_a_sign_are_refused_where_eight_bits_are_asked_for(dtype: type[np.signedinteger[Any]]):
    file = BytesIO()
    tifffile.imwrite(file, np.full((4, 4), -5, dtype), photometric="minisblack")
    with pytest.raises(DecodeError, match=r"with a sign have no defined range.*data\.dtype=float32"):
        Picture(file.getvalue(), 1, MANY).pixels()


@pytest.mark.parametrize("compression", ["jpegxl", "jpeg2000", "lerc"])
def test_a_compression_that_is_not_read_is_called_so(compression: str):
    file = BytesIO()
    tifffile.imwrite(file, np.full((16, 16), 9, np.uint8), photometric="minisblack", compression=compression)
    with pytest.raises(DecodeError, match=r"its compression .* is not read; save it with another"):
        Picture(file.getvalue(), 1, MANY).pixels()
