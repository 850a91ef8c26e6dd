"""Read .npy files as courses distribute them: images NHWC or NCHW, uint8 or float; labels integer or one-hot."""

import re
from pathlib import Path

import numpy as np

from tinyimnet.data.dataset import IMAGE_SIZE, LABELLED, check_classes
from tinyimnet.data.decoding import PHOTOS
from tinyimnet.data.findings import Findings, settle, shortened
from tinyimnet.data.images import SCALED, fitted
from tinyimnet.data.names import is_hidden
from tinyimnet.data.source import list_folder, text_lines
from tinyimnet.data.writer import (
    CHUNK,
    finish,
    image_bytes,
    new_folder,
    new_images,
    progress,
    save_array,
    write_pixels,
)
from tinyimnet.errors import UserError
from tinyimnet.files import matching, read_bytes, reading

ROLES = ("train_images", "train_labels", "val_images", "val_labels", "test_images")
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
KIND_WORDS = dict.fromkeys(("images", "image", "x", "data"), "images") | dict.fromkeys(
    ("labels", "label", "targets", "y"), "labels"
)


def guess_arrays(folder: Path) -> dict[str, Path]:
    """Infer the role of each .npy file in `folder` from its name.

    Raises:
        UserError: the names do not have exactly one interpretation.
    """
    files = [file for file in matching(folder, "*.npy") if not is_hidden(file.name)]
    roles: dict[str, list[Path]] = {}
    for file in files:
        words = [word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", file.stem)]  # valLabels, X_train, y-val
        splits = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
        kinds = {KIND_WORDS[word] for word in words if word in KIND_WORDS} or {"images"}
        roles.setdefault("+".join(sorted(splits)) + "_" + "+".join(sorted(kinds)), []).append(file)
    if not set(ROLES[:4]) <= roles.keys() <= set(ROLES) or any(len(fits) > 1 for fits in roles.values()):
        listed = ", ".join(file.name for file in files) or "no .npy file"
        raise UserError(
            f"{folder} does not contain exactly one file per role ({listed}); name the files with "
            "--train-images, --train-labels, --val-images, --val-labels and --test-images."
        )
    return {role: fits[0] for role, fits in roles.items()}


def beside(folder: Path, arrays: dict[str, Path]) -> Findings:
    """Files and folders in `folder` that are not among its arrays."""
    files = list_folder(folder, enter=())
    for name in sorted(set(files.names) - {path.name for path in arrays.values()}):
        files.skipped.add("not an array", name)
    return files.skipped


def prepare_npy(
    arrays: dict[str, Path],
    out: Path,
    classes: Path | None,
    *,
    size: int = IMAGE_SIZE,
    fit: str | None = None,
    skipped: Findings | None = None,
    strict: bool = False,
) -> dict:
    """Prepare a data set from .npy files.

    Args:
        arrays: one file for each of ROLES; test_images is optional. Images are (N, H, W, 3) or (N, 3, H, W), uint8 or
            floats in [0, 1]. Labels are integers (N,) or (N, 1), or one-hot (N, K).
        out: the folder to create.
        classes: text file with one class id per line in label order; None: "0", "1", ... up to the largest label, and
            each must have a training image.
        size: width and height of the prepared images in pixels.
        fit: one of images.FITS; None: all images must have that size.
        skipped: files beside the arrays.
        strict: refuse files that are skipped, and classes without a training image.

    Returns:
        The manifest.

    Raises:
        UserError: a file does not match this description.
    """
    if missing := [f"--{role.replace('_', '-')}" for role in ROLES[:4] if role not in arrays]:
        raise UserError(f"{' and '.join(missing)} must be given too; both train and val need images and labels.")
    images = {role.removesuffix("_images"): arrays[role] for role in ROLES if role in arrays and "_images" in role}
    counts = {split: len(open_images(path)) for split, path in images.items()}
    for path in images.values() if not fit else ():
        check_size(path, size, SCALED)
    labels, widths = {}, {}
    for split in LABELLED:
        labels[split], widths[split] = _read_labels(arrays[f"{split}_labels"])
    class_ids = (
        _read_class_ids(classes) if classes else _numbered_ids(arrays["train_labels"], labels["train"], widths["train"])
    )
    for split in LABELLED:
        _check_labels(arrays[f"{split}_labels"], labels[split], widths[split], len(class_ids))
        if len(labels[split]) != counts[split]:
            raise UserError(
                f"{images[split]} has {counts[split]} images and {arrays[f'{split}_labels']} has "
                f"{len(labels[split])} labels; give files of the same length."
            )
    check_classes(arrays["train_labels"], len(class_ids))
    skipped = skipped or Findings()
    for label in np.setdiff1d(np.arange(len(class_ids)), labels["train"]):
        skipped.add("classes without a training image", class_ids[label])
    settle(arrays["train_labels"].parent, Findings(), skipped, strict=strict)
    with new_folder(out, image_bytes(size) * sum(counts.values())) as folder:
        for split in LABELLED:
            save_array(folder, f"{split}_labels", labels[split])
        _write_images(folder, images, counts, size, fit)
        origin = ", ".join(str(path) for path in arrays.values())
        test_files = [f"test_{i}" for i in range(counts.get("test", 0))]
        named = [(class_id, class_id) for class_id in class_ids]
        return finish(folder, classes=named, test_files=test_files, origin=origin, fit=fit, skipped=skipped)


def _write_images(folder: Path, images: dict[str, Path], counts: dict[str, int], size: int, fit: str | None) -> None:
    """Write <split>_images.npy of each split, a chunk of images at a time."""
    rows = PHOTOS if fit else CHUNK
    with progress("converted", sum(counts.values())) as advance:
        for split, source in images.items():
            path, offset = new_images(folder, split, counts[split], size)
            for start in range(0, counts[split], rows):
                pixels = to_pixels(source, open_images(source)[start : start + rows])
                pixels = fitted(pixels, fit, size) if fit else pixels
                write_pixels(path, offset + start * image_bytes(size), pixels)
                advance(len(pixels))


def open_array(path: Path) -> np.ndarray:
    """Map a .npy file; callers reopen it for each chunk so that its pages do not add up in memory.

    The map is copy-on-write, because torch warns about read-only arrays.
    """
    if path.exists() and not path.is_file():  # opening a named pipe would hang
        raise UserError(f"{path} is no regular file; give a .npy file.")
    try:
        with reading(path):
            array = np.lib.format.open_memmap(path, mode="c")
    except (ValueError, EOFError) as error:
        raise UserError(
            f"{path} is not a valid .npy file of numbers ({error}); save it again with numpy.save."
        ) from None
    if not array.ndim or not len(array):
        raise UserError(f"{path} is empty; give a file with at least one row.")
    return array


def open_images(path: Path) -> np.ndarray:
    """Map a .npy file of images of any size in either layout, uint8 or float."""
    array = open_array(path)
    right_type = array.dtype == np.uint8 or np.issubdtype(array.dtype, np.floating)
    if not right_type or array.ndim != 4 or 3 not in array.shape[1::2] or not array.size:
        wanted = "uint8 or float, (N, H, W, 3) or (N, 3, H, W)"
        raise UserError(f"{path} is {array.dtype} {array.shape} and must be {wanted}.")
    return array


def to_pixels(path: Path, images: np.ndarray) -> np.ndarray:
    """Convert a chunk of images from any accepted layout and dtype to (n, H, W, 3) uint8."""
    if images.dtype != np.uint8:
        if not (images.min() >= 0 and images.max() <= 1):  # also catches NaN
            raise UserError(f"{path} has values outside [0, 1] or NaN; scale them to [0, 1], or save uint8.")
        images = np.rint(images * 255).astype(np.uint8)
    return images if images.shape[3] == 3 else images.transpose(0, 2, 3, 1)


def check_size(path: Path, size: int, way_out: str) -> None:
    """Raise a UserError with the way out unless the images in a .npy file have `size` px."""
    shape = open_images(path).shape
    height, width = shape[1:3] if shape[3] == 3 else shape[2:]
    if (width, height) != (size, size):
        raise UserError(f"{path} has images of {width}x{height} pixels, not {size}x{size}; {way_out}.")


def _read_labels(path: Path) -> tuple[np.ndarray, int]:
    """Read labels as (N,) int64, with the number of classes if they are one-hot, else 0."""
    array = np.asarray(open_array(path))
    if array.ndim == 2 and array.shape[1] > 1 and array.dtype.kind in "biuf":
        if not (((array == 0) | (array == 1)).all() and (array.sum(axis=1) == 1).all()):
            raise UserError(f"{path} is {array.shape} and not one-hot; give rows with a single 1, or integer labels.")
        return array.argmax(axis=1), array.shape[1]
    if not np.issubdtype(array.dtype, np.integer) or array.shape not in ((len(array),), (len(array), 1)):
        raise UserError(f"{path} is {array.dtype} {array.shape} and must be integers (N,) or one-hot (N, K).")
    return array.reshape(-1).astype(np.int64), 0


def _check_labels(path: Path, labels: np.ndarray, width: int, n_classes: int) -> None:
    if width not in (0, n_classes):
        raise UserError(f"{path} is one-hot for {width} classes but there are {n_classes}; give matching files.")
    if not 0 <= labels.min() <= labels.max() < n_classes:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise UserError(
            f"{path} has label {wrong}, outside the {n_classes} classes; count labels from 0, or correct --classes."
        )


def _numbered_ids(path: Path, labels: np.ndarray, width: int) -> list[str]:
    """Ids for classes without names: one per one-hot column, or up to the largest label; none may lack an image."""
    n_classes = width or int(labels.max()) + 1
    missing = np.setdiff1d(np.arange(min(n_classes, len(labels) + 1)), labels)
    if len(missing):
        raise UserError(
            f"{path} has no image with label {shortened(list(map(str, missing)))} (its labels are {labels.min()} to "
            f"{labels.max()}); count labels from 0 without gaps, or give one id per label with --classes."
        )
    return [str(label) for label in range(n_classes)]


def _read_class_ids(path: Path) -> list[str]:
    try:
        ids = [line.strip() for line in text_lines(read_bytes(path))]
    except UnicodeDecodeError as error:
        raise UserError(f"--classes {path} cannot be read ({error}); give a text file with one id per line.") from None
    while ids and not ids[-1]:
        ids.pop()
    wrong = [f"line {i} is empty" for i, class_id in enumerate(ids, start=1) if not class_id]
    wrong += [f"{class_id} is there twice" for class_id in sorted(set(ids) - {""}) if ids.count(class_id) > 1]
    if not ids or wrong:
        fault = shortened(wrong) or "it is empty"
        raise UserError(f"--classes {path} must have one id per line in label order ({fault}); correct it.")
    return ids
