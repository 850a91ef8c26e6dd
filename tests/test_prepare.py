"""Preparing: an official archive or folder or .npy files give checked arrays, or one sentence and nothing."""

import argparse
import errno
import fcntl
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinyimnet import arrays, data, files, prepare
from tinyimnet.errors import UserError
from tinyimnet.prepared import new_folder

REPOSITORY = Path(__file__).resolve().parent.parent
WNIDS = ["n03", "n01", "n02"]  # as in wnids.txt, unsorted
NAMES = {"n01": "goldfish", "n02": "n02", "n03": "tailed frog"}  # n02 is not in words.txt
VAL = {
    "val_10.JPEG": "n01",
    "val_2.JPEG": "n03",
    "val_0.JPEG": "n02",
    "val_1.JPEG": "n02",
    "val_3.JPEG": "n01",
}
VAL_LABELS = [1, 1, 2, 0, 0]  # of val_0, 1, 2, 3, 10


def image(seed: int, mode: str = "RGB", size: tuple[int, int] = (64, 64)) -> bytes:
    """A JPEG of smooth noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize(size).convert(mode).save(file, "JPEG")
    return file.getvalue()


def official(folder: Path) -> Path:
    """A tiny official tree: 3 classes x 4 train, 5 val, 3 test; one train image grayscale, one CMYK."""
    root = folder / "tiny-imagenet-200"
    for name in ("train", "val/images", "test/images"):
        (root / name).mkdir(parents=True)
    for label, wnid in enumerate(WNIDS):
        (root / "train" / wnid / "images").mkdir(parents=True)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t9\t9\n")
        for i, number in enumerate((0, 1, 2, 10)):
            mode = {(0, 1): "L", (1, 3): "CMYK"}.get((label, i), "RGB")
            (root / f"train/{wnid}/images/{wnid}_{number}.JPEG").write_bytes(image(10 * label + i, mode))
    for i, file in enumerate(VAL):
        (root / "val/images" / file).write_bytes(image(100 + i))
    for i in (0, 2, 10):
        (root / f"test/images/test_{i}.JPEG").write_bytes(image(200 + i))
    (root / "val/val_annotations.txt").write_text("".join(f"{f}\t{w}\t0\t0\t9\t9\n" for f, w in VAL.items()))
    (root / "wnids.txt").write_text("\n".join(WNIDS))
    (root / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn03\ttailed frog\nn99\tother\n")
    (root / "train/.DS_Store").write_bytes(b"junk")
    (root / "val/images/._val_0.JPEG").write_bytes(b"junk")
    return root


def pack(root: Path) -> Path:
    """The tree as a zip archive, compressed, with what macOS adds."""
    archive = root.parent / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(root.rglob("*")):
            file.write(path, path.relative_to(root.parent))
        file.writestr("__MACOSX/tiny-imagenet-200/train/n01/._n01_0.JPEG", b"junk")
    return archive


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def left_behind(out: Path) -> list[str]:
    """Names beside `out` that a failed or killed preparation left."""
    return sorted(path.name for path in out.parent.iterdir() if out.name in path.name)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return official(tmp_path_factory.mktemp("official"))


@pytest.fixture(scope="module")
def prepared(tree: Path) -> Path:
    out = tree.parent / "prepared"
    prepare.prepare(tree, out)
    return out


@pytest.fixture
def root(tree: Path, tmp_path: Path) -> Path:
    """A copy of the tree to spoil."""
    return shutil.copytree(tree, tmp_path / tree.name)


# What is prepared from the official layout.


def test_arrays_are_what_pillow_decodes(tree: Path, prepared: Path) -> None:
    files = [tree / f"train/{w}/images/{w}_{i}.JPEG" for w in sorted(WNIDS) for i in (0, 1, 2, 10)]
    images = data.open_dataset(prepared).images["train"]
    np.testing.assert_array_equal(images, np.stack([pixels(file) for file in files]))


def test_grayscale_becomes_three_equal_channels(prepared: Path) -> None:
    gray = data.open_dataset(prepared).images["train"][8 + 1]  # n03_1
    assert (gray == gray[:, :, :1]).all()


def test_cmyk_becomes_rgb(tree: Path, prepared: Path) -> None:
    file = tree / "train/n01/images/n01_10.JPEG"
    assert Image.open(file).mode == "CMYK"
    np.testing.assert_array_equal(data.open_dataset(prepared).images["train"][3], pixels(file))


def test_classes_are_sorted_and_named(prepared: Path) -> None:
    dataset = data.open_dataset(prepared)
    assert dict(zip(dataset.classes, dataset.names, strict=True)) == NAMES
    assert dataset.classes == ("n01", "n02", "n03")
    np.testing.assert_array_equal(dataset.labels["train"], np.repeat([0, 1, 2], 4))


def test_val_labels_come_from_the_annotations(prepared: Path) -> None:
    np.testing.assert_array_equal(data.open_dataset(prepared).labels["val"], VAL_LABELS)


def test_val_images_are_in_natural_order(tree: Path, prepared: Path) -> None:
    expected = [pixels(tree / f"val/images/val_{i}.JPEG") for i in (0, 1, 2, 3, 10)]
    np.testing.assert_array_equal(data.open_dataset(prepared).images["val"], expected)


def test_test_images_are_in_natural_order(tree: Path, prepared: Path) -> None:
    dataset = data.open_dataset(prepared)
    assert dataset.test_files == ("test_0.JPEG", "test_2.JPEG", "test_10.JPEG")
    expected = [pixels(tree / "test/images" / file) for file in dataset.test_files]
    np.testing.assert_array_equal(dataset.images["test"], expected)


def test_manifest_holds_counts_and_channel_statistics(prepared: Path) -> None:
    manifest = json.loads((prepared / "manifest.json").read_text())
    images = np.load(prepared / "train_images.npy") / 255
    assert manifest["counts"] == {"train": 12, "val": 5, "test": 3}
    np.testing.assert_allclose(manifest["mean"], images.mean((0, 1, 2)))
    np.testing.assert_allclose(manifest["std"], images.std((0, 1, 2)))


def test_zip_and_folder_give_the_same_arrays(tree: Path, prepared: Path, tmp_path: Path) -> None:
    manifest = prepare.prepare(pack(tree), tmp_path / "out")
    assert manifest["sha256"] == json.loads((prepared / "manifest.json").read_text())["sha256"]
    assert set(manifest["sha256"]) == {path.name for path in (tmp_path / "out").glob("*.npy")}


def test_a_folder_around_the_official_one_does_too(tree: Path, prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "around").mkdir()
    (tmp_path / "around/inner").symlink_to(tree)
    manifest = prepare.prepare(tmp_path / "around", tmp_path / "out")
    assert manifest["sha256"] == json.loads((prepared / "manifest.json").read_text())["sha256"]


def test_no_count_is_assumed(root: Path, tmp_path: Path) -> None:
    shutil.rmtree(root / "test")
    (root / "train/n01/images/n01_1.JPEG").unlink()
    assert prepare.prepare(root, tmp_path / "out")["counts"] == {"train": 11, "val": 5}
    assert data.open_dataset(tmp_path / "out").test_files == ()


def test_lists_of_classes_and_names_may_be_absent(root: Path, tmp_path: Path) -> None:
    (root / "wnids.txt").unlink()
    (root / "words.txt").unlink()
    classes = prepare.prepare(root, tmp_path / "out")["classes"]
    assert classes == [{"id": wnid, "name": wnid} for wnid in sorted(WNIDS)]


def test_only_whole_folders_with_usual_permissions_appear(prepared: Path) -> None:
    assert left_behind(prepared) == ["prepared"]
    assert not (prepared / "lock").exists()
    assert prepared.stat().st_mode == prepared.parent.joinpath("tiny-imagenet-200").stat().st_mode


# Damaged sources: one sentence that names the culprit, and nothing left.


def annotate(root: Path, line: str) -> None:
    with (root / "val/val_annotations.txt").open("a") as file:
        file.write(line + "\n")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


TREE_DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated JPEG": (lambda r: truncate(r / "train/n02/images/n02_1.JPEG"), r"n02_1\.JPEG is damaged"),
    "no JPEG": (lambda r: (r / "val/images/val_1.JPEG").write_text("hello"), r"val_1\.JPEG is damaged"),
    "wrong size": (
        lambda r: (r / "test/images/test_2.JPEG").write_bytes(image(1, size=(32, 64))),
        r"test_2\.JPEG has 32x64",
    ),
    "unknown class": (lambda r: annotate(r, "val_9.JPEG\tn77"), "val_9.JPEG the unknown class 'n77'"),
    "line without class": (lambda r: annotate(r, "val_9.JPEG"), "val_9.JPEG the unknown class ''"),
    "annotated twice": (lambda r: annotate(r, "val_1.JPEG\tn01"), "val_1.JPEG twice"),
    "image without annotation": (
        lambda r: (r / "val/images/val_7.JPEG").write_bytes(image(1)),
        "val_7.JPEG has no line",
    ),
    "annotation without image": (lambda r: (r / "val/images/val_3.JPEG").unlink(), "val_3.JPEG is no image"),
    "name that leads out": (
        lambda r: annotate(r, "../../train/n01/images/n01_0.JPEG\tn01"),
        r"\.\./train/n01/images/n01_0\.JPEG is no image",
    ),
    "no annotations": (lambda r: (r / "val/val_annotations.txt").unlink(), "lacks val/val_annotations.txt"),
    "annotations not text": (
        lambda r: (r / "val/val_annotations.txt").write_bytes(b"\xff\xfe"),
        "val_annotations.txt is not UTF-8",
    ),
    "class without folder": (lambda r: shutil.rmtree(r / "train/n02"), "class n02 has no image"),
    "folder without class": (lambda r: (r / "wnids.txt").write_text("n01\nn02"), "class n03 has images"),
    "no val images": (
        lambda r: [path.unlink() for path in r.glob("val/images/v*")],
        "no image in val/images",
    ),
    "no train images": (lambda r: [shutil.rmtree(r / "train" / w) for w in WNIDS], "no image in train"),
    "no train folder": (lambda r: shutil.rmtree(r / "train"), "holds no data set"),
}


@pytest.mark.parametrize("damage", TREE_DAMAGE)
def test_a_damaged_tree_is_refused_and_nothing_left(root: Path, tmp_path: Path, damage: str) -> None:
    spoil, sentence = TREE_DAMAGE[damage]
    spoil(root)
    with pytest.raises(UserError, match=sentence):
        prepare.prepare(root, tmp_path / "out")
    assert left_behind(tmp_path / "out") == []


def flip_bit(archive: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        offset = file.getinfo("tiny-imagenet-200/val/images/val_2.JPEG").header_offset
    content = bytearray(archive.read_bytes())
    content[offset + 400] ^= 1
    archive.write_bytes(content)


def encrypt(archive: Path) -> None:
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # general purpose flags of the first member
    archive.write_bytes(content)


def add_member(archive: Path, name: str) -> None:
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(name, b"")


ZIP_DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncate, "is not a whole zip archive"),
    "no zip": (lambda z: z.write_text("<html>404</html>"), "is not a whole zip archive"),
    "flipped bit": (flip_bit, r"val_2\.JPEG cannot be read"),
    "encrypted": (encrypt, "is encrypted"),
    "leads out": (lambda z: add_member(z, "tiny-imagenet-200/../../x"), r"\.\./\.\./x' outside"),
    "absolute": (lambda z: add_member(z, "/etc/x"), "'/etc/x' outside"),
    "two data sets": (lambda z: add_member(z, "other/train/n01/x.JPEG"), "holds no data set"),
}


@pytest.mark.parametrize("damage", ZIP_DAMAGE)
def test_a_damaged_archive_is_refused_and_nothing_left(root: Path, tmp_path: Path, damage: str) -> None:
    archive = pack(root)
    spoil, sentence = ZIP_DAMAGE[damage]
    spoil(archive)
    with pytest.raises(UserError, match=sentence):
        prepare.prepare(archive, tmp_path / "out")
    assert left_behind(tmp_path / "out") == []


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing.zip does not exist"):
        prepare.prepare(tmp_path / "missing.zip", tmp_path / "out")


# .npy files.


def arrays_in(folder: Path, **replaced: np.ndarray) -> dict[str, Path]:
    """Four classes, 8 train, 4 val and 2 test images, as course files."""
    rng = np.random.default_rng(0)
    arrays = {
        "train_images": rng.integers(0, 256, (8, 64, 64, 3), np.uint8),
        "train_labels": np.arange(8) % 4,
        "val_images": rng.integers(0, 256, (4, 64, 64, 3), np.uint8),
        "val_labels": np.arange(4)[::-1].copy(),
        "test_images": rng.integers(0, 256, (2, 64, 64, 3), np.uint8),
    } | replaced
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return {name: folder / f"{name}.npy" for name in arrays}


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
    arrays.prepare_arrays(files, tmp_path / "out", None)
    for name, array in expected.items():
        np.testing.assert_array_equal(np.load(tmp_path / "out" / name), array)


def test_classes_are_numbered_without_a_file(tmp_path: Path) -> None:
    arrays.prepare_arrays(arrays_in(tmp_path / "npy"), tmp_path / "out", None)
    dataset = data.open_dataset(tmp_path / "out")
    assert dataset.classes == ("0", "1", "2", "3")
    assert dataset.test_files == ("test_0", "test_1")


def test_classes_are_read_in_label_order_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("n9\nn3\nn5\nn1\nn2\n")
    manifest = arrays.prepare_arrays(arrays_in(tmp_path / "npy"), tmp_path / "out", tmp_path / "ids.txt")
    assert [entry["id"] for entry in manifest["classes"]] == ["n9", "n3", "n5", "n1", "n2"]


def test_test_images_are_optional(tmp_path: Path) -> None:
    files = arrays_in(tmp_path / "npy")
    del files["test_images"]
    assert arrays.prepare_arrays(files, tmp_path / "out", None)["counts"] == {"train": 8, "val": 4}


def with_value(array: np.ndarray, value: float) -> np.ndarray:
    array.flat[-1] = value
    return array


WRONG_ARRAYS: dict[str, tuple[str, np.ndarray, str]] = {
    "float above 1": (
        "val_images",
        with_value(np.zeros((4, 64, 64, 3)), 1.5),
        r"val_images.*outside \[0, 1\]",
    ),
    "negative float": (
        "val_images",
        with_value(np.zeros((4, 64, 64, 3)), -0.1),
        r"val_images.*outside \[0, 1\]",
    ),
    "NaN": ("val_images", with_value(np.zeros((4, 64, 64, 3)), np.nan), "val_images.*NaN"),
    "flat images": ("train_images", np.zeros((8, 12288), np.uint8), r"train_images.* is uint8 \(8, 12288\)"),
    "small images": ("test_images", np.zeros((2, 32, 32, 3), np.uint8), "test_images.*32, 32"),
    "integer images": ("train_images", np.zeros((8, 64, 64, 3), np.int32), "train_images.* is int32"),
    "no rows": ("val_images", np.zeros((0, 64, 64, 3), np.uint8), "val_images.* is empty"),
    "scalar": ("val_labels", np.array(3), "val_labels.* is empty"),
    "fewer labels": ("train_labels", np.zeros(7, int), "8 images and .*train_labels.* 7 labels"),
    "float labels": ("train_labels", np.zeros(8), "train_labels.* is float64"),
    "label too large": ("val_labels", np.array([0, 1, 2, 4]), "val_labels.* label 4, outside the 4 classes"),
    "negative label": ("train_labels", np.arange(8) % 4 - 1, "train_labels.* label -1"),
    "labels with gaps": ("train_labels", np.arange(8) * 50, "go up to 350; give their --classes"),
    "not one-hot": ("train_labels", np.ones((8, 4), int), "train_labels.* not one-hot"),
    "another one-hot width": ("val_labels", np.eye(5, dtype=int)[:4], "val_labels.* one-hot for 5 classes"),
    "strings": ("train_labels", np.array(["cat"] * 8), "train_labels.* is <U3"),
    "objects": ("val_labels", np.array([{}] * 4), "val_labels.* is not a whole .npy file"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mistake", WRONG_ARRAYS)
def test_a_wrong_array_is_refused_by_name(tmp_path: Path, mistake: str) -> None:
    role, array, sentence = WRONG_ARRAYS[mistake]
    with pytest.raises(UserError, match=sentence):
        arrays.prepare_arrays(arrays_in(tmp_path / "npy", **{role: array}), tmp_path / "out", None)
    assert left_behind(tmp_path / "out") == []


WRONG_FILES: dict[str, Callable[[Path], object]] = {
    "pickled": lambda path: path.write_bytes(pickle.dumps([1, 2])),
    "truncated": truncate,
    "empty": lambda path: path.write_bytes(b""),
    "npz": lambda path: np.savez(path.open("wb"), x=np.zeros(3)),
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("mistake", WRONG_FILES)
def test_a_file_that_is_no_array_is_refused_by_name(tmp_path: Path, mistake: str) -> None:
    files = arrays_in(tmp_path / "npy")
    WRONG_FILES[mistake](files["val_images"])
    with pytest.raises(UserError, match=r"val_images.npy is not a whole .npy file"):
        arrays.prepare_arrays(files, tmp_path / "out", None)


@pytest.mark.parametrize("text", ["", "a\nb\na\nc\n", "a\nb\n"])
def test_wrong_class_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "ids.txt").write_text(text)
    with pytest.raises(UserError, match="--classes"):
        arrays.prepare_arrays(arrays_in(tmp_path / "npy"), tmp_path / "out", tmp_path / "ids.txt")


def test_a_missing_role_is_named_as_its_option(tmp_path: Path) -> None:
    files = arrays_in(tmp_path / "npy")
    del files["val_labels"]
    with pytest.raises(UserError, match=r"^--val-labels must be given"):
        arrays.prepare_arrays(files, tmp_path / "out", None)


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
    guessed = arrays.guess_arrays(tmp_path)
    assert [guessed[role].stem for role in arrays.ROLES[:n_roles]] == names.split()
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
        arrays.guess_arrays(tmp_path)
    assert all(f"{name}.npy" in str(raised.value) for name in names)


def test_a_folder_of_arrays_is_a_source(tmp_path: Path) -> None:
    arrays_in(tmp_path / "npy")
    (tmp_path / "npy/wnids.txt").write_text("n1\nn2\nn3\nn4")  # nobody says that it is in label order
    manifest = prepare.prepare(tmp_path / "npy", tmp_path / "out")
    assert [entry["id"] for entry in manifest["classes"]] == ["0", "1", "2", "3"]


# The destination.


def test_a_prepared_folder_is_not_touched(tree: Path, prepared: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in prepared.iterdir()}
    with pytest.raises(UserError, match="is already prepared; delete it"):
        prepare.prepare(tree, prepared)
    assert before == {path.name: path.stat().st_mtime_ns for path in prepared.iterdir()}


def test_a_folder_with_something_else_is_not_touched(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="exists and is not a prepared data set"):
        prepare.prepare(tree, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out", 0) as folder:
        (folder / "file").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]


def test_the_slower_of_two_processes_is_told(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match="is already prepared"), new_folder(out, 0):
        out.mkdir()
        (out / "manifest.json").touch()
    assert left_behind(out) == ["out"]


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit, ValueError])
def test_a_failing_block_leaves_nothing(tmp_path: Path, exception: type[BaseException]) -> None:
    with pytest.raises(exception), new_folder(tmp_path / "out", 0) as folder:
        (folder / "train_images.npy").touch()
        raise exception
    assert list(tmp_path.iterdir()) == []


def test_too_little_disk_is_noticed_before_writing(tmp_path: Path) -> None:
    told = pytest.raises(UserError, match=r"needs 1,010,000,000,000 MB and its disk has [0-9,]+ MB free")
    with told, new_folder(tmp_path / "deep/out", 10**18):
        pytest.fail("the block must not run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_up_is_told_and_nothing_left(tmp_path: Path) -> None:
    told = pytest.raises(UserError, match="No space left on device")
    with told, new_folder(tmp_path / "out", 0) as folder, open("/dev/full", "w") as full:
        (folder / "train_images.npy").touch()
        full.write("x")
        full.flush()
    assert list(tmp_path.iterdir()) == []


def test_the_leftover_of_a_dead_builder_is_removed(tmp_path: Path) -> None:
    dead = tmp_path / ".out.partial-dead"
    dead.mkdir()
    (dead / "lock").touch()
    with new_folder(tmp_path / "out", 0):
        assert not dead.exists()


def test_the_folder_of_a_live_builder_is_kept(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out", 0) as live:
        with pytest.raises(KeyError), new_folder(tmp_path / "out", 0):
            raise KeyError
        assert (live / "lock").exists()


def test_on_a_file_system_without_locks_it_prepares_and_removes_no_folder_that_may_be_in_the_making(
    tmp_path: Path, monkeypatch
) -> None:
    """Lustre without the mount option flock answers so."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    other = tmp_path / ".out.partial-1234"
    other.mkdir()
    (other / "lock").touch()
    with new_folder(tmp_path / "out", 0):
        pass
    assert (tmp_path / "out").is_dir() and other.is_dir()


