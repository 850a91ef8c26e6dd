"""Convert any source into the prepared format: detect its kind, or download or generate the data if there is none.

Neither this module nor its imports need torch, because the decoding processes must start fast.
"""

import sys
from itertools import filterfalse
from pathlib import Path

import numpy as np

from tinyimnet.data import download, image_folders, npy, source, tiny_imagenet
from tinyimnet.data.dataset import IMAGE_SIZE, is_prepared
from tinyimnet.data.findings import Findings, Unusable, settle
from tinyimnet.data.images import decode, fitted
from tinyimnet.data.names import is_image, natural_order
from tinyimnet.data.writer import check_vacant
from tinyimnet.errors import UserError
from tinyimnet.files import exists

ARCHIVE = "tiny-imagenet-200.zip"


def prepare(
    path: Path,
    out: Path,
    classes: Path | None = None,
    *,
    val_share: float | None = None,
    size: int = IMAGE_SIZE,
    fit: str | None = None,
    strict: bool = False,
) -> dict:
    """Prepare the official archive, the unpacked official folder, a folder of images per class, or .npy files.

    Args:
        path: the archive or the folder.
        out: the folder to create.
        classes: text file with one class id per line in label order, only for .npy files.
        val_share: share of the images of each class to hold out, only for a folder per class without validation images.
        size: width and height of the prepared images in pixels.
        fit: one of images.FITS; None: all images must have that size.
        strict: refuse a source with files that are skipped.
    """
    if is_prepared(path):
        raise UserError(f"{path} is already prepared; train on it with --data.root={path}.")
    roots = source.dataset_roots(path) if path.is_dir() else []
    if path.is_dir() and not roots and any(path.glob("*.npy")):
        if val_share is not None:
            raise UserError(f"--val-share {val_share:g} is for image files, and {path} has .npy files; omit it.")
        arrays = npy.guess_arrays(path)
        beside = npy.beside(path, arrays)
        return npy.prepare_npy(arrays, out, classes, size=size, fit=fit, skipped=beside, strict=strict)
    if classes:
        raise UserError(f"--classes {classes} is only for .npy files, and {path} is no folder of these; omit it.")
    if path.is_dir() and not any(map(tiny_imagenet.is_official, roots)):
        return image_folders.prepare_image_folders(path, out, val_share=val_share, size=size, fit=fit, strict=strict)
    if val_share is not None:
        raise UserError(f"--val-share {val_share:g} is for a folder of images per class, and {path} is none; omit it.")
    return tiny_imagenet.prepare_tiny_imagenet(path, out, size=size, fit=fit, strict=strict)


def prepare_missing(out: Path, origin: str) -> dict:
    """Create `out` according to data.source: download the official archive, or generate the synthetic data set."""
    check_vacant(out)  # before a long download
    if origin == "synthetic":
        from tinyimnet.data.synthetic import prepare_synthetic  # deferred: decoding processes import this module

        print(f"generating the synthetic data set: {out}", file=sys.stderr, flush=True)
        return prepare_synthetic(out)
    return tiny_imagenet.prepare_tiny_imagenet(download.fetch(out.parent / ARCHIVE), out)


def read_images(path: Path, fit: str | None = None, size: int = IMAGE_SIZE) -> tuple[list[str], np.ndarray]:
    """Names and (N, size, size, 3) uint8 pixels of a folder of images (natural order) or of a .npy file.

    The names of other files in the folder go to stderr. `fit` is one of images.FITS; None: all images must have
    `size` px.

    Raises:
        UserError: there are no images, or an image or the array is invalid.
    """
    if path.suffix == ".npy":
        if not fit:
            npy.check_size(path, size, f"give images of {size}x{size} pixels")
        pixels = npy.to_pixels(path, npy.open_images(path))
        images = np.ascontiguousarray(fitted(pixels, fit, size) if fit else pixels)
        return [str(i) for i in range(len(images))], images
    if not exists(path) or not path.is_dir():
        raise UserError(f"--images {path} is neither a folder of images nor a .npy file.")
    files, problems = source.list_folder(path, enter=()), Findings()
    names = natural_order(filter(is_image, files.names))
    if not names:
        raise UserError(f"--images {path} contains no image file.")
    decoded = []
    for name in names:
        try:
            decoded.append(decode(files.source.read(name), fit, size)[0])
        except Unusable as fault:
            problems.add(fault.kind, name, fault.detail)
    for name in filterfalse(is_image, files.names):
        files.skipped.add(tiny_imagenet.NO_IMAGE, name)
    settle(path, problems, files.skipped, strict=False)
    if files.skipped:
        print(f"--images {path}: not used: {files.skipped}", file=sys.stderr, flush=True)
    return names, np.stack(decoded)
