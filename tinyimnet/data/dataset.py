"""The prepared data set: memory-mapped uint8 arrays, decoded once, and a manifest with their checksums.

    <root>/manifest.json                       classes, counts, channel statistics, sha256 of each array, origin
    <root>/{train,val,test}_images.npy         (N, S, S, 3) uint8
    <root>/{train,val}_labels.npy              (N,) int64

S is 64 for Tiny ImageNet. `writer.py` writes this format; everything else reads it.
"""

import hashlib
import json
import shlex
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tinyimnet.console import command
from tinyimnet.errors import UserError
from tinyimnet.files import exists, read_text, reading, sha256

IMAGE_SIZE = 64  # px: of Tiny ImageNet, and where a manifest or a file of weights has no size
SIZES = range(32, 129)  # that images can have, in px
LABELLED = ("train", "val")
FORMAT = 1


@dataclass(frozen=True)
class Dataset:
    """A memory-mapped prepared folder.

    Attributes:
        root: the prepared folder.
        classes: class ids (WordNet ids) in label order.
        names: human-readable name of each class.
        images: per split, (N, S, S, 3) uint8, mapped copy-on-write.
        labels: per labelled split, (N,) int64.
        test_files: file name of each test image, in row order.
        mean: channel means of the training images, in [0, 1].
        std: channel standard deviations, in [0, 1].
        digest: sha256 over the labelled arrays and the soft labels, in hex; identifies the images and their order.
        soft_labels: (N, K) float16 logits of the teachers for the training images, or None.
        fit: how images of other sizes were scaled, one of images.FITS, or None if all had this size.
    """

    root: Path
    classes: tuple[str, ...]
    names: tuple[str, ...]
    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    test_files: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    digest: str
    soft_labels: np.ndarray | None = None
    fit: str | None = None

    @property
    def image_size(self) -> int:
        """Width and height S of the images in pixels."""
        return self.images["train"].shape[1]


def is_prepared(root: Path) -> bool:
    """Whether `root` is complete: the manifest is written last, and the folder is then renamed into place."""
    return exists(root / "manifest.json")


def open_dataset(root: Path, *, verify: bool = True) -> Dataset:
    """Map the prepared folder `root`.

    Args:
        root: folder with manifest.json and the arrays.
        verify: check the sha256 of every array against the manifest (1.3 GB: about a second).

    Raises:
        UserError: the folder is not prepared, the manifest is damaged, or an array is missing, altered or invalid.
    """
    manifest = _read_manifest(root)
    arrays = {name: _open_array(root / name, digest, verify) for name, digest in manifest["sha256"].items()}
    images = {name.removesuffix("_images.npy"): a for name, a in arrays.items() if name.endswith("_images.npy")}
    labels = {name.removesuffix("_labels.npy"): a for name, a in arrays.items() if name.endswith("_labels.npy")}
    classes, digest = manifest["classes"], hashlib.sha256()
    check_classes(f"data.root {root}", len(classes))
    for split in LABELLED:
        if split not in images or split not in labels:
            raise UserError(f"{root}/manifest.json lists no {split} images with labels; prepare the folder again.")
        check_split(f"{root} ({split})", images[split], labels[split], len(classes), manifest["image_size"])
        digest.update(
            f"{manifest['sha256'][f'{split}_images.npy']} {manifest['sha256'][f'{split}_labels.npy']}\n".encode()
        )
    return Dataset(
        root=root,
        classes=tuple(entry["id"] for entry in classes),
        names=tuple(entry["name"] for entry in classes),
        images=images,
        labels=labels,
        test_files=tuple(manifest["test_files"]),
        mean=tuple(manifest["mean"]),
        std=tuple(manifest["std"]),
        digest=digest.hexdigest(),
        fit=manifest.get("fit"),  # absent from older manifests
    )


