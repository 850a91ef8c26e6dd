"""Convert any source into the prepared format: detect its kind, or download or generate the data if there is none.

Neither this module nor its imports need torch, because the decoding processes must start fast.
"""

import sys
from itertools import filterfalse
from pathlib import Path

import numpy as np

from tinyimnet.data import download, image_folders, npy, source, tiny_imagenet
from tinyimnet.data.dataset import is_prepared
from tinyimnet.data.decoding import SEVERAL_FRAMES
from tinyimnet.data.findings import Findings, Unusable, settle
from tinyimnet.data.images import decode
from tinyimnet.data.names import is_image, is_other_image, natural_order
from tinyimnet.data.writer import check_vacant
from tinyimnet.errors import UserError
from tinyimnet.files import as_utf8, exists

ARCHIVE = "tiny-imagenet-200.zip"


def prepare(
    path: Path,
    out: Path,
    classes: Path | None = None,
    *,
    val_share: float | None = None,
    fit: str | None = None,
    strict: bool = False,
) -> dict:
    """Prepare the official archive, the unpacked official folder, a folder of images per class, or .npy files.

    Args:
        path: the archive or the folder.
        out: the folder to create.
        classes: text file with one class id per line in label order, only for .npy files.
        val_share: share of the images of each class to hold out, only for a folder per class without validation images.
        fit: one of images.FITS, only for image files; None: these must have 64x64 pixels.
        strict: refuse a source with files that are skipped.
    """
    if is_prepared(path):
        raise UserError(f"{path} is already prepared; train on it with --data.root={path}.")
    roots = source.dataset_roots(path) if path.is_dir() else []
    if path.is_dir() and not roots and any(path.glob("*.npy")):
        if fit or val_share is not None:
            raise UserError(f"--resize and --val-share are for image files, and {path} has .npy files; omit them.")
        arrays = npy.guess_arrays(path)
        return npy.prepare_npy(arrays, out, classes, skipped=npy.beside(path, arrays), strict=strict)
    if classes:
        raise UserError(f"--classes {classes} is only for .npy files, and {path} is no folder of these; omit it.")
    if path.is_dir() and not any(map(tiny_imagenet.is_official, roots)):
        return image_folders.prepare_image_folders(path, out, val_share=val_share, fit=fit, strict=strict)
    if val_share is not None:
        raise UserError(f"--val-share {val_share:g} is for a folder of images per class, and {path} is none; omit it.")
    return tiny_imagenet.prepare_tiny_imagenet(path, out, fit=fit, strict=strict)


def prepare_missing(out: Path, origin: str) -> dict:
    """Create `out` according to data.source: download the official archive, or generate the synthetic data set."""
    check_vacant(out)  # before a long download
    if origin == "synthetic":
        from tinyimnet.data.synthetic import prepare_synthetic  # deferred: decoding processes import this module

        print(f"generating the synthetic data set: {out}", file=sys.stderr, flush=True)
        return prepare_synthetic(out)
    return tiny_imagenet.prepare_tiny_imagenet(download.fetch(out.parent / ARCHIVE), out)


def read_images(path: Path, fit: str | None = None, *, strict: bool = False) -> tuple[list[str], np.ndarray]:
    """Names and (N, 64, 64, 3) uint8 pixels of an image file, of those in a folder at any depth, or of a .npy file.

    The images of a folder are in natural order. What is not used or not wholly goes to stderr, in one message.

    Args:
        path: the file or folder.
        fit: one of images.FITS; None: image files must have 64x64 pixels.
        strict: refuse files that are not used.

    Raises:
        UserError: no image can be used, the array is invalid, or a file is refused.
    """
    if path.suffix == ".npy":
        images = np.ascontiguousarray(npy.to_pixels(path, npy.open_images(path)))
        return [str(i) for i in range(len(images))], images
    files = _images_at(path)
    faults, names, pixels = Findings(), [], []
    for name in natural_order(files.names):
        try:
            image, n_frames = decode(files.source.read(name), fit)
        except Unusable as fault:
            faults.add(fault.kind, name, fault.detail)
            continue
        names.append(name)
        pixels.append(image)
        if n_frames > 1:
            files.skipped.add(SEVERAL_FRAMES, name, f"{n_frames} frames")
    refused = faults if strict or not names else Findings()
    way_out = "; omit --strict to leave them out" if strict else ""
    settle(f"--images {path}", refused, files.skipped, strict=strict, way_out=way_out)
    if not_used := Findings(faults | files.skipped):
        print(f"--images {path}: not used: {not_used}", file=sys.stderr, flush=True)
    return names, np.stack(pixels)


def _images_at(path: Path) -> source.Files:
    """An image file, or those in a folder at any depth; other files are skipped."""
    if not exists(path) or not (path.is_dir() or path.is_file()):
        raise UserError(f"--images {path} is neither an image, a folder of images nor a .npy file.")
    if path.is_file():
        return source.Files(source.Source(path.parent), [as_utf8(path.name)])
    files = source.list_folder(path, enter=None)
    for name in filterfalse(is_image, files.names):
        files.skipped.add(tiny_imagenet.OTHER_FORMAT if is_other_image(name) else tiny_imagenet.NO_IMAGE, name)
    files.names = list(filter(is_image, files.names))
    if not files.names:
        raise UserError(f"--images {path} contains no image file.")
    return files
