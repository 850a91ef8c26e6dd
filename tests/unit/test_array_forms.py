"""Labels as strings, floats from 0 to 255, a share of train as val, and names of classes, for arrays of any file."""

from pathlib import Path

import numpy as np
import pytest

from helpers.sources import arrays_in
from tinyimnet import cli
from tinyimnet.data import arrays
from tinyimnet.data.dataset import open_dataset
from tinyimnet.data.npy import prepare_npy
from tinyimnet.data.prepare import prepare, read_images
from tinyimnet.errors import UserError

WORDS = np.array(["dog", "cat", "ox", "bee"])  # of labels 0 to 3


# ---- strings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["U", "S", "column"])
def test_strings_are_classes_sorted_by_name(kind: str, tmp_path: Path) -> None:
    strings = {split: WORDS[labels] for split, labels in (("train", np.arange(8) % 4), ("val", np.arange(4)[::-1]))}
    convert = {"U": np.array, "S": lambda a: np.char.encode(a, "utf-8"), "column": lambda a: a[:, None]}[kind]
    arrays_in(tmp_path / "npy", **{f"{split}_labels": convert(labels) for split, labels in strings.items()})
    manifest = prepare(tmp_path / "npy", tmp_path / "out", strict=True)
    dataset = open_dataset(tmp_path / "out")
    assert dataset.classes == ("bee", "cat", "dog", "ox")
    for split, labels in strings.items():
        np.testing.assert_array_equal(np.array(dataset.classes)[dataset.labels[split]], labels)
    assert "train_labels.npy (strings)" in manifest["layout"]


def test_a_string_that_train_lacks_is_named(tmp_path: Path) -> None:
    labels = {"train_labels": WORDS[np.arange(8) % 3], "val_labels": WORDS}
    with pytest.raises(UserError, match="val_labels.npy has label bee, outside the 3 classes; correct it, or name all"):
        prepare_npy(arrays_in(tmp_path / "npy", **labels), tmp_path / "out", None)


def test_a_file_of_classes_gives_the_order_of_strings(tmp_path: Path) -> None:
    arrays_in(tmp_path / "npy", train_labels=WORDS[np.arange(8) % 4], val_labels=WORDS)
    (tmp_path / "ids.txt").write_text("ox\ndog\ncat\nbee\n")
    prepare(tmp_path / "npy", tmp_path / "out", tmp_path / "ids.txt")
    dataset = open_dataset(tmp_path / "out")
    assert dataset.classes == ("ox", "dog", "cat", "bee")
    np.testing.assert_array_equal(dataset.labels["val"], [1, 2, 0, 3])


# ---- floats -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale, words", [(1, "from 0 to 255"), (255, "from 0 to 1")])
def test_the_maximum_tells_the_range_of_floats(scale: int, words: str, tmp_path: Path, capsys) -> None:
    files = arrays_in(tmp_path / "npy")
    expected = prepare(tmp_path / "npy", tmp_path / "expected")["sha256"]
    for role in ("train_images", "val_images"):
        np.save(files[role], np.load(files[role]).astype(np.float32) / scale)
    assert prepare(tmp_path / "npy", tmp_path / "out")["sha256"] == expected
    assert capsys.readouterr().err.count(f"(float32 {words})") == 2


def test_floats_of_two_ranges_are_refused(tmp_path: Path) -> None:
    """A dark validation array must not be read in another range than train."""
    files = arrays_in(tmp_path / "npy")
    np.save(files["train_images"], np.load(files["train_images"]).astype(np.float32))
    np.save(files["val_images"], np.load(files["val_images"]) / 255)
    with pytest.raises(UserError, match="val_images.npy has floats from 0 to 1 and .*train_images.npy from 0 to 255"):
        prepare(tmp_path / "npy", tmp_path / "out")


def test_an_overshoot_of_one_is_not_taken_for_255(tmp_path: Path) -> None:
    images = np.full((8, 64, 64, 3), 1.04)
    arrays_in(tmp_path / "npy", train_images=images)
    with pytest.raises(UserError, match="train_images.npy has floats from 1.04 to 1.04, which fit neither"):
        prepare(tmp_path / "npy", tmp_path / "out")


