"""Course files of arrays: every common form gives the same prepared data, and errors name the file."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.sources import arrays_in, left_behind, truncate
from tinyimnet.data import npy
from tinyimnet.data.array_roles import ROLES, guess_arrays
from tinyimnet.data.dataset import open_dataset
from tinyimnet.data.images import decode
from tinyimnet.data.prepare import prepare
from tinyimnet.errors import UserError


def nchw(array: np.ndarray) -> np.ndarray:
    return array.transpose(0, 3, 1, 2)


def floats(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) / 255


FORMS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "NCHW": ("images", nchw),
    "float32": ("images", floats),
    "float64": ("images", lambda a: a / 255),
    "float16 NCHW": ("images", lambda a: nchw(floats(a)).astype(np.float16)),
    "Fortran order": ("images", np.asfortranarray),
    "int32 labels": ("labels", lambda a: a.astype(np.int32)),
    "column": ("labels", lambda a: a[:, None]),
    "one-hot": ("labels", lambda a: np.eye(4, dtype=np.float32)[a]),
    "boolean one-hot": ("labels", lambda a: np.eye(4, dtype=bool)[a]),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_array_gives_the_same_files(tmp_path: Path, form: str) -> None:
    files = arrays_in(tmp_path / "npy")
    expected = {path.name: np.load(path) for path in files.values()}
    kind, convert = FORMS[form]
    for name, path in files.items():
        if kind in name:
            np.save(path, convert(expected[path.name]))
    npy.prepare_npy(files, tmp_path / "out", None)
    for name, array in expected.items():
        np.testing.assert_array_equal(np.load(tmp_path / "out" / name), array)


@pytest.mark.parametrize("size", [32, 96, 128])
def test_images_that_have_the_size_are_kept_bit_for_bit(tmp_path: Path, size: int) -> None:
    files = arrays_in(tmp_path / "npy", size)
    assert npy.prepare_npy(files, tmp_path / "out", None, size=size, fit="crop")["image_size"] == size
    for path in files.values():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_data_without_a_recorded_size_has_64_px(tmp_path: Path) -> None:
    """As all data that were prepared before there was a choice."""
    manifest = npy.prepare_npy(arrays_in(tmp_path / "npy"), tmp_path / "out", None)
    del manifest["image_size"]
    (tmp_path / "out/manifest.json").write_text(json.dumps(manifest))
    assert open_dataset(tmp_path / "out").image_size == 64


@pytest.mark.parametrize("convert", [lambda a: a, lambda a: floats(nchw(a))], ids=["NHWC uint8", "NCHW float"])
def test_images_of_another_size_are_scaled_like_files(tmp_path: Path, convert: Callable) -> None:
    wide = np.random.default_rng(0).integers(0, 256, (8, 40, 50, 3), np.uint8)
    files = arrays_in(tmp_path / "npy", 32, train_images=convert(wide))
    assert npy.prepare_npy(files, tmp_path / "out", None, size=32, fit="pad")["fit"] == "pad"
    expected = []
    for image in wide:
        Image.fromarray(image).save(tmp_path / "image.png")
        expected.append(decode((tmp_path / "image.png").read_bytes(), "pad", 32)[0])
    np.testing.assert_array_equal(open_dataset(tmp_path / "out").images["train"], expected)


def test_classes_are_numbered_without_a_file(tmp_path: Path) -> None:
    npy.prepare_npy(arrays_in(tmp_path / "npy"), tmp_path / "out", None)
    dataset = open_dataset(tmp_path / "out")
    assert dataset.classes == ("0", "1", "2", "3")
    assert dataset.test_files == ("test_0", "test_1")


def test_classes_are_read_in_label_order_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("n9\nn3\nn5\nn1\nn2\n")
    manifest = npy.prepare_npy(arrays_in(tmp_path / "npy"), tmp_path / "out", tmp_path / "ids.txt")
    assert [entry["id"] for entry in manifest["classes"]] == ["n9", "n3", "n5", "n1", "n2"]


def test_test_images_are_optional(tmp_path: Path) -> None:
    files = arrays_in(tmp_path / "npy")
    del files["test_images"]
    assert npy.prepare_npy(files, tmp_path / "out", None)["counts"] == {"train": 8, "val": 4}


def with_value(array: np.ndarray, value: float) -> np.ndarray:
    array.flat[-1] = value
    return array


WRONG_ARRAYS: dict[str, tuple[str, np.ndarray, str]] = {
    "float above 1": (
        "val_images",
        with_value(np.zeros((4, 64, 64, 3)), 1.5),
        r"val_images.* floats from 0 to 1.5, which fit neither \[0, 1\] nor \[0, 255\]",
    ),
    "float above 255": ("val_images", with_value(np.zeros((4, 64, 64, 3)), 256), "val_images.* floats from 0 to 256"),
    "negative float": (
        "val_images",
        with_value(np.zeros((4, 64, 64, 3)), -0.1),
        "val_images.* floats from -0.1 to 0",
    ),
    "NaN": ("val_images", with_value(np.zeros((4, 64, 64, 3)), np.nan), "val_images.* floats from nan"),
    "flat images": ("train_images", np.zeros((8, 12288), np.uint8), r"train_images.* is uint8 \(8, 12288\)"),
    "small images": (
        "test_images",
        np.zeros((2, 32, 32, 3), np.uint8),
        r"test_images.* has images of 32x32 pixels, not 64x64; --size N \(32 to 128\)",
    ),
    "images without width": ("train_images", np.zeros((8, 64, 0, 3), np.uint8), r"train_images.* \(8, 64, 0, 3\)"),
    "gray images": ("train_images", np.zeros((8, 64, 64), np.uint8), r"train_images.* is uint8 \(8, 64, 64\)"),
    "integer images": ("train_images", np.zeros((8, 64, 64, 3), np.int32), "train_images.* is int32"),
    "no rows": ("val_images", np.zeros((0, 64, 64, 3), np.uint8), "val_images.* is empty"),
    "scalar": ("val_labels", np.array(3), "val_labels.* is empty"),
    "fewer labels": ("train_labels", np.zeros(7, int), "8 images and .*train_labels.* 7 labels"),
    "float labels": ("train_labels", np.zeros(8), "train_labels.* is float64"),
    "label too large": ("val_labels", np.array([0, 1, 2, 4]), "val_labels.* label 4, outside the 4 classes"),
    "negative label": ("train_labels", np.arange(8) % 4 - 1, "train_labels.* label -1"),
    "labels from 1": ("train_labels", np.arange(8) % 4 + 1, "no image with label 0 .*1 to 4.*count labels from 0"),
    "one-hot from 1": ("train_labels", np.eye(5)[np.arange(8) % 4 + 1], "no image with label 0"),
    "labels with gaps": (
        "train_labels",
        np.arange(8) * 50,
        "no image with label 1, 2, 3, 4, 5 and 3 more .*0 to 350",
    ),
    "not one-hot": ("train_labels", np.ones((8, 4), int), "train_labels.* not one-hot"),
    "another one-hot width": ("val_labels", np.eye(5, dtype=int)[:4], "val_labels.* one-hot for 5 classes"),
    "strings for some": ("train_labels", np.array(["cat"] * 8), "train_labels.* has strings and .* has integers"),
    "an empty string": ("train_labels", np.array([*"abcdabc", " "]), "train_labels.* has no label in row 7"),
    "strings in a table": ("train_labels", np.full((8, 2), "cat"), "train_labels.* is <U3"),
    "objects": ("val_labels", np.array([{}] * 4), "val_labels.* is not a valid .npy file"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", WRONG_ARRAYS)
def test_an_invalid_array_is_refused_by_name(tmp_path: Path, case: str) -> None:
    role, array, sentence = WRONG_ARRAYS[case]
    with pytest.raises(UserError, match=sentence):
        npy.prepare_npy(arrays_in(tmp_path / "npy", **{role: array}), tmp_path / "out", None)
    assert left_behind(tmp_path / "out") == []


WRONG_FILES: dict[str, Callable[[Path], object]] = {
    "pickled": lambda path: path.write_bytes(pickle.dumps([1, 2])),
    "truncated": truncate,
    "empty": lambda path: path.write_bytes(b""),
    "npz": lambda path: np.savez(path.open("wb"), x=np.zeros(3)),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_a_file_that_is_not_an_array_is_refused_by_name(tmp_path: Path, case: str) -> None:
    files = arrays_in(tmp_path / "npy")
    WRONG_FILES[case](files["val_images"])
    with pytest.raises(UserError, match=r"val_images.npy is not a valid .npy file"):
        npy.prepare_npy(files, tmp_path / "out", None)


@pytest.mark.parametrize("text", ["fire truck\ncat\ndog\ncow", "\ufefffire truck \r\ncat\r\ndog\r\ncow\r\n\r\n"])
def test_class_files_of_any_system_have_one_id_per_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "ids.txt").write_text(text, encoding="utf-8", newline="")
    manifest = npy.prepare_npy(arrays_in(tmp_path / "npy"), tmp_path / "out", tmp_path / "ids.txt")
    assert [entry["id"] for entry in manifest["classes"]] == ["fire truck", "cat", "dog", "cow"]


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("", "it is empty"),
        ("\n\n", "it is empty"),
        ("a\nb\na\nc\n", "a is there twice"),
        ("a\n\nb\nc\nd\n", "line 2 is empty"),
        ("a\nb\n", "outside the 2 classes"),
    ],
)
def test_invalid_class_files_are_refused(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "ids.txt").write_text(text)
    with pytest.raises(UserError, match=sentence):
        npy.prepare_npy(arrays_in(tmp_path / "npy"), tmp_path / "out", tmp_path / "ids.txt")


def test_one_class_is_refused(tmp_path: Path) -> None:
    arrays = arrays_in(tmp_path / "npy", train_labels=np.zeros(8, int), val_labels=np.zeros(4, int))
    with pytest.raises(UserError, match="train_labels.npy has 1 class; give data of at least 2 classes"):
        npy.prepare_npy(arrays, tmp_path / "out", None)


def test_a_class_without_a_training_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("a\nb\nc\nd\ne\n")
    arrays = arrays_in(tmp_path / "npy")
    manifest = npy.prepare_npy(arrays, tmp_path / "out", tmp_path / "ids.txt")
    assert manifest["skipped"] == {"classes without a training image": ["e"]}
    with pytest.raises(UserError, match=r"without a training image \(e\)"):
        npy.prepare_npy(arrays, tmp_path / "strict", tmp_path / "ids.txt", strict=True)


def test_a_pipe_is_refused_and_never_opened(tmp_path: Path) -> None:
    files = arrays_in(tmp_path / "npy")
    files["val_images"].unlink()
    os.mkfifo(files["val_images"])
    with pytest.raises(UserError, match="val_images.npy is no regular file"):
        npy.prepare_npy(files, tmp_path / "out", None)


def test_a_missing_role_is_named_as_its_option(tmp_path: Path) -> None:
    files = arrays_in(tmp_path / "npy")
    del files["val_labels"]
    with pytest.raises(UserError, match=r"^--val-labels must be given"):
        npy.prepare_npy(files, tmp_path / "out", None)


CLEAR_NAMES = [
    ("train_images train_labels val_images val_labels test_images", 5),
    ("x_train y_train x_val y_val", 4),
    ("X_train y_train X_valid y_valid X_test", 5),
    ("trainImages trainLabels valImages valLabels test", 5),
    ("tiny-train-data tiny-train-targets validation-data validation-targets", 4),
]


@pytest.mark.parametrize("names, n_roles", CLEAR_NAMES)
def test_clear_names_are_understood(tmp_path: Path, names: str, n_roles: int) -> None:
    for name in names.split():
        np.save(tmp_path / f"{name}.npy", 0)
    guessed = guess_arrays(tmp_path)
    assert [guessed[role].stem for role in ROLES[:n_roles]] == names.split()
    assert len(guessed) == n_roles


UNCLEAR_NAMES = {
    "two for one role": "x_train train_images y_train x_val y_val",
    "test twice": "x_train y_train x_val y_val test x_test",
    "a role missing": "x_train y_train x_val",
    "a file without a role": "x_train y_train x_val y_val mystery",
    "labels for test": "x_train y_train x_val y_val y_test",
    "two splits in a name": "x_train y_train x_val y_train_val",
    "nothing": "",
}


@pytest.mark.parametrize("case", UNCLEAR_NAMES)
def test_unclear_names_are_listed(tmp_path: Path, case: str) -> None:
    names = UNCLEAR_NAMES[case].split()
    for name in names:
        np.save(tmp_path / f"{name}.npy", 0)
    with pytest.raises(UserError, match="--train-images, --train-labels") as raised:
        guess_arrays(tmp_path)
    assert all(f"{name}.npy" in str(raised.value) for name in names)


def test_a_folder_of_arrays_is_a_source(tmp_path: Path) -> None:
    arrays_in(tmp_path / "npy")
    (tmp_path / "npy/wnids.txt").write_text("n1\nn2\nn3\nn4")  # not used, because it may not be in label order
    manifest = prepare(tmp_path / "npy", tmp_path / "out")
    assert [entry["id"] for entry in manifest["classes"]] == ["0", "1", "2", "3"]