def tuning_split(dataset: Dataset) -> Dataset:
    """Replace the val split by a fixed 5 % of the training images of each class, at least one per class.

    Choosing hyperparameters on this split leaves the validation images unused, so results on those stay unbiased. The
    arrays of both splits are copies in memory.
    """
    images, labels = dataset.images["train"], dataset.labels["train"]
    rng = np.random.Generator(np.random.Philox(0))
    held_out = np.zeros(len(labels), bool)
    for label in range(len(dataset.classes)):
        of_class = rng.permutation(np.flatnonzero(labels == label))
        held_out[of_class[: max(1, len(of_class) // 20)]] = True
    return replace(
        dataset,
        images={**dataset.images, "train": images[~held_out], "val": images[held_out]},
        labels={**dataset.labels, "train": labels[~held_out], "val": labels[held_out]},
        soft_labels=None if dataset.soft_labels is None else dataset.soft_labels[~held_out],
    )


def check_split(where: str, images: np.ndarray, labels: np.ndarray, n_classes: int, size: int) -> None:
    """Raise a UserError unless images are (N, size, size, 3) uint8 with N labels in range(n_classes)."""
    if not len(images):
        raise UserError(f"{where} has no images; prepare the folder again.")
    if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
        raise UserError(f"{where}: images are {images.dtype} {images.shape} and must be uint8 (N, {size}, {size}, 3).")
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{where}: labels are {labels.dtype} {labels.shape} and must be one integer "
            f"for each of the {len(images)} images."
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < n_classes:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise UserError(f"{where}: label {wrong} is outside the {n_classes} classes (0 to {n_classes - 1}).")


def check_classes(where: object, n_classes: int) -> None:
    """Raise a UserError unless there are at least two classes."""
    if n_classes < 2:
        raise UserError(f"{where} has {n_classes} class; give data of at least 2 classes.")


def not_prepared(root: Path, source: str = "tiny-imagenet") -> UserError:
    """The error for a `root` without prepared data; it names a prepared folder one level below or above."""
    with suppress(OSError):
        for near in (*sorted(root.glob("*")), root.parent):
            if is_prepared(near) and near != Path():
                give = shlex.quote(f"--data.root={near}")
                return UserError(f"data.root {root} holds no prepared data set, but {near} does; give {give}.")
    way_out = command("prepare", "--synthetic" if source == "synthetic" else "SOURCE", "--out", root)
    return UserError(f"data.root {root} holds no prepared data set; run `{way_out}`, or correct the path.")


def _read_manifest(root: Path) -> dict:
    try:
        manifest = json.loads(read_text(root / "manifest.json"))
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']} instead of {FORMAT}")
        for entry in manifest["classes"]:
            entry["id"], entry["name"]  # raises if one is missing
        if not len(manifest["mean"]) == len(manifest["std"]) == 3 or not min(manifest["std"]) > 0:
            raise ValueError("mean and std must be three numbers each, with std above 0")
        manifest["sha256"].items(), manifest["test_files"]  # likewise
        if manifest.setdefault("image_size", IMAGE_SIZE) not in SIZES:
            raise ValueError(f"image_size is {manifest['image_size']} and must be {SIZES[0]} to {SIZES[-1]}")
        return manifest
    except FileNotFoundError:
        raise not_prepared(root) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{root}/manifest.json is damaged ({error}); move {root} away and prepare it again.") from None


def _open_array(path: Path, digest: str, verify: bool) -> np.ndarray:
    if not exists(path):
        raise UserError(f"{path} is missing; move {path.parent} away and prepare it again.")
    if verify and sha256(path) != digest:
        raise UserError(f"{path} differs from its manifest (sha256); move {path.parent} away and prepare it again.")
    # Copy-on-write, because torch.from_numpy warns about read-only arrays; all processes still share the pages.
    try:
        with reading(path):
            return np.load(path, mmap_mode="c", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(
            f"{path} is not a valid .npy file of numbers ({error}); move {path.parent} away and prepare it again."
        ) from None
