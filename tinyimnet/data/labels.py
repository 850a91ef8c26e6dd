"""Labels of arrays and tables: integers, one-hot rows or strings become numbers from 0, with an id for each."""

from dataclasses import dataclass

import numpy as np

from tinyimnet.data.findings import shortened
from tinyimnet.errors import UserError


@dataclass(frozen=True)
class Labels:
    """The labels of one split.

    Attributes:
        where: names them in an error.
        values: (N,) int64 or strings.
        width: number of columns if they were one-hot, else 0.
    """

    where: object
    values: np.ndarray
    width: int = 0

    @property
    def form(self) -> str:
        """What each label was; a string is the id of its class."""
        return "strings" if self.values.dtype.kind == "U" else "one-hot" if self.width else "integers"


def as_labels(where: object, array: np.ndarray) -> Labels:
    """Labels from integers or strings (N,) or (N, 1), or from one-hot rows (N, K).

    Raises:
        UserError: the array has another form.
    """
    if array.ndim == 2 and array.shape[1] > 1 and array.dtype.kind in "biuf":
        if not (((array == 0) | (array == 1)).all() and (array.sum(axis=1) == 1).all()):
            raise UserError(f"{where} is {array.shape} and not one-hot; give rows with a single 1, or integer labels.")
        return Labels(where, array.argmax(axis=1), array.shape[1])
    if array.dtype.kind not in "iuUS" or array.shape not in ((len(array),), (len(array), 1)):
        raise UserError(
            f"{where} is {array.dtype} {array.shape} and must be integers or strings (N,), or one-hot (N, K)."
        )
    values = array.reshape(-1)
    if array.dtype.kind in "iu":
        return Labels(where, values.astype(np.int64))
    try:
        values = np.char.strip(np.char.decode(values, "utf-8") if array.dtype.kind == "S" else values)
    except UnicodeDecodeError as error:
        raise UserError(f"{where} has a label that is not UTF-8 ({error}); save its labels as text.") from None
    if len(missing := np.flatnonzero(values == "")):
        raise UserError(f"{where} has no label in row {missing[0]}; give every image a label.")
    return Labels(where, values)


def numbered(labels: dict[str, Labels], ids: list[str] | None) -> tuple[list[str], dict[str, np.ndarray]]:
    """The ids of the classes, and the labels of each split as (N,) int64 that count these.

    Args:
        labels: those of train and maybe of other splits.
        ids: the ids in label order; None: the sorted strings in train, or else "0", "1", ... up to its largest label,
            without gaps.

    Raises:
        UserError: a label is outside the classes, or the splits differ in form.
    """
    train = labels["train"]
    for of_split in labels.values():
        if "strings" in (of_split.form, train.form) and of_split.form != train.form:
            raise UserError(
                f"{train.where} has {train.form} and {of_split.where} has {of_split.form}; give labels of one form."
            )
    if train.form == "strings":
        ids = ids or np.unique(train.values).tolist()
        return ids, {split: _looked_up(of_split, ids) for split, of_split in labels.items()}
    ids = ids or _counted_ids(train)
    for of_split in labels.values():
        _check(of_split, len(ids))
    return ids, {split: of_split.values for split, of_split in labels.items()}


def _looked_up(labels: Labels, ids: list[str]) -> np.ndarray:
    if unknown := sorted(set(labels.values.tolist()) - set(ids)):
        raise UserError(
            f"{labels.where} has label {shortened(unknown)}, outside the {len(ids)} classes; correct it, or name all "
            "classes with --classes."
        )
    label_of = {class_id: label for label, class_id in enumerate(ids)}
    return np.array([label_of[value] for value in labels.values.tolist()], np.int64)


def _check(labels: Labels, n_classes: int) -> None:
    if labels.width not in (0, n_classes):
        raise UserError(
            f"{labels.where} is one-hot for {labels.width} classes but there are {n_classes}; give matching files."
        )
    values = labels.values
    if len(values) and not 0 <= values.min() <= values.max() < n_classes:
        wrong = values.min() if values.min() < 0 else values.max()
        raise UserError(
            f"{labels.where} has label {wrong}, outside the {n_classes} classes; count labels from 0, or correct "
            "--classes."
        )


def _counted_ids(labels: Labels) -> list[str]:
    """Ids for classes without names: one per one-hot column, or up to the largest label; none may lack an image."""
    values = labels.values
    n_classes = labels.width or int(values.max()) + 1
    missing = np.setdiff1d(np.arange(min(n_classes, len(values) + 1)), values)
    if len(missing):
        raise UserError(
            f"{labels.where} has no image with label {shortened(list(map(str, missing)))} (its labels are "
            f"{values.min()} to {values.max()}); count labels from 0 without gaps, or give one id per label with "
            "--classes."
        )
    return [str(label) for label in range(n_classes)]
