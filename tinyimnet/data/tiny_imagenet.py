"""Prepare image files in the official layout: tiny-imagenet-200.zip, never unpacked to disk, or the unpacked folder.

Classes are the sorted WordNet ids. The validation labels come from val_annotations.txt: read as a class folder, val/
would be a single class, and a network trained against it would stay at chance. Every file of the source is used, or
belongs to the layout, or is named in the manifest or in the error.
"""

import re
from pathlib import Path

from tinyimnet.data.class_names import WORDS, readable_classes
from tinyimnet.data.dataset import IMAGE_SIZE
from tinyimnet.data.decoding import prepare_files
from tinyimnet.data.findings import Findings
from tinyimnet.data.names import is_image, is_other_image, is_utf8, natural_order
from tinyimnet.data.source import OUTSIDE, SPLITS, Files, Tree
from tinyimnet.errors import UserError

ANNOTATIONS = "val/val_annotations.txt"
LAYOUT = re.compile(rf"wnids\.txt|words\.txt|{re.escape(ANNOTATIONS)}|train/[^/]+/[^/]+_boxes\.txt")
PLACES = {"train": re.compile("train/[^/]+/.+"), "val": re.compile("val/images/[^/]+"),
          "test": re.compile("test/images/[^/]+")}  # fmt: skip
MISPLACED = "outside train/CLASS/, val/images/ and test/images/"
OTHER_FORMAT = "in an image format that is not read"
NOT_UTF8 = "named with bytes that are not UTF-8"
NO_IMAGE = "not an image"
EMPTY_CLASS = "without an image in train"


def is_official(tree: Tree, root: str) -> bool:
    """Whether a folder with `train` has one of the other parts of the official layout."""
    return any(tree.has(root + part) for part in ("wnids.txt", ANNOTATIONS, "val/images"))


def prepare_tiny_imagenet(
    tree: Tree, root: str, out: Path, *, size: int = IMAGE_SIZE, fit: str | None = None, strict: bool = False
) -> dict:
    """Prepare the official archive or the unpacked official folder.

    Args:
        tree: the archive or the folder.
        root: the folder in it that contains `train`.
        out: the folder to create.
        size: width and height of the prepared images in pixels.
        fit: one of images.FITS; None: all images must have that size.
        strict: refuse a source with files that are skipped.

    Returns:
        The manifest.

    Raises:
        UserError: the source or the destination is invalid.
    """
    files, problems = tree.listing(root, SPLITS), Findings()
    images = _place(files, problems)
    classes = _read_classes(files, images["train"], problems)
    label_of = {class_id: label for label, (class_id, _) in enumerate(classes)}
    val_labels = _val_labels(files, images["val"], label_of, problems)
    return prepare_files(
        files,
        images,
        {"train": [label_of[_class(name)] for name in images["train"]], "val": val_labels},
        out,
        problems,
        classes=classes,
        test_files=[name.rpartition("/")[2] for name in images["test"]],
        origin=tree.path,
        size=size,
        fit=fit,
        strict=strict,
    )


def _place(files: Files, problems: Findings) -> dict[str, list[str]]:
    """The images of each split, train by class, in natural order; sorts out all other files."""
    images: dict[str, list[str]] = {split: [] for split in SPLITS}
    for name in files.names:
        split = name.partition("/")[0]
        if is_image(name) and split in SPLITS:
            if not PLACES[split].fullmatch(name):
                problems.add(MISPLACED, name)
            elif not is_utf8(name):
                problems.add(NOT_UTF8, name)
            else:
                images[split].append(name)
        elif is_other_image(name) and split in SPLITS:
            problems.add(OTHER_FORMAT, name)
        elif not LAYOUT.fullmatch(name):
            files.skipped.add(OUTSIDE if is_image(name) else NO_IMAGE, name)
    for split, place in {"train": "train/CLASS", "val": "val/images"}.items():
        if not images[split]:
            found = Findings(problems | files.skipped)
            there = f" (it has {found})" if found else ""
            raise UserError(f"{files.source.path} has no image in {place}/{there}; unpack or download it again.")
    ordered = {split: natural_order(of_split) for split, of_split in images.items()}
    return {**ordered, "train": sorted(ordered["train"], key=_class)}


def _class(name: str) -> str:
    return name.split("/")[1]


def _read_classes(files: Files, train: list[str], problems: Findings) -> list[tuple[str, str]]:
    """(id, name) of each class with images, sorted by id; the position is the label."""
    with_images = {_class(name) for name in train}
    empty = {_class(name) for name in files.folders if name.count("/") == 1 and name.startswith("train/")} - with_images
    if "wnids.txt" in files.names:
        listed = set(files.source.lines("wnids.txt"))
        for class_id in sorted(listed - with_images):
            problems.add("listed in wnids.txt without an image in train", class_id)
        for class_id in sorted(with_images - listed):
            problems.add("in train and not listed in wnids.txt", class_id)
        empty -= listed
    for class_id in sorted(empty):
        files.skipped.add(EMPTY_CLASS, f"train/{class_id}/")
    check_case(sorted(with_images), problems)
    return readable_classes(sorted(with_images), files.lines(WORDS))


def check_case(classes: list[str], problems: Findings) -> None:
    """Report classes that are one folder on a file system that ignores the case."""
    same: dict[str, str] = {}
    for class_id in classes:
        if (other := same.setdefault(class_id.casefold(), class_id)) != class_id:
            problems.add("named like another class but for the case", class_id, f"and {other}")


def _val_labels(files: Files, images: list[str], label_of: dict[str, int], problems: Findings) -> list[int]:
    """The label of each validation image.

    Names in the annotations are only looked up among the files of val/images, so they cannot refer to other files.
    """
    if ANNOTATIONS not in files.names:
        raise UserError(f"{files.source.path} lacks {ANNOTATIONS}; unpack or download the data set again.")
    labels: dict[str, int] = {}
    for line in files.source.lines(ANNOTATIONS):
        file, class_id = (*(part.strip() for part in line.split("\t")), "")[:2]
        if class_id not in label_of:
            problems.add(f"with an unknown class in {ANNOTATIONS}", file, repr(class_id))
        if f"val/images/{file}" in labels:
            problems.add(f"with two lines in {ANNOTATIONS}", file)
        labels[f"val/images/{file}"] = label_of.get(class_id, -1)
    for name in natural_order(labels.keys() - set(images)):
        problems.add(f"listed in {ANNOTATIONS} without an image", name.removeprefix("val/images/"))
    for name in images:
        if name not in labels:
            problems.add(f"without a line in {ANNOTATIONS}", name)
    return [labels.get(name, -1) for name in images]
