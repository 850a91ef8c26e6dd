"""Convert any source into the prepared format: detect its kind, or download or generate the data if there is none.

Neither this module nor its imports need torch, because the decoding processes must start fast.
"""

import sys
from itertools import filterfalse
from pathlib import Path

import numpy as np

from tinyimnet.data import download, image_folders, npy, other_forms, parquet, tiny_imagenet
from tinyimnet.data.archives import open_archive
from tinyimnet.data.array_roles import guess_arrays
from tinyimnet.data.arrays import Array, find_arrays
from tinyimnet.data.class_names import WORDS, class_file
from tinyimnet.data.dataset import IMAGE_SIZE, is_prepared
from tinyimnet.data.decoding import SEVERAL_FRAMES
from tinyimnet.data.findings import Findings, Unusable, settle
from tinyimnet.data.folders import Folder, beside
from tinyimnet.data.images import decode, fitted
from tinyimnet.data.names import is_image, is_other_image, natural_order
from tinyimnet.data.source import Files, Tree
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
    size: int = IMAGE_SIZE,
    fit: str | None = None,
    strict: bool = False,
) -> dict:
    """Prepare a data set in any form that is read.

    Args:
        path: Tiny ImageNet or images in folders of their classes, as a folder or an archive; .npy or .npz files; or
            Parquet files of the Hugging Face hub.
        out: the folder to create.
        classes: text file with one class id per line in label order, only for arrays and Parquet files.
        val_share: share of the images of each class to hold out, only for a source without validation images.
        size: width and height of the prepared images in pixels.
        fit: one of images.FITS; None: all images must have that size.
        strict: refuse a source with files that are skipped.
    """
    if is_prepared(path):
        raise UserError(f"{path} is already prepared; train on it with --data.root={path}.")
    in_folders = path.is_dir() and Folder(path).roots()
    if not in_folders and find_arrays(path):
        arrays = guess_arrays(path)
        used = [*(array.path for array in arrays.values()), class_file(classes, path), path / WORDS]
        skipped = beside(path, used) if path.is_dir() else None
        return npy.prepare_npy(
            arrays, out, classes, val_share=val_share, size=size, fit=fit, skipped=skipped, strict=strict
        )
    if not in_folders and (files := parquet.find_tables(path)):
        return parquet.prepare_parquet(
            path, files, out, classes, val_share=val_share, size=size, fit=fit, strict=strict
        )
    if classes:
        raise UserError(f"--classes {classes} is only for arrays and Parquet files, and {path} has none; omit it.")
    tree = _open_tree(path)
    roots = tree.roots()
    if len(roots) > 1:
        raise other_forms.several(path, roots)
    if not any(tiny_imagenet.is_official(tree, root) for root in roots):
        return image_folders.prepare_image_folders(
            tree, roots, out, val_share=val_share, size=size, fit=fit, strict=strict
        )
    if val_share is not None:
        raise UserError(f"--val-share {val_share:g} is for data without val, and {path} has val/images; omit it.")
    return tiny_imagenet.prepare_tiny_imagenet(tree, roots[0], out, size=size, fit=fit, strict=strict)


def _open_tree(path: Path) -> Tree:
    """Open the folder or the archive of image files."""
    if path.is_dir():
        return Folder(path)
    if path.is_file():
        return open_archive(path)
    if exists(path):
        raise UserError(f"{path} is neither a file nor a folder; {other_forms.FORMS}.")
    raise UserError(f"{path} does not exist; give a data set, or use --download for Tiny ImageNet.")


def prepare_missing(out: Path, origin: str) -> dict:
    """Create `out` according to data.source: download the official archive, or generate the synthetic data set."""
    check_vacant(out)  # before a long download
    if origin == "synthetic":
        from tinyimnet.data.synthetic import prepare_synthetic  # deferred: decoding processes import this module

        print(f"generating the synthetic data set: {out}", file=sys.stderr, flush=True)
        return prepare_synthetic(out)
    return prepare(download.fetch(out.parent / ARCHIVE), out)


def read_images(
    path: Path, fit: str = "crop", size: int = IMAGE_SIZE, *, strict: bool = False
) -> tuple[list[str], np.ndarray]:
    """Names and (N, size, size, 3) uint8 pixels of an image file, of those in a folder at any depth, or of a .npy file.

    The images of a folder are in natural order. What is not used or not wholly goes to stderr, in one message.

    Args:
        path: the file or folder.
        fit: one of images.FITS, for images of another size.
        size: width and height in pixels.
        strict: refuse files that are not used.

    Raises:
        UserError: no image can be used, the array is invalid, or a file is refused.
    """
    if path.suffix == ".npy":
        array = Array(path)
        npy.check_images(array)
        scale = npy.image_scale(array)
        images = np.concatenate([fitted(npy.to_pixels(block, scale), fit, size) for block in array.blocks()])
        return [str(i) for i in range(len(images))], images
    files = _images_at(path)
    faults, names, pixels = Findings(), [], []
    for name in natural_order(files.names):
        try:
            image, n_frames = decode(files.source.read(name), fit, size)
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


def _images_at(path: Path) -> Files:
    """An image file, or those in a folder at any depth; other files are skipped."""
    if not exists(path) or not (path.is_dir() or path.is_file()):
        raise UserError(f"--images {path} is neither an image, a folder of images nor a .npy file.")
    if path.is_file():
        return Files(Folder(path.parent), [as_utf8(path.name)])
    files = Folder(path).listing("", enter=None)
    for name in filterfalse(is_image, files.names):
        files.skipped.add(tiny_imagenet.OTHER_FORMAT if is_other_image(name) else tiny_imagenet.NO_IMAGE, name)
    files.names = list(filter(is_image, files.names))
    if not files.names:
        raise UserError(f"--images {path} contains no image file.")
    return files
