"""Prepare image files in the official layout: tiny-imagenet-200.zip, never unpacked to disk, or the unpacked folder.

Classes are the sorted WordNet ids. The validation labels come from val_annotations.txt: read as a class folder, val/
would be a single class, and a network trained against it would stay at chance. Every file of the source is used, or
belongs to the layout, or is named in the manifest or in the error.
"""

import re
from pathlib import Path

import numpy as np

from tinyimnet.data.dataset import check_classes
from tinyimnet.data.decoding import decode_all
from tinyimnet.data.findings import Findings, settle
from tinyimnet.data.names import is_image, is_other_image, natural_order
from tinyimnet.data.source import OUTSIDE, SPLITS, Files, open_source
from tinyimnet.data.writer import IMAGE_BYTES, finish, new_folder, save_array
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


def prepare_tiny_imagenet(source: Path, out: Path, *, strict: bool = False) -> dict:
    """Prepare the official archive or the unpacked official folder.

    Args:
        source: the archive or the folder.
        out: the folder to create.
        strict: refuse a source with files that are skipped.

    Returns:
        The manifest.

    Raises:
        UserError: the source or the destination is invalid.
    """
    files, problems = open_source(source), Findings()
    images = _place(files, problems)
    classes = _read_classes(files, images["train"], problems)
    label_of = {class_id: label for label, (class_id, _) in enumerate(classes)}
    val_labels = _val_labels(files, images["val"], label_of, problems)
    if not problems:
        check_classes(source, len(classes))
    with new_folder(out, IMAGE_BYTES * sum(map(len, images.values()))) as folder:
        save_array(folder, "train_labels", np.array([label_of[_class(name)] for name in images["train"]], np.int64))
        save_array(folder, "val_labels", np.array(val_labels, np.int64))
        unusable, partly_used = decode_all(files.source, {split: of for split, of in images.items() if of}, folder)
        files.skipped.update(partly_used)
        settle(source, Findings(problems | unusable), files.skipped, strict=strict)
        test_files = [name.rpartition("/")[2] for name in images["test"]]
        return finish(folder, classes=classes, test_files=test_files, origin=str(source), skipped=files.skipped)


def _place(files: Files, problems: Findings) -> dict[str, list[str]]:
    """The images of each split, train by class, in natural order; sorts out all other files."""
    images: dict[str, list[str]] = {split: [] for split in SPLITS}
    for name in files.names:
        split = name.partition("/")[0]
        if is_image(name) and split in SPLITS:
            if not PLACES[split].fullmatch(name):
                problems.add(MISPLACED, name)
            elif re.search("[\ud800-\udfff]", name):  # bytes that are not UTF-8, in names from the file system
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
    same: dict[str, str] = {}
    for class_id in sorted(with_images):
        if (other := same.setdefault(class_id.casefold(), class_id)) != class_id:
            problems.add("named like another class but for the case", class_id, f"and {other}")
    readable: dict[str, str] = {}
    if "words.txt" in files.names:
        entries = (line.partition("\t") for line in files.source.lines("words.txt"))
        readable = {class_id: synonyms.split(",")[0].strip() for class_id, _, synonyms in entries}
    return [(class_id, readable.get(class_id) or class_id) for class_id in sorted(with_images)]


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
