"""Which array of a source is what: images or labels, of train, val or test, as its name tells."""

import re
from pathlib import Path

from tinyimnet.data.arrays import Array, find_arrays
from tinyimnet.data.dataset import LABELLED
from tinyimnet.errors import UserError

ROLES = ("train_images", "train_labels", "val_images", "val_labels", "test_images")
TEST_LABELS = "test_labels"  # read if the test images validate
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


def guess_arrays(source: Path) -> dict[str, Array]:
    """Infer the role of each array of a folder or an .npz file from its name.

    Raises:
        UserError: the names do not have exactly one interpretation.
    """
    found = find_arrays(source)
    roles: dict[str, list[Array]] = {}
    for array in found:
        splits = meanings(array.stem, SPLIT_WORDS) or meanings(array.path.stem, SPLIT_WORDS)
        kinds = meanings(array.stem, KIND_WORDS)
        split = "+".join(sorted(splits)) or ("train" if kinds else "")
        roles.setdefault(f"{split}_{'+'.join(sorted(kinds)) or 'images'}", []).append(array)
    pairs = [{f"{split}_images", f"{split}_labels"} for split in LABELLED]
    complete = pairs[0] <= roles.keys() and len(pairs[1] & roles.keys()) != 1
    known = roles.keys() <= {*ROLES, TEST_LABELS} and (TEST_LABELS not in roles or "test_images" in roles)
    if not complete or not known or any(len(fits) > 1 for fits in roles.values()):
        listed = ", ".join(array.member or array.path.name for array in found) or "no .npy file"
        raise UserError(
            f"{source} does not contain exactly one array per role ({listed}); name them x_train, y_train, x_val, "
            "y_val and x_test, or name the files with --train-images, --train-labels, --val-images, --val-labels and "
            "--test-images."
        )
    return {role: fits[0] for role, fits in roles.items()}


def meanings(name: str, words: dict[str, str]) -> set[str]:
    """What the words in a name mean: valLabels, X_train, y-val."""
    return {words[word.lower()] for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", name) if word.lower() in words}
