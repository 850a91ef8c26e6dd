"""One image file of any format, pixel type and size gives the right 64x64 RGB pixels, or a refusal with its cause."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from tinyimnet.data.findings import Unusable
from tinyimnet.data.images import DAMAGED, FITS, TOO_LARGE, WRONG_TYPE, decode, fitted, wrong_size

RAMP = np.arange(64, dtype=np.uint8)[:, None].repeat(64, axis=1) * 4
COLOURS = np.stack([RAMP, RAMP.T, 255 - RAMP], axis=2)  # not symmetric: an orientation shows
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")


def saved(image: Image.Image | np.ndarray, file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, file_format, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(pixels: np.ndarray, depth: int, colour_type: int, transparent: bytes = b"") -> bytes:
    """Return a PNG of rows of packed pixels, for what Pillow does not write."""
    header = struct.pack(">IIBBBBB", 64, 64, depth, colour_type, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))
    key = chunk(b"tRNS", transparent) if transparent else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + key + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def with_alpha(colours: np.ndarray, alpha: int) -> np.ndarray:
    return np.dstack([colours, np.full((64, 64), alpha, np.uint8)])


def grey(values: np.ndarray) -> np.ndarray:
    return np.stack([values] * 3, axis=2)


WHITE = np.full((64, 64, 3), 255, np.uint8)
BITS = (RAMP > 100).astype(np.uint8) * 255
PALETTE = Image.fromarray(COLOURS).quantize(16)
EXACT: dict[str, tuple[bytes, np.ndarray]] = {
    "8-bit grey": (saved(RAMP, "PNG"), grey(RAMP)),
    "1-bit": (saved(Image.fromarray(BITS).convert("1"), "PNG"), grey(BITS)),
    "16-bit grey PNG": (saved(RAMP.astype(np.uint16) * 257, "PNG"), grey(RAMP)),
    "16-bit RGB PNG": (png(COLOURS.astype(">u2") * 257, 16, 2), COLOURS),
    "palette": (saved(PALETTE, "PNG"), np.asarray(PALETTE.convert("RGB"))),
    "opaque RGBA": (saved(with_alpha(COLOURS, 255), "PNG"), COLOURS),
    "hidden pixels": (saved(with_alpha(COLOURS, 0), "PNG"), WHITE),
    "hidden pixels in WebP": (saved(with_alpha(COLOURS, 0), "WEBP", lossless=True, exact=True), WHITE),
    "hidden pixels in TIFF": (saved(with_alpha(COLOURS, 0), "TIFF"), WHITE),
    "hidden grey": (saved(Image.merge("LA", [Image.fromarray(RAMP), Image.new("L", (64, 64))]), "PNG"), WHITE),
    "hidden colour": (saved(np.full((64, 64, 3), 9, np.uint8), "PNG", transparency=(9, 9, 9)), WHITE),
    "hidden level": (saved(np.full((64, 64), 9, np.uint8), "PNG", transparency=9), WHITE),
    "hidden palette entry": (saved(Image.new("P", (64, 64), 0), "PNG", transparency=0), WHITE),
    "half hidden": (saved(with_alpha(np.zeros_like(COLOURS), 128), "PNG"), np.full((64, 64, 3), 127, np.uint8)),
    "CMYK TIFF": (saved(Image.fromarray(COLOURS).convert("CMYK"), "TIFF"), COLOURS),
    "lossless WebP": (saved(COLOURS, "WEBP", lossless=True), COLOURS),
    "BMP": (saved(COLOURS, "BMP"), COLOURS),
    "TIFF": (saved(COLOURS, "TIFF", compression="tiff_lzw"), COLOURS),
}


@pytest.mark.parametrize("case", EXACT)
def test_pixels_are_exact(case: str) -> None:
    content, expected = EXACT[case]
    np.testing.assert_array_equal(decode(content)[0], expected)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied_once(file_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(file_format, {})
    upright = {1: COLOURS, 2: COLOURS[:, ::-1], 3: COLOURS[::-1, ::-1], 4: COLOURS[::-1],
               5: COLOURS.transpose(1, 0, 2), 6: np.rot90(COLOURS, -1), 7: np.rot90(COLOURS.transpose(1, 0, 2), 2),
               8: np.rot90(COLOURS)}[orientation]  # fmt: skip
    found = decode(saved(COLOURS, file_format, exif=exif, **options))[0]
    np.testing.assert_allclose(found.astype(int), upright, atol=6 if file_format == "JPEG" else 0)


def test_damaged_exif_data_do_not_matter() -> None:
    np.testing.assert_array_equal(decode(saved(COLOURS, "PNG", exif=b"Exif\0\0junk"))[0], COLOURS)


@pytest.mark.parametrize("file_format", ["GIF", "TIFF", "WEBP", "PNG"])
def test_the_first_of_several_frames_is_used(file_format: str) -> None:
    first, second = Image.new("RGB", (64, 64), "white"), Image.new("RGB", (64, 64), "black")
    pixels, n_frames = decode(saved(first, file_format, save_all=True, append_images=[second]))
    assert n_frames == 2
    np.testing.assert_array_equal(pixels, WHITE)


REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", DAMAGED),
    "text": (b"hello", DAMAGED),
    "an image format that is not read": (saved(COLOURS, "PPM"), DAMAGED),
    "another size": (saved(COLOURS[:32], "PNG"), wrong_size(64)),
    "a huge size": (png(np.zeros((1, 8), np.uint8), 1, 0)[:16] + struct.pack(">II", 9**9, 9**9) + b"\0" * 99, DAMAGED),
    "more pixels than Pillow reads": (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", b""),
        TOO_LARGE,
    ),
    "16-bit grey TIFF": (saved(RAMP.astype(np.uint16), "TIFF"), WRONG_TYPE),
    "32-bit integers": (saved(RAMP.astype(np.int32), "TIFF"), WRONG_TYPE),
    "floats": (saved(RAMP.astype(np.float32), "TIFF"), WRONG_TYPE),
    "Lab": (saved(Image.new("LAB", (64, 64)), "TIFF"), WRONG_TYPE),
    "16-bit grey with a hidden level": (png(RAMP.astype(">u2"), 16, 0, b"\0\x04"), WRONG_TYPE),
    "16-bit RGB with a hidden colour": (png(COLOURS.astype(">u2"), 16, 2, b"\0\x04\0\x04\0\x04"), WRONG_TYPE),
    "4-bit grey with a hidden level": (png(np.full((64, 32), 255, np.uint8), 4, 0, b"\0\x0f"), WRONG_TYPE),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_exact_pixels_is_refused(case: str) -> None:
    content, kind = REFUSED[case]
    with pytest.raises(Unusable) as raised:
        decode(content)
    assert raised.value.kind == kind


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file_format", FORMATS)
def test_a_truncated_image_is_refused_or_complete(file_format: str) -> None:
    content = saved(COLOURS, file_format)
    expected = decode(content)[0]
    for length in range(0, len(content), max(1, len(content) // 50)):
        try:
            np.testing.assert_array_equal(decode(content[:length])[0], expected)
        except Unusable as fault:
            assert fault.kind == DAMAGED


# ---- other sizes ------------------------------------------------------------------------------------------------

SQUARES, FILTER = (64, 96), Image.Resampling.BICUBIC
SIZES = [(64, 64), (63, 65), (200, 100), (101, 300), (20, 10), (1, 1), (383, 64), (64, 1)]  # without a first reduction


def noise(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8))


def by_pillow(picture: Image.Image, fit: str, size: int = 64) -> Image.Image:
    square = size, size
    if fit == "crop":
        return ImageOps.fit(picture, square, FILTER)
    return ImageOps.pad(picture, square, FILTER, "black") if fit == "pad" else picture.resize(square, FILTER)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("square", SQUARES)
def test_an_image_of_another_size_is_fitted_as_pillow_does(square: int, fit: str, size: tuple[int, int]) -> None:
    picture = noise(size)
    expected = by_pillow(picture, fit, square)
    np.testing.assert_array_equal(decode(saved(picture, "PNG"), fit, square)[0], expected)
    np.testing.assert_array_equal(fitted(np.asarray(picture)[None], fit, square)[0], expected)


@pytest.mark.parametrize("fit", FITS)
def test_a_photo_is_reduced_first_with_the_same_look(fit: str) -> None:
    photo = noise((40, 30)).resize((1603, 1201), FILTER)
    found = decode(saved(photo, "BMP"), fit)[0].astype(int)
    np.testing.assert_allclose(found, np.asarray(by_pillow(photo, fit)), atol=4)


def test_a_thin_line_is_padded_to_a_row_of_one_pixel() -> None:
    found = decode(saved(Image.new("RGB", (300, 1), "red"), "PNG"), "pad")[0]
    assert (found == (255, 0, 0)).all(2).sum() == 64


@pytest.mark.parametrize("fit", FITS)
def test_an_image_of_64_pixels_keeps_its_pixels(fit: str) -> None:
    np.testing.assert_array_equal(decode(saved(COLOURS, "PNG"), fit)[0], COLOURS)


@pytest.mark.parametrize("fit", FITS)
def test_an_image_is_turned_upright_before_it_is_scaled(fit: str) -> None:
    """Stretched or padded, the two orders would round differently; cropped to a side of odd length too."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = noise((101, 70))
    found = decode(saved(picture, "PNG", exif=exif), fit)[0]
    np.testing.assert_array_equal(found, by_pillow(picture.transpose(Image.Transpose.ROTATE_270), fit))


