"""Decode one image file of any common format to RGB pixels, or say what is wrong with it."""

import io
from functools import partial

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps

from tinyimnet.data.dataset import IMAGE_SIZE, SIZES
from tinyimnet.data.findings import Unusable

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")
MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr"}  # 8 bits or fewer, with a fixed range
DAMAGED = "damaged or not an image"
SCALED = f"--size N ({SIZES[0]} to {SIZES[-1]}) scales images to NxN pixels and keeps those of that size as they are"
TOO_LARGE = "of more than 178 million pixels"  # Pillow's limit, against files that would fill the memory
WRONG_TYPE = "of a pixel type that has no exact 8-bit form"
FITS = {  # how an image of another shape becomes a square
    "crop": "cut off the ends of the longer side",
    "pad": "fill up the shorter side with black",
    "stretch": "distort it",
}
REDUCING_GAP = 3  # Pillow's documentation: from 3 on, the result hardly differs from that without a gap


def decode(content: bytes, fit: str | None = None, size: int = IMAGE_SIZE) -> tuple[np.ndarray, int]:
    """Decode the first frame of an image, upright and without transparency.

    The EXIF orientation is applied, transparent pixels are blended with white, and 16-bit gray is scaled to 8 bits.

    Args:
        content: the bytes of the file.
        fit: one of FITS, to scale the upright image; None: it must have the right size.
        size: width and height of the result in pixels.

    Returns:
        (size, size, 3) uint8, and the number of frames of the file.

    Raises:
        Unusable: the image is damaged, or has another size or a pixel type without an exact 8-bit form.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if not fit and image.size != (size, size):
                raise Unusable(wrong_size(size), "{}x{}".format(*image.size))
            assert isinstance(image, ImageFile.ImageFile)
            _check_pixel_type(image)
            n_frames = getattr(image, "n_frames", 1)
            image.load()
            rgb = _to_rgb(_upright(image))
            return np.asarray(_fitted(rgb, fit, size) if fit else rgb), n_frames
    except Unusable:
        raise
    except Image.DecompressionBombError:
        raise Unusable(TOO_LARGE) from None
    except Exception:  # on a damaged file Pillow raises OSError, SyntaxError, ValueError ...
        raise Unusable(DAMAGED) from None


def wrong_size(size: int) -> str:
    """The kind of fault of an image that has not `size` px."""
    return f"not {size}x{size} pixels"


def fitted(pixels: np.ndarray, fit: str, size: int) -> np.ndarray:
    """Scale images (n, H, W, 3) uint8 to (n, size, size, 3) as one of FITS says; those of that size are returned."""
    if pixels.shape[1:3] == (size, size):
        return pixels
    return np.stack([np.asarray(_fitted(Image.fromarray(image), fit, size)) for image in pixels])


def _check_pixel_type(image: ImageFile.ImageFile) -> None:
    """Refuse what Pillow would clip or would read with a wrong transparent colour.

    Only PNG defines the range of 16-bit gray. Pillow compares a transparent colour of a PNG with fewer or more than 8
    bits with pixels that it has scaled to 8 bits. `image` must not be loaded yet, because that clears its tiles.
    """
    is_png = image.format == "PNG"
    if image.mode not in MODES and not (is_png and image.mode == "I;16"):
        raise Unusable(WRONG_TYPE, f"mode {image.mode}")
    has_key = is_png and image.mode != "P" and "transparency" in image.info
    if has_key and image.tile[0].args not in ("L", "RGB"):
        raise Unusable(WRONG_TYPE, f"transparent colour in {image.tile[0].args}")


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF data are common in sound images
        return image
    return image if orientation == 1 else ImageOps.exif_transpose(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I;16":  # 257 v is the 16-bit form of the 8-bit value v; Pillow's own conversion clips at 255
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:  # the colours of hidden pixels are arbitrary
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")  # a copy of a photo takes as long as decoding it


def _fitted(image: Image.Image, fit: str, size: int) -> Image.Image:
    """Scale an RGB image to a square of `size` px; the filter covers all pixels that a smaller one stands for."""
    (width, height), square = image.size, (size, size)
    resize = partial(image.resize, resample=Image.Resampling.BICUBIC, reducing_gap=REDUCING_GAP)
    if fit == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return resize(square, box=(left, top, left + side, top + side))
    if fit == "pad":
        scale = size / max(width, height)
        whole = resize((max(1, round(width * scale)), max(1, round(height * scale))))
        return ImageOps.pad(whole, square, color="black")
    return resize(square)
