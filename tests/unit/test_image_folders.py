"""A plain folder of images, one folder per class, gives a data set in any common layout, or one sentence."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.sources import image, left_behind, official, pack
from tinyimnet.data.dataset import open_dataset
from tinyimnet.data.prepare import prepare
from tinyimnet.errors import UserError

pytestmark = pytest.mark.usefixtures("decoded_in_this_process")
CLASSES = {"dog_10": (250, 20, 20), "cat": (20, 250, 20), "dog_9": (20, 20, 250)}
ORDER = ["cat", "dog_9", "dog_10"]  # natural


def write(folder: Path, *names: str, size: tuple[int, int] = (64, 64)) -> Path:
    """Write images, those below the folder of a class in its colour."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        colour = next((CLASSES[part] for part in name.split("/") if part in CLASSES), (0, 0, 0))
        Image.new("RGB", size, colour).save(folder / name)
    return folder


def in_classes(*patterns: str) -> list[str]:
    """Return the patterns for each class: train/CLASS/1.png -> train/cat/1.png, ..."""
    return [pattern.replace("CLASS", name) for name in CLASSES for pattern in patterns]


TEN = in_classes(*(f"CLASS/{i}.png" for i in range(10)))
LAYOUTS: dict[str, tuple[list[str], float | None, dict[str, int], str]] = {
    "no parts": (TEN, 0.2, {"train": 24, "val": 6}, "CLASS/, and --val-share 0.2 of each class as val"),
    "below each class": (
        in_classes("CLASS/1.png", "CLASS/images/2.png", "CLASS/a/b/3.png"),
        0.1,
        {"train": 6, "val": 3},
        "CLASS/, and --val-share 0.1 of each class as val",
    ),
    "train alone": (
        in_classes("train/CLASS/1.png", "train/CLASS/images/2.png"),
        0.5,
        {"train": 3, "val": 3},
        "train/CLASS/, and --val-share 0.5 of each class as val",
    ),
    **{
        part: (
            in_classes("train/CLASS/1.png", "train/CLASS/2.png", f"{part}/CLASS/images/x.png"),
            None,
            {"train": 6, "val": 3},
            f"train/CLASS/ and {part}/CLASS/",
        )
        for part in ("val", "valid", "validation")
    },
    "test for val": (
        in_classes("train/CLASS/1.png", "test/CLASS/1.png"),
        None,
        {"train": 3, "val": 3},
        "train/CLASS/, and test/CLASS/ as val because there is no val",
    ),
    "test besides val": (
        in_classes("train/CLASS/1.png", "val/CLASS/1.png", "test/CLASS/1.png"),
        None,
        {"train": 3, "val": 3, "test": 3},
        "train/CLASS/ and val/CLASS/",
    ),
    "test without labels": (
        [*in_classes("train/CLASS/1.png", "train/CLASS/2.png"), "test/10.png", "test/9.png"],
        0.5,
        {"train": 3, "val": 3, "test": 2},
        "train/CLASS/, and --val-share 0.5 of each class as val",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_gives_every_image_the_label_of_its_folder(layout: str, tmp_path: Path) -> None:
    names, share, counts, words = LAYOUTS[layout]
    write(tmp_path / "source", *names)
    manifest = prepare(tmp_path / "source", tmp_path / "out", val_share=share, strict=True)
    dataset = open_dataset(tmp_path / "out")
    assert (manifest["counts"], manifest["layout"], manifest["fit"]) == (counts, words, None)
    assert list(dataset.classes) == list(dataset.names) == ORDER
    for split in ("train", "val"):
        colours = dataset.images[split][:, 0, 0]
        np.testing.assert_array_equal(colours, [CLASSES[ORDER[label]] for label in dataset.labels[split]])
        assert sorted(set(dataset.labels[split].tolist())) == [0, 1, 2]


def test_parts_one_level_deeper_are_found(tmp_path: Path) -> None:
    write(tmp_path / "source/inner", *LAYOUTS["valid"][0])
    (tmp_path / "source/notes.txt").touch()
    manifest = prepare(tmp_path / "source", tmp_path / "out")
    assert (manifest["counts"], manifest["layout"]) == ({"train": 6, "val": 3}, "train/CLASS/ and valid/CLASS/")
    assert manifest["skipped"] == {"outside the folders of images": ["notes.txt"]}


def test_images_of_a_test_part_keep_their_names(tmp_path: Path) -> None:
    for layout, files in {
        "test besides val": ("cat/1.png", "dog_9/1.png", "dog_10/1.png"),
        "test without labels": ("9.png", "10.png"),
    }.items():
        names, share, *_ = LAYOUTS[layout]
        prepare(write(tmp_path / layout, *names), tmp_path / f"{layout} out", val_share=share)
        assert open_dataset(tmp_path / f"{layout} out").test_files == files


def test_a_class_may_be_called_like_a_part(tmp_path: Path) -> None:
    """As in CIFAR-100, which has a class of trains."""
    write(tmp_path / "source", *(f"{part}/{name}/1.png" for part in ("train", "valid") for name in ("cat", "train")))
    assert [entry["id"] for entry in prepare(tmp_path / "source", tmp_path / "out")["classes"]] == ["cat", "train"]


# ---- the share that is held out ---------------------------------------------------------------------------------


def held_out(source: Path, share: float = 0.25) -> dict[str, list[int]]:
    """Return the grey levels of the validation images of each class."""
    out = source.with_name(f"{source.name} prepared")
    prepare(source, out, val_share=share)
    dataset = open_dataset(out)
    labels, grey = dataset.labels["val"], dataset.images["val"][:, 0, 0, 0]
    both = np.concatenate([dataset.images[split][:, 0, 0, 0] for split in ("train", "val")])
    assert len(set(both.tolist())) == len(both)  # every image is in one of the two
    return {name: sorted(grey[labels == label].tolist()) for label, name in enumerate(dataset.classes)}


def numbered(folder: Path, names: list[str]) -> Path:
    """Write images whose grey level is the number in their name."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (64, 64), int(re.sub(r"\D", "", name))).save(folder / name)
    return folder


NAMES = [f"a/{i}.png" for i in range(40)] + [f"b/{i}.png" for i in range(40, 43)] + ["c/50.png", "c/51.png"]


@pytest.mark.parametrize(("share", "counts"), [(0.001, [1, 1, 1]), (0.25, [10, 1, 1]), (0.999, [39, 2, 1])])
def test_the_share_is_that_of_each_class_at_least_one_and_not_all(
    share: float, counts: list[int], tmp_path: Path
) -> None:
    found = held_out(numbered(tmp_path / "source", NAMES), share)
    assert [len(levels) for levels in found.values()] == counts


def test_the_share_is_a_function_of_the_names_alone(tmp_path: Path) -> None:
    expected = held_out(numbered(tmp_path / "source", NAMES))
    assert held_out(numbered(tmp_path / "written in another order", NAMES[::-1])) == expected
    assert expected["a"] == [0, 8, 15, 19, 20, 29, 31, 33, 35, 39]
    more = held_out(numbered(tmp_path / "with another class", [*NAMES, "aa/60.png", "aa/61.png"]))
    assert {name: more[name] for name in expected} == expected


def test_a_larger_share_contains_a_smaller_one(tmp_path: Path) -> None:
    numbered(tmp_path / "source", NAMES)
    small = held_out(tmp_path / "source", 0.1)["a"]
    (tmp_path / "source prepared").rename(tmp_path / "small")
    assert set(small) < set(held_out(tmp_path / "source", 0.5)["a"])


# ---- sizes ------------------------------------------------------------------------------------------------------


def test_other_sizes_are_refused_with_the_option_that_scales_them(tmp_path: Path) -> None:
    write(write(tmp_path / "source", *TEN), "cat/wide.png", size=(100, 80))
    with pytest.raises(UserError, match=r"1 not 64x64 pixels \(cat/wide.png: 100x80\).*--size N .*scales images"):
        prepare(tmp_path / "source", tmp_path / "out", val_share=0.1)
    assert left_behind(tmp_path / "out") == []


def test_other_refusals_do_not_name_that_option(tmp_path: Path) -> None:
    (write(tmp_path / "source", *TEN) / "cat/empty.png").touch()
    with pytest.raises(UserError, match="damaged") as raised:
        prepare(tmp_path / "source", tmp_path / "out", val_share=0.1)
    assert "--size" not in str(raised.value)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_the_prepared_data_know_how_images_were_fitted(fit: str, tmp_path: Path) -> None:
    write(write(tmp_path / "source", *TEN), "cat/wide.png", size=(128, 64))
    assert prepare(tmp_path / "source", tmp_path / "out", val_share=0.01, fit=fit)["fit"] == fit
    dataset = open_dataset(tmp_path / "out")
    assert dataset.fit == fit
    black = (dataset.images["train"] == 0).all((2, 3)).any(1).sum()  # images with a black row
    assert black == (fit == "pad")


def test_images_of_the_official_layout_are_scaled_too(tmp_path: Path) -> None:
    root = official(tmp_path)
    (root / "train/n01/images/wide.JPEG").write_bytes(image(1, size=(128, 64)))
    manifest = prepare(pack(root), tmp_path / "out", size=48, fit="pad")
    assert (manifest["counts"]["train"], manifest["fit"], manifest["layout"]) == (13, "pad", "")
    assert manifest["image_size"] == 48
    assert (open_dataset(tmp_path / "out").images["train"] == 0).all((2, 3)).any(1).sum() == 1


# ---- every file is used or named --------------------------------------------------------------------------------

SKIPPED = {  # file -> how it is named
    "cat/notes.txt": "not an image",
    "labels.csv": "not an image",
    "overview.png": "outside the folders of images",
    ".cache/x.png": "hidden or of the system",
    "cat/@eaDir/x.png": "hidden or of the system",
    "empty/readme.md": "without an image for train",
}


@pytest.mark.parametrize("name", SKIPPED)
@pytest.mark.parametrize("part", ["", "train/"])
def test_a_file_that_is_not_used_is_named_and_refused_by_strict(part: str, name: str, tmp_path: Path) -> None:
    write(tmp_path / "source", *(f"{part}{file}" for file in TEN))
    inside = part if "/" in name and not name.startswith(".") else ""
    (tmp_path / "source" / inside / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "source" / inside / name).write_bytes(image(1))
    manifest = prepare(tmp_path / "source", tmp_path / "out", val_share=0.1)
    assert any(inside + name.partition("/")[0] in entry for entry in manifest["skipped"][SKIPPED[name]])
    assert sum(manifest["counts"].values()) == 30
    with pytest.raises(UserError, match=f"{SKIPPED[name]}.*omit --strict"):
        prepare(tmp_path / "source", tmp_path / "strict", val_share=0.1, strict=True)


BOTH = in_classes("train/CLASS/1.png", "train/CLASS/2.png", "val/CLASS/1.png")
REFUSED: dict[str, tuple[list[str], float | None, str]] = {
    "no share": (TEN, None, r"source has no validation images; hold out .* with --val-share 0\.1\.$"),
    "no share, test without labels": (["train/a/1.png", "train/b/1.png", "test/1.png"], None, "--val-share 0.1"),
    "share of nothing": (TEN, 0.0, "--val-share 0 is not between 0 and 1"),
    "share of all": (TEN, 1.0, "--val-share 1 is not between 0 and 1"),
    "share and val": (BOTH, 0.1, "has validation images in val; omit --val-share 0.1"),
    "two validation parts": ([*BOTH, "valid/cat/1.png"], None, "in val and valid; keep one of these"),
    "a class with one image": ([*TEN, "bird/1.png"], 0.1, r"1 with one image, which train and val .* \(bird\)"),
    "one class": (["a/1.png", "a/2.png"], 0.1, "has 1 class; give data of at least 2"),
    "classes one level deeper": (["a/b/1.png", "a/c/1.png"], 0.1, "1 class, a; give .*source/a if its folders are"),
    "no class": (["1.png", "2.png"], 0.1, "contains no data set: no folder of images"),
    "a class in val alone": ([*BOTH, "val/bird/x.png"], None, r"in a class that train lacks \(val/bird/x.png\)"),
    "images in train": ([*BOTH, "train/x.png"], None, r"in no folder of a class \(train/x.png\)"),
    "images in val": ([*BOTH, "val/x.png"], None, r"in no folder of a class \(val/x.png\)"),
    "only images in train": (
        ["train/1.png", "val/1.png"],
        None,
        r"has no image that is read in train/CLASS/ .*x?1.png",
    ),
    "parts by another name": (["Train/a/1.png", "Val/a/1.png"], None, "it has Train and Val but no `train` folder"),
    "classes that differ in case": ([*TEN, "Cat/1.png", "Cat/2.png"], 0.1, r"but for the case \(cat: and Cat\)"),
    "bytes": ([*TEN, "caf\udce9/1.png", "caf\udce9/2.png"], 0.1, r"not UTF-8 \(caf\\udce9/1.png, "),
    "deeper": (["x/y/train/a/1.png", "x/y/train/b/1.png"], 0.1, "deeper, in .*source/x/y; give that folder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_a_data_set_is_one_sentence(case: str, tmp_path: Path) -> None:
    names, share, sentence = REFUSED[case]
    write(tmp_path / "source", *names)
    with pytest.raises(UserError, match=sentence):
        prepare(tmp_path / "source", tmp_path / "out", val_share=share)
    assert left_behind(tmp_path / "out") == []


def test_options_for_plain_folders_do_not_fit_other_sources(tmp_path: Path) -> None:
    for source in (root := official(tmp_path), pack(root)):
        with pytest.raises(UserError, match=r"--val-share 0\.1 is for data without val, and .* has val/images; omit"):
            prepare(source, tmp_path / "out", val_share=0.1)


def test_the_official_layout_without_its_labels_is_not_a_class(tmp_path: Path) -> None:
    """Read as a class folder, val/images would be a single class."""
    root = official(tmp_path)
    for name in ("wnids.txt", "words.txt", "val/val_annotations.txt"):
        (root / name).unlink()
    with pytest.raises(UserError, match="lacks val/val_annotations.txt"):
        prepare(root, tmp_path / "out")


def test_pictures_of_a_phone_are_named_as_not_read(tmp_path: Path) -> None:
    for name in ("cat/1.heic", "dog/1.HEIC"):
        (tmp_path / "source" / name).parent.mkdir(parents=True)
        (tmp_path / "source" / name).write_bytes(image(1))
    with pytest.raises(UserError, match=r"no image that is read in CLASS/ \(it has 2 in an image format that is not"):
        prepare(tmp_path / "source", tmp_path / "out")
