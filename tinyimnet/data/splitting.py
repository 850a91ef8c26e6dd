"""Which images validate: those of the source, or a share of each class of train that is held out."""

import hashlib
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from tinyimnet.data.findings import Findings
from tinyimnet.errors import UserError

SINGLE = "with one image, which train and val cannot share"

Rows = dict[str, dict[str, np.ndarray]]  # part of the source -> split -> (N,) bool, which rows of the part go there


def validation_part(source: object, val: str, share: float | None, *, test: str) -> str:
    """The part of a source whose images validate: `val`, `test`, or "train" of which a share is held out.

    Args:
        source: names it in an error.
        val: its validation part, or an empty name if it has none.
        share: what --val-share says.
        test: its test part if that has labels, else an empty name.

    Raises:
        UserError: no part can validate, or the share does not fit.
    """
    if share is not None and not 0 < share < 1:
        raise UserError(f"--val-share {share:g} is not between 0 and 1; give a share such as 0.1.")
    if val and share:
        raise UserError(f"{source} has validation images in {val}; omit --val-share {share:g}.")
    if part := val or ("train" if share else test):
        return part
    raise UserError(f"{source} has no validation images; hold out a share of each class with --val-share 0.1.")


def hold_out(names: Sequence[str], classes: Sequence[Hashable], share: float) -> tuple[set[str], list[Any]]:
    """Choose `share` of each class, at least one image and never all, by a hash of the names.

    The choice is the same on every machine, and an image that is added later changes it little.

    Args:
        names: one for each image, no two the same.
        classes: the class of each image.
        share: between 0 and 1.

    Returns:
        The names of the chosen images, and the classes that have a single image, which cannot be split.
    """
    of_class: dict[Hashable, list[str]] = {}
    for name, class_of in zip(names, classes, strict=True):
        of_class.setdefault(class_of, []).append(name)
    held_out: set[str] = set()
    for members in of_class.values():
        drawn = sorted(members, key=lambda name: hashlib.sha256(name.encode()).digest())
        held_out.update(drawn[: min(max(1, round(share * len(members))), len(members) - 1)])
    return held_out, [class_of for class_of, members in of_class.items() if len(members) == 1]


def split_rows(
    source: object,
    names: dict[str, list[str]],
    labels: dict[str, np.ndarray],
    ids: list[str],
    share: float | None,
    problems: Findings,
    skipped: Findings,
) -> tuple[Rows, str]:
    """Assign the rows of each part of a source to train, val and test.

    Args:
        source: names it in an error.
        names: one for each row of each part: train, and maybe val and test.
        labels: (N,) int64 for each part with labels.
        ids: those of the classes, in label order.
        share: what --val-share says.
        problems: gets classes that cannot be split.
        skipped: gets classes without a training image, and the labels of test images.

    Returns:
        The rows, and in words what is not plain about them.
    """
    rows: Rows = {part: {part: np.ones(len(of_part), bool)} for part, of_part in names.items()}
    validates = validation_part(source, "val" * ("val" in labels), share, test="test" * ("test" in labels))
    how = ""
    if validates == "train" and share:
        held_out, single = hold_out(names["train"], labels["train"].tolist(), share)
        problems.update({SINGLE: [ids[label] for label in single]} if single else {})
        in_val = np.array([name in held_out for name in names["train"]])
        rows["train"] = {"train": ~in_val, "val": in_val}
        how = f"--val-share {share:g} of each class as val"
    elif validates == "test":
        rows["test"] = {"val": rows["test"]["test"]}
        how = "test as val because there is no val"
    for label in np.setdiff1d(np.arange(len(ids)), labels["train"]):
        skipped.add("classes without a training image", ids[label])
    if "test" in labels and validates != "test":
        skipped.add("labels that are not kept", "test")
    return rows, how
