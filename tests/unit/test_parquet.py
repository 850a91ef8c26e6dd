"""Parquet files in the form of the Hugging Face hub give the images of their rows, row group by row group."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from helpers.program import REPO
from helpers.sources import image, left_behind
from tinyimnet.data.dataset import open_dataset
from tinyimnet.data.images import decode
from tinyimnet.data.parquet import Tables
from tinyimnet.data.prepare import prepare
from tinyimnet.errors import UserError

pytestmark = pytest.mark.usefixtures("decoded_in_this_process")
NAMES = ["n03", "n01", "n02"]  # in label order, which is not that of the names
STRUCT = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
TRAIN, VALID = "train-00000-of-00001-1359597a978bc4fa.parquet", "valid-00000-of-00001-70d52db3c749a935.parquet"


def table(seeds: range, labels: list[Any], names: list[str] | None = NAMES, **columns: pyarrow.Array) -> pyarrow.Table:
    """Return images and labels with the schema that the library `datasets` writes."""
    images = pyarrow.array([{"bytes": image(seed), "path": None} for seed in seeds], STRUCT)
    made = pyarrow.table({"image": images, "label": pyarrow.array(labels)} | columns)
    if not names:
        return made
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def save(path: Path, content: pyarrow.Table, rows: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(content, path, row_group_size=rows)
    return path


def hub(folder: Path) -> Path:
    """Write a data set as a clone of its repository on the hub has it: 12 images of train and 5 of valid."""
    save(folder / "data" / TRAIN, table(range(12), [i % 3 for i in range(12)]))
    save(folder / "data" / VALID, table(range(100, 105), [2, 0, 1, 0, 2]))
    (folder / ".gitattributes").touch()
    (folder / "README.md").write_text("A data set.")
    return folder


def pixels(seeds: range) -> np.ndarray:
    return np.stack([decode(image(seed))[0] for seed in seeds])


@pytest.mark.parametrize("place", ["", "data"])
def test_a_clone_and_its_folder_of_data_are_read(place: str, tmp_path: Path, capsys) -> None:
    manifest = prepare(hub(tmp_path / "hub") / place, tmp_path / "out")
    dataset = open_dataset(tmp_path / "out")
    assert dataset.classes == tuple(NAMES)
    np.testing.assert_array_equal(dataset.images["train"], pixels(range(12)))
    np.testing.assert_array_equal(dataset.images["val"], pixels(range(100, 105)))
    np.testing.assert_array_equal(dataset.labels["train"], np.arange(12) % 3)
    np.testing.assert_array_equal(dataset.labels["val"], [2, 0, 1, 0, 2])
    assert manifest["layout"] == "12 rows of train, 5 rows of val"
    assert "found Parquet files: 12 rows of train, 5 rows of val" in capsys.readouterr().err
    expected = {"not of the data set": ["README.md"], "hidden or of the system": [".gitattributes"]}
    assert manifest["skipped"] == ({} if place else expected)


def test_several_files_of_a_part_are_joined_in_order(tmp_path: Path) -> None:
    for number in range(3):
        seeds = range(4 * number, 4 * number + 4)
        save(tmp_path / f"hub/train-0000{number}-of-00003.parquet", table(seeds, [seed % 3 for seed in seeds]))
    save(tmp_path / "hub/validation.parquet", table(range(3), [0, 1, 2]))
    prepare(tmp_path / "hub", tmp_path / "out")
    np.testing.assert_array_equal(open_dataset(tmp_path / "out").images["train"], pixels(range(12)))


def test_one_file_is_train_and_a_share_of_it_validates(tmp_path: Path) -> None:
    file = save(tmp_path / "pictures.parquet", table(range(12), [i % 3 for i in range(12)]))
    with pytest.raises(UserError, match="pictures.parquet has no validation images; hold out .* --val-share 0.1"):
        prepare(file, tmp_path / "out")
    manifest = prepare(file, tmp_path / "out", val_share=0.25)
    dataset = open_dataset(tmp_path / "out")
    assert manifest["counts"] == {"train": 9, "val": 3}
    for split in ("train", "val"):
        for pixels_of_one, label in zip(dataset.images[split], dataset.labels[split], strict=True):
            (seed,) = np.flatnonzero((pixels(range(12)) == pixels_of_one).all((1, 2, 3)))
            assert label == seed % 3


def test_test_rows_without_labels_are_test_images(tmp_path: Path) -> None:
    save(hub(tmp_path / "hub") / "data/test-00000-of-00001.parquet", table(range(200, 203), [-1] * 3))
    manifest = prepare(tmp_path / "hub", tmp_path / "out")
    assert manifest["counts"] == {"train": 12, "val": 5, "test": 3}
    assert manifest["test_files"] == ["test_0", "test_1", "test_2"]


def test_images_of_other_sizes_are_scaled(tmp_path: Path) -> None:
    wide = pyarrow.array([{"bytes": image(seed, size=(100, 80)), "path": "x.jpg"} for seed in range(12)], STRUCT)
    file = save(tmp_path / "x.parquet", table(range(12), [i % 3 for i in range(12)], image=wide))
    with pytest.raises(UserError, match=r"12 not 64x64 pixels \(x.parquet:\d+: 100x80.*--size"):
        prepare(file, tmp_path / "out", val_share=0.25)
    manifest = prepare(file, tmp_path / "out", val_share=0.25, size=32, fit="crop")
    assert (manifest["image_size"], manifest["fit"]) == (32, "crop")


def test_names_come_from_an_option_or_a_file_if_the_schema_has_none(tmp_path: Path) -> None:
    save(tmp_path / "hub/train.parquet", table(range(12), [i % 3 for i in range(12)], None))
    (tmp_path / "hub/classes.txt").write_text("a\nb\nc\n")
    (tmp_path / "hub/words.txt").write_text("b\tbee, insect\n")
    (tmp_path / "ids.txt").write_text("x\ny\nz\n")
    manifest = prepare(tmp_path / "hub", tmp_path / "out", val_share=0.25, strict=True)
    assert [(entry["id"], entry["name"]) for entry in manifest["classes"]] == [("a", "a"), ("b", "bee"), ("c", "c")]
    other = prepare(tmp_path / "hub", tmp_path / "other", tmp_path / "ids.txt", val_share=0.25)
    assert [entry["id"] for entry in other["classes"]] == [*"xyz"]


def test_labels_may_be_strings(tmp_path: Path) -> None:
    file = save(tmp_path / "x.parquet", table(range(12), [("ox", "bee", "cat")[i % 3] for i in range(12)], None))
    prepare(file, tmp_path / "out", val_share=0.25)
    assert open_dataset(tmp_path / "out").classes == ("bee", "cat", "ox")


@pytest.mark.parametrize("rows", [1, 5, 12, 100])
def test_each_row_group_is_read_once_and_forgotten(rows: int, tmp_path: Path, monkeypatch) -> None:
    save(tmp_path / "x.parquet", table(range(12), [i % 3 for i in range(12)]), rows)
    read, groups = parquet.ParquetFile.read_row_group, []

    def recorded(self: parquet.ParquetFile, number: int, *args: Any, **options: Any) -> pyarrow.Table:
        groups.append(number)
        return read(self, number, *args, **options)

    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", recorded)
    tables = Tables(tmp_path / "x.parquet", [tmp_path / "x.parquet"])
    assert [tables.read(f"x.parquet:{row}") for row in range(12)] == [image(seed) for seed in range(12)]
    assert groups == list(range(-(-12 // rows)))
    assert tables._group and tables._group[1].nbytes < 13_000 * min(rows, 12)


# ---- refused ------------------------------------------------------------------------------------------------------


def with_row(file: Path, row: int, content: bytes | None) -> None:
    images = [{"bytes": image(seed), "path": None} for seed in range(12)]
    images[row]["bytes"] = content
    save(file, table(range(12), [i % 3 for i in range(12)], image=pyarrow.array(images, STRUCT)))


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[200:260] = b"\xff" * 60
    file.write_bytes(bytes(content))


def labelled(file: Path, labels: list[Any], **columns: pyarrow.Array) -> None:
    save(file, table(range(12), labels, **columns))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "damaged image": (lambda file: with_row(file, 7, image(7)[:300]), rf"1 damaged or not an image \({TRAIN}:7\)"),
    "no bytes": (lambda file: with_row(file, 5, None), rf"1 unreadable \({TRAIN}:5: the row has no bytes\)"),
    "cut": (lambda file: file.write_bytes(file.read_bytes()[:-50]), f"{TRAIN} is not a valid Parquet file"),
    "no Parquet": (lambda file: file.write_text("hello"), f"{TRAIN} is not a valid Parquet file"),
    "label too large": (lambda file: labelled(file, [3] * 12), r"\(train\) has label 3, outside the 3 classes"),
    "negative label": (lambda file: labelled(file, [0, -1] * 6), r"\(train\) has label -1, outside the 3 classes"),
    "no label": (lambda file: labelled(file, [0, None] * 6), f"{TRAIN} has 6 rows without a label"),
    "float labels": (lambda file: labelled(file, [0.5] * 12), r"\(train\) is float64"),
    "other columns": (
        lambda file: save(file, pyarrow.table({"img": [b"x"], "y": [1]})),
        f"{TRAIN} has the columns img, y and must have `image`, a struct .* and `label`",
    ),
    "plain bytes": (
        lambda file: labelled(file, [0] * 12, image=pyarrow.array([image(1)] * 12)),
        f"{TRAIN} has the columns image, label and must have `image`, a struct",
    ),
    "no train": (lambda file: file.unlink(), rf"has no Parquet file of train \({VALID}\)"),
    "a name of two splits": (
        lambda file: file.rename(file.with_name("train-test.parquet")),
        r"train-test.parquet names several splits \(test, train\)",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_file_that_cannot_be_used_is_named(case: str, tmp_path: Path) -> None:
    spoil, sentence = DAMAGE[case]
    spoil(hub(tmp_path / "hub") / "data" / TRAIN)
    with pytest.raises(UserError) as raised:
        prepare(tmp_path / "hub", tmp_path / "out")
    assert re.search(sentence, str(raised.value)), raised.value
    assert left_behind(tmp_path / "out") == []


def test_a_damaged_row_group_is_named_by_its_rows(tmp_path: Path) -> None:
    flip(hub(tmp_path / "hub") / "data" / TRAIN)
    with pytest.raises(UserError, match=rf"(unreadable|damaged or not an image) \({TRAIN}:0"):
        prepare(tmp_path / "hub", tmp_path / "out")


def test_without_pyarrow_one_sentence_says_how_to_install_it(tmp_path: Path, monkeypatch) -> None:
    extra = re.search(r'^parquet = \["(.*)"\]$', (REPO / "pyproject.toml").read_text(), re.M)
    assert extra
    hub(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
    with pytest.raises(UserError, match=re.escape(f"is read with pyarrow; run pip install '{extra[1]}'.") + "$"):
        prepare(tmp_path / "hub", tmp_path / "out")