UNSCALED: dict[str, Image.Image] = {  # what a filter would mix wrongly before the conversion
    "palette": noise((100, 80)).quantize(16),
    "1-bit": noise((100, 80)).convert("1"),
    "CMYK": noise((100, 80)).convert("CMYK"),
    "16-bit grey": Image.fromarray(np.arange(8000, dtype=np.uint16).reshape(80, 100) * 8),
}


@pytest.mark.parametrize("case", UNSCALED)
def test_colours_are_converted_before_the_image_is_scaled(case: str) -> None:
    picture = UNSCALED[case]
    rgb = picture.convert("RGB")
    if case == "16-bit grey":
        rgb = Image.fromarray(np.rint(np.asarray(picture) / 257).astype(np.uint8)).convert("RGB")
    found = decode(saved(picture, "TIFF" if case == "CMYK" else "PNG"), "crop")[0]
    np.testing.assert_array_equal(found, by_pillow(rgb, "crop"))


def test_hidden_colours_do_not_bleed_into_an_image_that_is_scaled() -> None:
    picture = Image.new("RGBA", (128, 128), (0, 0, 0, 0))
    picture.paste((200, 200, 200, 255), (64, 0, 128, 128))
    found = decode(saved(picture, "PNG"), "crop")[0]
    assert found.min() >= 190  # between the grey, overshoot included, and the white behind it; hidden is black
