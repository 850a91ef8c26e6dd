"""`tinyimnet unpack` writes PNG files by class that have exactly the pixels of the arrays."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.sources import arrays_in, left_behind, official
from tinyimnet import cli
from tinyimnet.data import unpack
from tinyimnet.data.npy import prepare_npy
from tinyimnet.data.prepare import prepare
from tinyimnet.errors import UserError


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A prepared data set: 8 train, 4 val and 2 test images of noise, four classes named 0 to 3."""
    prepare_npy(arrays_in(tmp_path / "npy"), tmp_path / "prepared", None)
    return tmp_path / "prepared"


def unpacked(data: Path, out: Path) -> list[str]:
    """Unpack, and return the sorted paths of all files."""
    assert cli.main(["unpack", str(data), "--out", str(out)]) == 0
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())


def edit_manifest(data: Path, **values: object) -> None:
    manifest = json.loads((data / "manifest.json").read_text())
    (data / "manifest.json").write_text(json.dumps(manifest | values))


def test_each_image_is_in_the_folder_of_its_class(prepared: Path, tmp_path: Path) -> None:
    assert unpacked(prepared, tmp_path / "out") == [
        "test/test_0.png", "test/test_1.png",
        "train/0/0.png", "train/0/4.png", "train/1/1.png", "train/1/5.png",
        "train/2/2.png", "train/2/6.png", "train/3/3.png", "train/3/7.png",
        "val/0/3.png", "val/1/2.png", "val/2/1.png", "val/3/0.png",
    ]  # fmt: skip


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_the_pixels_are_those_of_the_array(split: str, prepared: Path, tmp_path: Path) -> None:
    unpacked(prepared, tmp_path / "out")
    files = sorted((tmp_path / "out" / split).rglob("*.png"), key=lambda file: int(file.stem.removeprefix("test_")))
    pictures = [Image.open(file) for file in files]
    assert {(picture.format, picture.mode) for picture in pictures} == {("PNG", "RGB")}
    np.testing.assert_array_equal(np.stack(pictures), np.load(prepared / f"{split}_images.npy"))


@pytest.mark.usefixtures("decoded_in_this_process")
def test_test_images_keep_their_names(tmp_path: Path) -> None:
    prepare(official(tmp_path), tmp_path / "prepared")
    files = unpacked(tmp_path / "prepared", tmp_path / "out")
    assert [file for file in files if file.startswith("test")] == [
        "test/test_0.png",
        "test/test_10.png",
        "test/test_2.png",
    ]
    with Image.open(tmp_path / "out/test/test_2.png") as picture:  # the second in natural order
        np.testing.assert_array_equal(picture, np.load(tmp_path / "prepared/test_images.npy")[1])


@pytest.mark.parametrize(
    "names, files",
    [(["a.JPEG", "a.png"], ["a.JPEG.png", "a.png.png"]), ([], ["0.png", "1.png"])],
    ids=["equal but for the suffix", "not in the manifest"],
)
def test_every_test_image_has_a_file_of_its_own(names, files, prepared: Path, tmp_path: Path) -> None:
    edit_manifest(prepared, test_files=names)
    assert unpacked(prepared, tmp_path / "out")[:2] == [f"test/{file}" for file in files]


def test_rows_have_leading_zeros_so_that_they_sort(tiny_data: Path, tmp_path: Path) -> None:
    rows = [Path(file).stem for file in unpacked(tiny_data, tmp_path / "out") if file.startswith("train")]
    assert sorted(rows) == [f"{row:03d}" for row in range(200)]


@pytest.mark.parametrize("class_id", ["a/b", "..", "a\nb", "x" * 256])
def test_a_class_id_that_cannot_name_a_folder_is_refused(class_id: str, prepared: Path, tmp_path: Path) -> None:
    edit_manifest(prepared, classes=[{"id": name, "name": name} for name in ("0", class_id, "2", "3")])
    with pytest.raises(UserError, match=r"cannot be the name of a file or folder; .* other class ids \(--classes\)"):
        unpacked(prepared, tmp_path / "out")
    assert left_behind(tmp_path / "out") == []


def test_a_test_image_cannot_leave_the_folder(prepared: Path, tmp_path: Path) -> None:
    edit_manifest(prepared, test_files=["../../thesis.png", "b.png"])
    with pytest.raises(UserError, match=r"has '../../thesis.png', which cannot be the name"):
        unpacked(prepared, tmp_path / "out")


def test_a_folder_that_is_not_empty_is_not_touched(prepared: Path, tmp_path: Path) -> None:
    first = unpacked(prepared, tmp_path / "out")
    with pytest.raises(UserError, match="exists and is neither empty nor a prepared data set; choose another folder"):
        unpacked(prepared, tmp_path / "out")
    with pytest.raises(UserError, match=r"--out .*prepared holds a prepared data set; choose another folder"):
        unpacked(prepared, prepared)
    assert len(first) == len(list((tmp_path / "out").rglob("*.png")))
    assert sorted(path.suffix for path in prepared.iterdir()) == [".json", *[".npy"] * 5]


def test_a_folder_that_is_not_prepared_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere holds no prepared data set"):
        unpacked(tmp_path / "nowhere", tmp_path / "out")


def test_the_space_is_checked_before_writing(prepared: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(unpack, "BLOCK", 10**18)
    with pytest.raises(UserError, match=r"out needs [0-9,]+ MB and its disk has [0-9,]+ MB free"):
        unpacked(prepared, tmp_path / "out")


def test_ctrl_c_leaves_nothing(prepared: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(unpack.os, "sync", lambda: signal.raise_signal(signal.SIGINT))  # after the last file
    with pytest.raises(SystemExit, match="130"):
        unpacked(prepared, tmp_path / "out")
    assert left_behind(tmp_path / "out") == []