def test_the_lock_is_held_for_the_whole_block(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out", 0) as folder, (folder / "lock").open("r+") as lock:
        (folder / "train_images.npy").touch()
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


# The command, in a process of its own.

COMMAND = """
import argparse, sys
from tinyimnet import errors, prepare
def main(argv):
    parser = argparse.ArgumentParser()
    prepare.add_arguments(parser)
    return prepare.main(parser.parse_args(argv))
sys.exit(errors.run(main, sys.argv[1:]))
"""


def command(*argv: object) -> list[str]:
    return [sys.executable, "-c", COMMAND, *map(str, argv)]


def test_the_command_prints_what_there_is(tree: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        command(tree, "--out", tmp_path / "out"), cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert "12 train, 5 val, 3 test images of 3 classes" in result.stdout
    assert "decoded 20 images in" in result.stderr


def test_a_user_error_in_a_worker_is_one_sentence(root: Path, tmp_path: Path) -> None:
    truncate(root / "train/n02/images/n02_1.JPEG")
    result = subprocess.run(
        command(root, "--out", tmp_path / "out"), cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in result.stderr


def arguments(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    prepare.add_arguments(parser)
    return parser.parse_args(argv)


@pytest.mark.parametrize(
    "argv",
    [[], ["a.zip", "--download"], ["a.zip", "--val-images", "x.npy"], ["--synthetic", "--classes", "c.txt"]],
)
def test_exactly_one_source_is_asked_for(argv: list[str]) -> None:
    with pytest.raises(UserError, match=r"exactly one source.*zip.*--train-images.*--download.*--synthetic"):
        prepare.main(arguments(*argv))


def test_classes_go_with_a_folder_of_arrays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays_in(tmp_path / "npy")
    (tmp_path / "ids.txt").write_text("a\nb\nc\nd\ne\n")
    out = str(tmp_path / "out")
    prepare.main(arguments(str(tmp_path / "npy"), "--out", out, "--classes", str(tmp_path / "ids.txt")))
    assert "8 train, 4 val, 2 test images of 5 classes" in capsys.readouterr().out


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive with 20,000 train images, which take seconds to decode."""
    archive, encoded = tmp_path_factory.mktemp("large") / "tiny-imagenet-200.zip", image(0)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("val/val_annotations.txt", "val_0.JPEG\tn01\n")
        file.writestr("val/images/val_0.JPEG", encoded)
        for i in range(20_000):
            file.writestr(f"train/n01/images/n01_{i}.JPEG", encoded)
    return archive


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


def start_decoding(archive: Path, out: Path) -> tuple[subprocess.Popen[bytes], list[int]]:
    """Start the command; return it and its children once a worker has written pixels."""
    process = subprocess.Popen(command(archive, "--out", out), cwd=REPOSITORY, start_new_session=True)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        for array in out.parent.glob(f".{out.name}.partial-*/train_images.npy"):
            if array.stat().st_blocks > 1000:  # the file is sparse until then
                return process, children(process.pid)
        time.sleep(0.01)
    raise AssertionError(f"decoding did not start, exit code {process.wait()}")


def assert_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 5
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [pid for pid in pids if alive(pid)] == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_import_no_torch(large: Path, tmp_path: Path) -> None:
    process, workers = start_decoding(large, tmp_path / "out")
    loaded = [Path(f"/proc/{pid}/maps").read_text() for pid in workers]
    process.kill()
    process.wait()
    assert_gone(workers)
    assert any("_imaging" in maps for maps in loaded) and not any("libtorch" in maps for maps in loaded)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_sigkill_leaves_nothing_that_looks_prepared_and_no_worker(large: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process, workers = start_decoding(large, out)
    process.kill()
    process.wait()
    assert workers
    assert_gone(workers)
    assert not out.exists()
    assert not list(tmp_path.glob("**/manifest.json"))
    with new_folder(out, 0):
        pass
    assert left_behind(out) == ["out"]  # the next one cleared up


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number, group", [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_a_polite_signal_leaves_nothing_behind(
    large: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], number: signal.Signals, group: bool
) -> None:
    process, workers = start_decoding(large, tmp_path / "out")
    (os.killpg if group else os.kill)(process.pid, number)  # the terminal sends Ctrl-C to the whole group
    assert process.wait(timeout=20) == 128 + number
    assert_gone(workers)
    assert list(tmp_path.iterdir()) == []
    assert "Traceback" not in capfd.readouterr().err
