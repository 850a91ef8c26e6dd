"""Arrays in .npz files give what the same arrays give as .npy files, and are read in blocks and without pickle."""

import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from helpers.sources import arrays_in, left_behind
from tinyimnet import cli
from tinyimnet.data import arrays as arrays_module
from tinyimnet.data.arrays import Array
from tinyimnet.data.dataset import open_dataset
from tinyimnet.data.npy import prepare_npy
from tinyimnet.data.prepare import prepare
from tinyimnet.errors import UserError


@pytest.fixture
def arrays(tmp_path: Path) -> dict[str, np.ndarray]:
    return {role: np.load(path) for role, path in arrays_in(tmp_path / "npy").items()}


@pytest.fixture
def expected(arrays: dict[str, np.ndarray], tmp_path: Path) -> dict:
    return prepare(tmp_path / "npy", tmp_path / "expected")


def named(arrays: dict[str, np.ndarray], names: str) -> dict[str, np.ndarray]:
    return dict(zip(names.split(), arrays.values(), strict=True))


NAMES = [
    "train_images train_labels val_images val_labels test_images",
    "x_train y_train x_val y_val x_test",
    "X_train y_train X_valid y_valid test",
]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("names", NAMES)
def test_one_file_with_all_arrays_is_read(names: str, save: Callable, arrays, expected: dict, tmp_path: Path) -> None:
    save(tmp_path / "tiny.npz", **named(arrays, names))
    manifest = prepare(tmp_path / "tiny.npz", tmp_path / "out", strict=True)
    assert (manifest["sha256"], manifest["origin"]) == (expected["sha256"], str(tmp_path / "tiny.npz"))


