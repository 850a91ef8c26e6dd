"""Convert any source into the prepared format: detect its kind, or download or generate the data if there is none.

Neither this module nor its imports need torch, because the decoding processes must start fast.
"""

import sys
from pathlib import Path

import numpy as np

from tinyimnet.data import download, npy, tiny_imagenet
from tinyimnet.data.writer import check_vacant
from tinyimnet.errors import UserError
from tinyimnet.files import as_utf8, exists, from_utf8, read_bytes

ARCHIVE = "tiny-imagenet-200.zip"


def prepare(source: Path, out: Path, classes: Path | None = None) -> dict:
    """Prepare the official archive, the unpacked official folder, or a folder of .npy files (`classes` is optional)."""
    is_folder_of_arrays = source.is_dir() and not tiny_imagenet.dataset_roots(source) and any(source.glob("*.npy"))
    if is_folder_of_arrays or classes:
        return npy.prepare_npy(npy.guess_arrays(source), out, classes)
    return tiny_imagenet.prepare_tiny_imagenet(source, out)


def prepare_missing(out: Path, source: str) -> dict:
    """Create `out` according to data.source: download the official archive, or generate the synthetic data set."""
    check_vacant(out)  # before a long download
    if source == "synthetic":
        from tinyimnet.data.synthetic import prepare_synthetic  # deferred: decoding processes import this module

        print(f"generating the synthetic data set: {out}", file=sys.stderr, flush=True)
        return prepare_synthetic(out)
    return tiny_imagenet.prepare_tiny_imagenet(download.fetch(out.parent / ARCHIVE), out)


def read_images(path: Path) -> tuple[list[str], np.ndarray]:
    """Names and (N, 64, 64, 3) uint8 pixels of a folder of images (natural order) or of a .npy file.

    Raises:
        UserError: there are no images, or an image or the array is invalid.
    """
    if path.suffix == ".npy":
        images = np.ascontiguousarray(npy.to_pixels(path, npy.open_images(path)))
        return [str(i) for i in range(len(images))], images
    if not exists(path) or not path.is_dir():
        raise UserError(f"--images {path} is neither a folder of images nor a .npy file.")
    files = tiny_imagenet.natural_order({as_utf8(file.name) for file in path.iterdir()})
    if not files:
        raise UserError(f"--images {path} contains no .jpeg, .jpg or .png file.")
    return files, np.stack(
        [tiny_imagenet.decode(read_bytes(path / from_utf8(name)), str(path / name)) for name in files]
    )