def test_the_images_of_a_prediction_have_the_same_ranges(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    for name, array in {"bytes": images, "one": images / 255, "large": images.astype(float)}.items():
        np.save(tmp_path / f"{name}.npy", array)
        np.testing.assert_array_equal(read_images(tmp_path / f"{name}.npy")[1], images)


# ---- a share of train ---------------------------------------------------------------------------------------------


def train_alone(folder: Path, per_class: int = 10) -> Path:
    """Write arrays of four classes; the pixels of an image are its number."""
    labels = np.arange(4 * per_class) % 4
    images = np.repeat(np.arange(len(labels), dtype=np.uint8), 64 * 64 * 3).reshape(-1, 64, 64, 3)
    folder.mkdir()
    np.save(folder / "x.npy", images)
    np.save(folder / "y.npy", labels)
    return folder


@pytest.mark.parametrize("rows", [7, 500])
def test_the_share_is_held_out_of_each_class_with_its_labels(rows: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(arrays, "CHUNK", rows)
    manifest = prepare(train_alone(tmp_path / "npy"), tmp_path / "out", val_share=0.2)
    dataset = open_dataset(tmp_path / "out")
    assert manifest["layout"].endswith("--val-share 0.2 of each class as val")
    rows = {split: dataset.images[split][:, 0, 0, 0] for split in ("train", "val")}
    for split in rows:
        np.testing.assert_array_equal(dataset.labels[split], rows[split] % 4)
    assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(40))
    assert np.bincount(dataset.labels["val"]).tolist() == [2, 2, 2, 2]


def test_the_share_is_the_same_from_options(tmp_path: Path) -> None:
    source = train_alone(tmp_path / "npy")
    expected = prepare(source, tmp_path / "expected", val_share=0.2)["sha256"]
    options = ["--train-images", f"{source}/x.npy", "--train-labels", f"{source}/y.npy", "--val-share", "0.2"]
    assert cli.main(["prepare", *options, "--out", str(tmp_path / "out")]) == 0
    assert prepare(source, tmp_path / "again", val_share=0.2)["sha256"] == expected
    np.testing.assert_array_equal(
        np.load(tmp_path / "out/val_labels.npy"), np.load(tmp_path / "expected/val_labels.npy")
    )


def test_a_share_of_data_with_val_is_refused(tmp_path: Path) -> None:
    arrays_in(tmp_path / "npy")
    with pytest.raises(UserError, match="npy has validation images in val; omit --val-share 0.1"):
        prepare(tmp_path / "npy", tmp_path / "out", val_share=0.1)


def test_a_class_with_one_image_cannot_be_shared(tmp_path: Path) -> None:
    source = train_alone(tmp_path / "npy")
    np.save(source / "y.npy", np.where(np.arange(40) == 0, "odd", WORDS[np.arange(40) % 4]))
    with pytest.raises(UserError, match=r"1 with one image, which train and val cannot share \(odd\)"):
        prepare(source, tmp_path / "out", val_share=0.1)


# ---- names of classes ---------------------------------------------------------------------------------------------


def test_names_of_classes_beside_the_data_are_used(tmp_path: Path) -> None:
    arrays_in(tmp_path / "npy")
    (tmp_path / "npy/classes.txt").write_text("n4\nn3\nn2\nn1\n")
    (tmp_path / "npy/words.txt").write_text("n1\tgoldfish, Carassius auratus\nn4\ttailed frog\n")
    manifest = prepare(tmp_path / "npy", tmp_path / "out", strict=True)
    found = [(entry["id"], entry["name"]) for entry in manifest["classes"]]
    assert found == [("n4", "tailed frog"), ("n3", "n3"), ("n2", "n2"), ("n1", "goldfish")]


def test_the_option_wins_and_the_file_that_it_replaces_is_named(tmp_path: Path) -> None:
    arrays_in(tmp_path / "npy")
    (tmp_path / "npy/classes.txt").write_text("n4\nn3\nn2\nn1\n")
    (tmp_path / "ids.txt").write_text("a\nb\nc\nd\n")
    manifest = prepare(tmp_path / "npy", tmp_path / "out", tmp_path / "ids.txt")
    assert [entry["id"] for entry in manifest["classes"]] == [*"abcd"]
    assert manifest["skipped"] == {"not of the data set": ["classes.txt"]}


def test_a_file_of_classes_that_does_not_fit_is_named(tmp_path: Path) -> None:
    arrays_in(tmp_path / "npy")
    (tmp_path / "npy/classes.txt").write_text("a\na\n")
    with pytest.raises(UserError, match=r"npy/classes.txt must have one id per line .*a is there twice"):
        prepare(tmp_path / "npy", tmp_path / "out")