def test_a_file_for_each_part_is_read(arrays: dict[str, np.ndarray], expected: dict, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for part in ("train", "val"):
        np.savez(tmp_path / f"source/{part}.npz", x=arrays[f"{part}_images"], y=arrays[f"{part}_labels"])
    np.savez(tmp_path / "source/test.npz", x=arrays["test_images"])
    assert prepare(tmp_path / "source", tmp_path / "out", strict=True)["sha256"] == expected["sha256"]


def test_both_kinds_of_file_may_lie_together(arrays: dict[str, np.ndarray], expected: dict, tmp_path: Path) -> None:
    (tmp_path / "npy/train_images.npy").unlink()
    np.savez(tmp_path / "npy/more.npz", train_images=arrays["train_images"])
    assert prepare(tmp_path / "npy", tmp_path / "out", strict=True)["sha256"] == expected["sha256"]


def test_options_take_files_with_one_array(arrays: dict[str, np.ndarray], expected: dict, tmp_path: Path) -> None:
    for role, array in arrays.items():
        np.savez(tmp_path / f"{role}.npz", array)
    files = {role: tmp_path / f"{role}.npz" for role in arrays}
    assert prepare_npy(files, tmp_path / "out", None)["sha256"] == expected["sha256"]
    np.savez(tmp_path / "train_images.npz", a=0, b=1)
    with pytest.raises(UserError, match="train_images.npz has 2 arrays; give it as the source"):
        prepare_npy(files, tmp_path / "again", None)


@pytest.mark.parametrize("convert", [np.asfortranarray, lambda a: a.astype(">f4") / 255, lambda a: a / 255])
def test_any_order_and_type_of_number_is_read(convert: Callable, arrays, expected: dict, tmp_path: Path) -> None:
    changed = {role: convert(array) if "images" in role else array for role, array in arrays.items()}
    np.savez_compressed(tmp_path / "x.npz", **changed)
    assert prepare(tmp_path / "x.npz", tmp_path / "out")["sha256"] == expected["sha256"]


@pytest.mark.parametrize("rows", [1, 3, 8, 9])
def test_every_block_is_read_once_and_in_order(rows: int, arrays, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(arrays_module, "CHUNK", rows)
    np.savez(tmp_path / "x.npz", **arrays)
    for array in (Array(tmp_path / "x.npz", "train_images"), Array(tmp_path / "npy/train_images.npy")):
        blocks = list(array.blocks())
        assert max(map(len, blocks)) == min(rows, 8)
        np.testing.assert_array_equal(np.concatenate(blocks), arrays["train_images"])


def test_blocks_of_large_images_have_fewer_rows(arrays, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(arrays_module, "BLOCK", 3 * arrays["train_images"][0].nbytes)
    np.savez(tmp_path / "x.npz", **arrays)
    for array in (Array(tmp_path / "x.npz", "train_images"), Array(tmp_path / "npy/train_images.npy")):
        assert list(map(len, array.blocks())) == [3, 3, 2]


def test_images_of_32_px_are_kept_and_a_share_of_them_validates(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 32, 32), np.uint8)
    np.savez(tmp_path / "cifar.npz", images=images, labels=np.arange(40) % 2)
    options = ["--out", str(tmp_path / "out"), "--size", "32", "--val-share", "0.1"]
    assert cli.main(["prepare", str(tmp_path / "cifar.npz"), *options]) == 0
    dataset = open_dataset(tmp_path / "out")
    assert np.bincount(dataset.labels["val"]).tolist() == [2, 2]
    prepared = {image.tobytes() for split in ("train", "val") for image in dataset.images[split]}
    assert prepared == {image.tobytes() for image in images.transpose(0, 2, 3, 1)}


def test_test_images_validate_if_nothing_else_does(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    names = ("x_train", "y_train", "x_test", "y_test")
    np.savez(tmp_path / "x.npz", **dict(zip(names, arrays.values(), strict=False)))
    manifest = prepare(tmp_path / "x.npz", tmp_path / "out", strict=True)
    assert manifest["counts"] == {"train": 8, "val": 4}
    assert manifest["layout"] == (
        "train: x_train (uint8), y_train (integers); test: x_test (uint8), y_test (integers); "
        "test as val because there is no val"
    )
    np.testing.assert_array_equal(open_dataset(tmp_path / "out").labels["val"], arrays["val_labels"])


def test_labels_of_test_images_are_named_as_not_kept(arrays: dict[str, np.ndarray], expected, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **arrays, test_labels=np.zeros(2, int))
    manifest = prepare(tmp_path / "x.npz", tmp_path / "out")
    assert manifest["sha256"] == expected["sha256"]
    assert manifest["skipped"] == {"labels that are not kept": ["test"]}


def test_images_and_labels_alone_are_those_of_train(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=arrays["train_images"], labels=arrays["train_labels"])
    with pytest.raises(UserError, match=r"x.npz has no validation images; hold out .* with --val-share 0.1"):
        prepare(tmp_path / "x.npz", tmp_path / "out")
    assert prepare(tmp_path / "x.npz", tmp_path / "out", val_share=0.5)["counts"] == {"train": 4, "val": 4}


# ---- refused ------------------------------------------------------------------------------------------------------


class Code:
    """An object that fails the test when it is unpickled."""

    def __reduce__(self) -> tuple:
        return pytest.fail, ("it was unpickled",)


def flip_in(path: Path, member: str) -> None:
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo(f"{member}.npy").header_offset
    content = bytearray(path.read_bytes())
    content[offset + 1000] ^= 1
    path.write_bytes(bytes(content))


def cut_member(path: Path, member: str) -> None:
    """Write a member that ends before the last row that its header announces."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content[: -10 if name == f"{member}.npy" else None])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "changed": (lambda path: flip_in(path, "val_images"), r"x.npz \(val_images\) is damaged.*Bad CRC-32"),
    "short": (lambda path: cut_member(path, "train_images"), r"\(train_images\) is damaged.*ends before its last row"),
    "short labels": (lambda path: cut_member(path, "val_labels"), r"\(val_labels\) is damaged.*ends before"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-300]), "x.npz is not a valid .npz file"),
    "empty": (lambda path: path.write_bytes(b""), "x.npz is not a valid .npz file"),
    "pickle": (
        lambda path: np.savez(path, x_train=np.array([Code()] * 8), y_train=np.zeros(8, int)),
        r"\(x_train\) is damaged, or no array of numbers \(Object arrays cannot be read without pickle\)",
    ),
    "no rows": (lambda path: np.savez(path, x_train=np.zeros((0, 64, 64, 3)), y_train=0), r"\(x_train\) is empty"),
    "no names": (lambda path: np.savez(path, np.zeros(3), np.zeros(3)), r"one array per role \(arr_0, arr_1\); name"),
    "not numpy": (lambda path: zipped(path, {"x_train.npy": b"x", "y_train.npy": b"y"}), r"\(x_train\) is damaged"),
    "zip": (lambda path: zipped(path, {"a.txt": b"x"}), "x.npz contains no data set"),
}


def zipped(path: Path, contents: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_file_is_one_sentence_that_names_the_array(case: str, arrays, tmp_path: Path) -> None:
    spoil, sentence = DAMAGE[case]
    np.savez(tmp_path / "x.npz", **arrays)
    spoil(tmp_path / "x.npz")
    with pytest.raises(UserError) as raised:
        prepare(tmp_path / "x.npz", tmp_path / "out")
    assert re.search(sentence, str(raised.value)), raised.value
    assert left_behind(tmp_path / "out") == []
