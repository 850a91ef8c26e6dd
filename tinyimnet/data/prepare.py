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
from tinyimnet.data.arrays import Array, find_arrays, open_array
from tinyimnet.data.class_names import WORDS, class_file
from tinyimnet.data.dataset import IMAGE_SIZE, is_prepared
from tinyimnet.data.findings import Findings, Unusable, settle
from tinyimnet.data.folders import Folder, beside
from tinyimnet.data.images import decode, fitted
from tinyimnet.data.names import is_image, natural_order
from tinyimnet.data.source import Tree
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


def read_images(path: Path, fit: str | None = None, size: int = IMAGE_SIZE) -> tuple[list[str], np.ndarray]:
    """Names and (N, size, size, 3) uint8 pixels of a folder of images (natural order) or of a .npy file.

    The names of other files in the folder go to stderr. `fit` is one of images.FITS; None: all images must have
    `size` px.

    Raises:
        UserError: there are no images, or an image or the array is invalid.
    """
    if path.suffix == ".npy":
        array = Array(path)
        npy.check_images(array, None if fit else size, f"give images of {size}x{size} pixels")
        pixels = npy.to_pixels(open_array(path), npy.image_scale(array))
        images = np.ascontiguousarray(fitted(pixels, fit, size) if fit else pixels)
        return [str(i) for i in range(len(images))], images
    if not exists(path) or not path.is_dir():
        raise UserError(f"--images {path} is neither a folder of images nor a .npy file.")
    files, problems = Folder(path).listing("", enter=()), Findings()
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
