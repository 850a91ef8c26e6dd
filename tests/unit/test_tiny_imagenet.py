"""The official layout, as archive or folder, gives verified arrays, or one sentence and no output."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.sources import NAMES, VAL, VAL_LABELS, WNIDS, image, left_behind, official, pack, truncate
from tinyimnet.data.dataset import open_dataset
from tinyimnet.data.prepare import prepare
from tinyimnet.errors import UserError

pytestmark = pytest.mark.usefixtures("decoded_in_this_process")


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return official(tmp_path_factory.mktemp("official"))


@pytest.fixture(scope="module")
def prepared(tree: Path) -> Path:
    out = tree.parent / "prepared"
    prepare(tree, out)
    return out


@pytest.fixture
def root(tree: Path, tmp_path: Path) -> Path:
    """A copy of the tree to damage."""
    return shutil.copytree(tree, tmp_path / tree.name)


# Preparation of the official layout.


def test_arrays_are_what_pillow_decodes(tree: Path, prepared: Path) -> None:
    files = [tree / f"train/{w}/images/{w}_{i}.JPEG" for w in sorted(WNIDS) for i in (0, 1, 2, 10)]
    images = open_dataset(prepared).images["train"]
    np.testing.assert_array_equal(images, np.stack([pixels(file) for file in files]))


def test_grayscale_becomes_three_equal_channels(prepared: Path) -> None:
    gray = open_dataset(prepared).images["train"][8 + 1]  # n03_1
    assert (gray == gray[:, :, :1]).all()


def test_cmyk_becomes_rgb(tree: Path, prepared: Path) -> None:
    file = tree / "train/n01/images/n01_10.JPEG"
    assert Image.open(file).mode == "CMYK"
    np.testing.assert_array_equal(open_dataset(prepared).images["train"][3], pixels(file))


def test_classes_are_sorted_and_named(prepared: Path) -> None:
    dataset = open_dataset(prepared)
    assert dict(zip(dataset.classes, dataset.names, strict=True)) == NAMES
    assert dataset.classes == ("n01", "n02", "n03")
    np.testing.assert_array_equal(dataset.labels["train"], np.repeat([0, 1, 2], 4))


def test_val_labels_come_from_the_annotations(prepared: Path) -> None:
    np.testing.assert_array_equal(open_dataset(prepared).labels["val"], VAL_LABELS)


def test_val_images_are_in_natural_order(tree: Path, prepared: Path) -> None:
    expected = [pixels(tree / f"val/images/val_{i}.JPEG") for i in (0, 1, 2, 3, 10)]
    np.testing.assert_array_equal(open_dataset(prepared).images["val"], expected)


def test_test_images_are_in_natural_order(tree: Path, prepared: Path) -> None:
    dataset = open_dataset(prepared)
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
    manifest = prepare(pack(tree), tmp_path / "out")
    assert manifest["sha256"] == json.loads((prepared / "manifest.json").read_text())["sha256"]
    assert set(manifest["sha256"]) == {path.name for path in (tmp_path / "out").glob("*.npy")}


def test_a_folder_around_the_official_one_gives_the_same_arrays(tree: Path, prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "around").mkdir()
    (tmp_path / "around/inner").symlink_to(tree)
    manifest = prepare(tmp_path / "around", tmp_path / "out")
    assert manifest["sha256"] == json.loads((prepared / "manifest.json").read_text())["sha256"]


def test_no_count_is_assumed(root: Path, tmp_path: Path) -> None:
    shutil.rmtree(root / "test")
    (root / "train/n01/images/n01_1.JPEG").unlink()
    assert prepare(root, tmp_path / "out")["counts"] == {"train": 11, "val": 5}
    assert open_dataset(tmp_path / "out").test_files == ()


def test_lists_of_classes_and_names_may_be_absent(root: Path, tmp_path: Path) -> None:
    (root / "wnids.txt").unlink()
    (root / "words.txt").unlink()
    classes = prepare(root, tmp_path / "out")["classes"]
    assert classes == [{"id": wnid, "name": wnid} for wnid in sorted(WNIDS)]


def test_only_complete_folders_with_default_permissions_appear(prepared: Path) -> None:
    assert left_behind(prepared) == ["prepared"]
    assert not (prepared / "lock").exists()
    assert prepared.stat().st_mode == prepared.parent.joinpath("tiny-imagenet-200").stat().st_mode


# Damaged sources: one sentence that names the file, and no output.


def annotate(root: Path, line: str) -> None:
    with (root / "val/val_annotations.txt").open("a") as file:
        file.write(line + "\n")


def keep_one_class(root: Path) -> None:
    for wnid in ("n02", "n03"):
        shutil.rmtree(root / "train" / wnid)
    (root / "wnids.txt").write_text("n01\n")
    (root / "val/val_annotations.txt").write_text("".join(f"{file}\tn01\n" for file in VAL))


TREE_DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated JPEG": (
        lambda r: truncate(r / "train/n02/images/n02_1.JPEG"),
        r"1 damaged .*n02_1\.JPEG",
    ),
    "empty JPEG": (lambda r: (r / "val/images/val_1.JPEG").write_bytes(b""), r"damaged .*val_1\.JPEG"),
    "no JPEG": (lambda r: (r / "val/images/val_1.JPEG").write_text("hello"), r"damaged .*val_1\.JPEG"),
    "wrong size": (
        lambda r: (r / "test/images/test_2.JPEG").write_bytes(image(1, size=(32, 64))),
        r"not 64x64 pixels \(test/images/test_2\.JPEG: 32x64\)",
    ),
    "unknown class": (lambda r: annotate(r, "val_9.JPEG\tn77"), r"unknown class in .* \(val_9\.JPEG: 'n77'\)"),
    "line without class": (lambda r: annotate(r, "val_9.JPEG"), r"unknown class in .* \(val_9\.JPEG: ''\)"),
    "annotated twice": (lambda r: annotate(r, "val_1.JPEG\tn01"), r"two lines in .* \(val_1\.JPEG\)"),
    "image without annotation": (
        lambda r: (r / "val/images/val_7.JPEG").write_bytes(image(1)),
        r"without a line in .* \(val/images/val_7\.JPEG\)",
    ),
    "annotation without image": (
        lambda r: (r / "val/images/val_3.JPEG").unlink(),
        r"without an image \(val_3\.JPEG\)",
    ),
    "name that leads out": (
        lambda r: annotate(r, "../../train/n01/images/n01_0.JPEG\tn01"),
        r"listed in .* without an image \(\.\./\.\./train/n01/images/n01_0\.JPEG\)",
    ),
    "no annotations": (lambda r: (r / "val/val_annotations.txt").unlink(), "lacks val/val_annotations.txt"),
    "annotations not text": (
        lambda r: (r / "val/val_annotations.txt").write_bytes(b"\xff\xfe"),
        "val_annotations.txt is not UTF-8",
    ),
    "class without folder": (
        lambda r: shutil.rmtree(r / "train/n02"),
        r"wnids\.txt without an image in train \(n02\)",
    ),
    "folder without class": (
        lambda r: (r / "wnids.txt").write_text("n01\nn02"),
        r"not listed in wnids\.txt \(n03\)",
    ),
    "no val images": (
        lambda r: [path.unlink() for path in r.glob("val/images/v*")],
        "no image in val/images",
    ),
    "no train images": (lambda r: [shutil.rmtree(r / "train" / w) for w in WNIDS], "no image in train"),
    "no train folder": (lambda r: shutil.rmtree(r / "train"), "contains no data set"),
    "one class": (lambda r: keep_one_class(r), "has 1 class; give data of at least 2"),
}


@pytest.mark.parametrize("damage", TREE_DAMAGE)
def test_a_damaged_tree_is_refused_and_nothing_left(root: Path, tmp_path: Path, damage: str) -> None:
    spoil, sentence = TREE_DAMAGE[damage]
    spoil(root)
    with pytest.raises(UserError, match=sentence):
        prepare(root, tmp_path / "out")
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
    "truncated": (truncate, "is not a valid zip archive"),
    "empty": (lambda z: z.write_bytes(b""), "is not a valid zip archive"),
    "flipped bit": (flip_bit, r"unreadable \(val/images/val_2\.JPEG: Bad CRC-32"),
    "encrypted": (encrypt, "is encrypted"),
    "leads out": (lambda z: add_member(z, "tiny-imagenet-200/../../x"), r"\.\./\.\./x' outside"),
    "absolute": (lambda z: add_member(z, "/etc/x"), "'/etc/x' outside"),
    "two data sets": (
        lambda z: add_member(z, "other/train/n01/x.JPEG"),
        r"several data sets \(other/train, ",
    ),
}


@pytest.mark.parametrize("damage", ZIP_DAMAGE)
def test_a_damaged_archive_is_refused_and_nothing_left(root: Path, tmp_path: Path, damage: str) -> None:
    archive = pack(root)
    spoil, sentence = ZIP_DAMAGE[damage]
    spoil(archive)
    with pytest.raises(UserError, match=sentence):
        prepare(archive, tmp_path / "out")
    assert left_behind(tmp_path / "out") == []


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing.zip does not exist"):
        prepare(tmp_path / "missing.zip", tmp_path / "out")
