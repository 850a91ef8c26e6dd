"""Prepare plain folders of images, one per class: CLASS/, or train/CLASS/ and val/CLASS/.

Images may lie at any depth in the folder of their class, as in CLASS/images/. Classes are the names of the folders, in
natural order. Every file of the source is used, or is named in the manifest or in the error.
"""

from pathlib import Path

from tinyimnet.data import other_forms
from tinyimnet.data.array_roles import SPLIT_WORDS
from tinyimnet.data.class_names import WORDS, readable_classes
from tinyimnet.data.dataset import IMAGE_SIZE, LABELLED, check_classes
from tinyimnet.data.decoding import prepare_files
from tinyimnet.data.findings import Findings
from tinyimnet.data.names import is_image, is_other_image, is_utf8, natural_order
from tinyimnet.data.source import OUTSIDE, PARTS, VALIDATION, Files, Tree
from tinyimnet.data.splitting import SINGLE, hold_out, validation_part
from tinyimnet.data.tiny_imagenet import NO_IMAGE, NOT_UTF8, OTHER_FORMAT, check_case
from tinyimnet.errors import UserError

MISPLACED = "in no folder of a class"
UNKNOWN_CLASS = "in a class that train lacks"
EMPTY_CLASS = "without an image for train"

Images = dict[str, list[str]]  # files of each part


def prepare_image_folders(
    tree: Tree,
    roots: list[str],
    out: Path,
    *,
    val_share: float | None = None,
    size: int = IMAGE_SIZE,
    fit: str | None = None,
    strict: bool = False,
) -> dict:
    """Prepare a folder with one folder of images per class, or with such folders in train and val.

    Args:
        tree: the folder, or an archive of it.
        roots: the folder in it that contains `train`; empty if there is none.
        out: the folder to create.
        val_share: share of the images of each class to hold out, for a source without validation images.
        size: width and height of the prepared images in pixels.
        fit: one of images.FITS; None: all images must have that size.
        strict: refuse a source with files that are skipped.

    Returns:
        The manifest.

    Raises:
        UserError: the source, the share or the destination is invalid.
    """
    depth = len(roots)  # how many folders are above that of a class
    files = tree.listing(roots[0], PARTS) if roots else _listing_of_classes(tree)
    problems = Findings()
    images = _place(files, depth, problems)
    label_of = _labels_of_classes(files, images["train"], depth, problems)
    images, layout = _split(tree.path, images, depth, label_of, val_share, problems)
    for name in images["val"]:
        if _class(name, depth) not in label_of:
            problems.add(UNKNOWN_CLASS, name)
    return prepare_files(
        files,
        images,
        {split: [label_of.get(_class(name, depth), -1) for name in images[split]] for split in LABELLED},
        out,
        problems,
        classes=readable_classes(label_of, files.lines(WORDS)),
        test_files=[name.removeprefix("test/") for name in images["test"]],
        origin=tree.path,
        layout=layout,
        size=size,
        fit=fit,
        strict=strict,
    )


def _listing_of_classes(tree: Tree) -> Files:
    """The files of a source without `train`, which must be those of classes."""
    files = tree.listing(tree.top, None)
    in_folders = any("/" in name and (is_image(name) or is_other_image(name)) for name in files.names)
    if not in_folders or any(folder.endswith("/train") for folder in files.folders):
        raise other_forms.refusal(tree.path, files.folders)
    if parts := [folder for folder in files.folders if folder.lower() in SPLIT_WORDS]:
        raise UserError(
            f"{tree.path} contains no data set: it has {' and '.join(parts)} but no `train` folder; "
            "name its parts train, val and test."
        )
    return files


def _class(name: str, depth: int) -> str:
    return name.split("/")[depth]


def _place(files: Files, depth: int, problems: Findings) -> Images:
    """The images of each part, in natural order; sorts out all other files."""
    images: Images = {part: [] for part in PARTS}
    for name in files.names:
        folders = name.split("/")[:-1]
        if name == WORDS:
            continue
        if not is_image(name) and not is_other_image(name):
            files.skipped.add(NO_IMAGE, name)
        elif not folders:
            files.skipped.add(OUTSIDE, name)
        elif not is_image(name):
            problems.add(OTHER_FORMAT, name)
        elif not is_utf8(name):
            problems.add(NOT_UTF8, name)
        elif len(folders) <= depth and folders[0] != "test":
            problems.add(MISPLACED, name)
        else:
            images[folders[0] if depth else "train"].append(name)
    if not images["train"]:
        found = Findings(problems | files.skipped)
        there = f" (it has {found})" if found else ""
        raise UserError(
            f"{files.source.path} has no image that is read in {'train/CLASS/' if depth else 'CLASS/'}{there}; "
            "put the images of each class in a folder of its own."
        )
    return {part: natural_order(names) for part, names in images.items()}


def _labels_of_classes(files: Files, train: list[str], depth: int, problems: Findings) -> dict[str, int]:
    """The label of each class with images, in natural order."""
    path, classes = files.source.path, natural_order({_class(name, depth) for name in train})
    if not depth and len(classes) == 1 and path.is_dir() and any("/" in folder for folder in files.folders):
        raise UserError(f"{path} has 1 class, {classes[0]}; give {path / classes[0]} if its folders are the classes.")
    check_classes(path, len(classes))
    for folder in files.folders:
        is_class = folder.startswith("train/") if depth else folder
        if is_class and folder.count("/") == depth and _class(folder, depth) not in classes:
            files.skipped.add(EMPTY_CLASS, f"{folder}/")
    check_case(classes, problems)
    return {name: label for label, name in enumerate(classes)}


def _split(
    path: Path, images: Images, depth: int, label_of: dict[str, int], share: float | None, problems: Findings
) -> tuple[Images, str]:
    """The images of train, val and test, and the layout in words."""
    train, test = images["train"], images["test"]
    found = [part for part in VALIDATION if images[part]]
    if len(found) > 1:
        raise UserError(f"{path} has validation images in {' and '.join(found)}; keep one of these folders.")
    val = found[0] if found else ""
    tested = any(_class(name, depth) in label_of for name in test)
    from_part = validation_part(path, val, share, test="test" if tested else "")
    if from_part == "train":
        assert share
        held_out, single = hold_out(train, [_class(name, depth) for name in train], share)
        for class_name in single:
            problems.add(SINGLE, class_name)
        return (
            {
                "train": [name for name in train if name not in held_out],
                "val": [name for name in train if name in held_out],
                "test": test,
            },
            f"{'train/' * depth}CLASS/, and --val-share {share:g} of each class as val",
        )
    if from_part == "test":
        layout = "train/CLASS/, and test/CLASS/ as val because there is no val"
        return {"train": train, "val": test, "test": []}, layout
    return {"train": train, "val": images[val], "test": test}, f"train/CLASS/ and {val}/CLASS/"
