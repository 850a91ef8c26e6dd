"""Prepare .npy and .npz files as courses distribute them: images NHWC or NCHW of any size, and labels of any form."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinyimnet.data.arrays import Array, arrays_of
from tinyimnet.data.class_names import listed_ids, readable_classes, words_in
from tinyimnet.data.dataset import IMAGE_SIZE, LABELLED, check_classes
from tinyimnet.data.findings import Findings, settle
from tinyimnet.data.images import SCALED, fitted
from tinyimnet.data.labels import Labels, as_labels, numbered
from tinyimnet.data.splitting import Rows, split_rows
from tinyimnet.data.writer import (
    SPLITS,
    announce,
    finish,
    image_bytes,
    new_folder,
    new_images,
    progress,
    save_array,
    write_pixels,
)
from tinyimnet.errors import UserError

DIMMEST = 16  # the least maximum of floats from 0 to 255: one just above 1 comes from an overshoot of [0, 1]


@dataclass(frozen=True)
class Part:
    """The images of train, val or test in the source.

    Attributes:
        images: (N, H, W, 3) or (N, 3, H, W), uint8 or float.
        scale: what makes their values 8-bit ones.
        labels: of each image, or None.
        label_array: where they come from.
    """

    images: Array
    scale: int
    labels: Labels | None
    label_array: Array | None

    def __str__(self) -> str:
        of_images = f"{self.images.dtype}{'' if self.is_uint8 else f' from 0 to {255 // self.scale}'}"
        of_labels = f", {self.label_array.name} ({self.labels.form})" if self.label_array and self.labels else ""
        return f"{self.images.name} ({of_images}){of_labels}"

    @property
    def is_uint8(self) -> bool:
        """Whether the values are 8-bit ones already."""
        return self.images.dtype == np.uint8


def prepare_npy(
    arrays: Mapping[str, Path | Array],
    out: Path,
    classes: Path | None,
    *,
    val_share: float | None = None,
    size: int = IMAGE_SIZE,
    fit: str | None = None,
    skipped: Findings | None = None,
    strict: bool = False,
) -> dict:
    """Prepare a data set from arrays.

    Args:
        arrays: one for each of ROLES and TEST_LABELS, at least those of train. Images are (N, H, W, 3) or
            (N, 3, H, W), uint8 or floats in [0, 1] or [0, 255]. Labels are integers or strings (N,) or (N, 1), or
            one-hot (N, K).
        out: the folder to create.
        classes: text file with one class id per line in label order; None: classes.txt beside the labels, or else what
            the labels tell, and then each class must have a training image.
        val_share: share of the images of each class to hold out, without arrays of val.
        size: width and height of the prepared images in pixels.
        fit: one of images.FITS; None: all images must have that size.
        skipped: files beside the arrays.
        strict: refuse files that are skipped, and classes without a training image.

    Returns:
        The manifest.

    Raises:
        UserError: an array does not match this description.
    """
    given = {role: array if isinstance(array, Array) else _only_array(array) for role, array in arrays.items()}
    parts = _read_parts(given, None if fit else size)
    of_train = given["train_labels"]
    folder, source = of_train.path.parent, of_train.path if of_train.member else of_train.path.parent
    labels = {name: part.labels for name, part in parts.items() if part.labels}
    ids, numbers = numbered(labels, listed_ids(classes, folder))
    check_classes(of_train, len(ids))
    skipped, problems = skipped or Findings(), Findings()
    names = {name: [str(row) for row in range(part.images.shape[0])] for name, part in parts.items()}
    rows, how = split_rows(source, names, numbers, ids, val_share, problems, skipped)
    settle(source, problems, skipped, strict=strict)
    layout = "; ".join([*(f"{name}: {part}" for name, part in parts.items()), *([how] if how else [])])
    announce("arrays", layout)
    counts = {split: int(of.sum()) for targets in rows.values() for split, of in targets.items()}
    with new_folder(out, image_bytes(size) * sum(counts.values())) as partial:
        for name, targets in rows.items():
            for split in targets.keys() & {*LABELLED}:
                save_array(partial, f"{split}_labels", numbers[name][targets[split]])
        _convert(partial, parts, rows, counts, size, fit)
        return finish(
            partial,
            classes=readable_classes(ids, words_in(folder)),
            test_files=[f"test_{i}" for i in range(counts.get("test", 0))],
            origin=", ".join(dict.fromkeys(str(array.path) for array in given.values())),
            layout=layout,
            fit=fit,
            skipped=skipped,
        )


def _only_array(path: Path) -> Array:
    """The array of a file that an option names."""
    found = arrays_of(path) if path.suffix.lower() == ".npz" else [Array(path)]
    if len(found) != 1:
        raise UserError(f"{path} has {len(found)} arrays; give it as the source of `prepare`, without such options.")
    return found[0]


def _read_parts(given: Mapping[str, Array], size: int | None) -> dict[str, Part]:
    """The parts of the source, whose arrays fit each other, with images of `size` px (None: of any size)."""
    for split in LABELLED:
        missing = [role for role in (f"{split}_images", f"{split}_labels") if role not in given]
        if missing and (split == "train" or len(missing) == 1):
            options = " and ".join(f"--{role.replace('_', '-')}" for role in missing)
            raise UserError(f"{options} must be given too; both train and val need images and labels.")
    parts: dict[str, Part] = {}
    for name in SPLITS:
        if images := given.get(f"{name}_images"):
            check_images(images, size)
            array, n = given.get(f"{name}_labels"), images.shape[0]
            labels = as_labels(array, array.whole()) if array else None
            if labels and len(labels.values) != n:
                raise UserError(
                    f"{images} has {n} images and {array} has {len(labels.values)} labels; give arrays of the same "
                    "length."
                )
            parts[name] = Part(images, image_scale(images), labels, array)
    ranges = {part.scale: part.images for part in parts.values() if not part.is_uint8}
    if len(ranges) > 1:
        raise UserError(
            f"{ranges[255]} has floats from 0 to 1 and {ranges[1]} from 0 to 255; scale both to the same range."
        )
    return parts


def _convert(
    folder: Path, parts: dict[str, Part], rows: Rows, counts: dict[str, int], size: int, fit: str | None
) -> None:
    """Write the images of each split, block by block."""
    files = {split: new_images(folder, split, n, size) for split, n in counts.items()}
    with progress("converted", sum(counts.values())) as advance:
        for name, targets in rows.items():
            start = 0
            for block in parts[name].images.blocks():
                pixels = to_pixels(block, parts[name].scale)
                pixels = fitted(pixels, fit, size) if fit else pixels
                for split, of_split in targets.items():
                    chosen = pixels[of_split[start : start + len(pixels)]]
                    path, offset = files[split]
                    write_pixels(path, offset, chosen)
                    files[split] = path, offset + chosen.nbytes
                start += len(pixels)
                advance(len(pixels))


# ---- images -----------------------------------------------------------------------------------------------------


def check_images(array: Array, size: int | None = None) -> None:
    """Raise a UserError unless these are images of `size` px (None: of any size)."""
    shape = array.shape
    if (array.dtype != np.uint8 and array.dtype.kind != "f") or len(shape) != 4 or 3 not in shape[1::2] or 0 in shape:
        wanted = "uint8 or float, (N, H, W, 3) or (N, 3, H, W)"
        raise UserError(f"{array} is {array.dtype} {shape} and must be {wanted}.")
    height, width = shape[1:3] if shape[3] == 3 else shape[2:]
    if size and (height, width) != (size, size):
        raise UserError(f"{array} has images of {width}x{height} pixels, not {size}x{size}; {SCALED}.")


def image_scale(array: Array) -> int:
    """What makes its values 8-bit ones: 255 for floats up to 1, 1 for floats up to 255 and for uint8.

    Raises:
        UserError: these are floats in neither range.
    """
    if array.dtype == np.uint8:
        return 1
    low, high = np.array([(block.min(), block.max()) for block in array.blocks()], float).T
    if low.min() >= 0 and (high.max() <= 1 or DIMMEST <= high.max() <= 255):
        return 255 if high.max() <= 1 else 1
    raise UserError(
        f"{array} has floats from {low.min():g} to {high.max():g}, which fit neither [0, 1] nor [0, 255]; scale them "
        "to one of these, or save uint8."
    )


def to_pixels(images: np.ndarray, scale: int) -> np.ndarray:
    """Convert images from any accepted layout and dtype to (n, H, W, 3) uint8; see `image_scale`."""
    if images.dtype != np.uint8:
        images = np.rint(images * scale).astype(np.uint8)
    return images if images.shape[3] == 3 else images.transpose(0, 2, 3, 1)
