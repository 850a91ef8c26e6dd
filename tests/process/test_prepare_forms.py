"""`prepare` of archives, arrays and tables as a user runs it: in worker processes, with what it found in the output."""

import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from helpers.program import python
from helpers.sources import arrays_in, image, left_behind, official

N = 1200  # images, which are three chunks for the worker processes


def prepare(source: Path, out: Path, *options: str) -> tuple[str, str]:
    result = python("-m", "tinyimnet", "prepare", str(source), "--out", str(out), *options)
    assert result.returncode == 0, result.stderr
    return result.stdout, result.stderr


def tar(folder: Path) -> Path:
    with tarfile.open(folder.with_suffix(".tar.gz"), "w:gz") as archive:
        for path in sorted(folder.rglob("*.jpg"), reverse=True):
            archive.add(path, path.relative_to(folder))
    return folder.with_suffix(".tar.gz")


def table(folder: Path) -> Path:
    rows = [(path.read_bytes(), path.parent.name) for path in sorted(folder.rglob("*.jpg"))]
    images = [{"bytes": content, "path": None} for content, _ in rows]
    made = pyarrow.table({"image": images, "label": [label for _, label in rows]})
    parquet.write_table(made, folder.with_suffix(".parquet"), row_group_size=100)
    return folder.with_suffix(".parquet")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two classes with images of many colours."""
    folder = tmp_path_factory.mktemp("made") / "pictures"
    for number in range(N):
        path = folder / f"class_{number % 2}" / f"{number:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(number % 50))
    return folder


def total(prepared: Path) -> int:
    """The sum of all pixels and labels, which no order changes."""
    arrays = [np.load(prepared / f"{split}_{kind}.npy") for split in ("train", "val") for kind in ("images", "labels")]
    return sum(int(array.sum(dtype=np.int64)) for array in arrays)


FOUND = {
    Path: "found a folder: CLASS/, and --val-share 0.1 of each class as val",
    tar: "found a tar archive, compressed with gzip: CLASS/, and --val-share 0.1 of each class as val",
    table: "found Parquet files: 1,200 rows of train; --val-share 0.1 of each class as val",
}


@pytest.mark.parametrize("form", FOUND, ids=["folder", "tar.gz", "Parquet"])
def test_workers_read_every_form(form: Callable[[Path], Path], pictures: Path, tmp_path: Path) -> None:
    found, counted, done = prepare(form(pictures), tmp_path / "out", "--val-share", "0.1")[1].splitlines()
    assert found == FOUND[form]
    assert counted == "1,200 images will be decoded" and done.startswith("decoded 1,200 images in")
    prepare(pictures, tmp_path / "expected", "--val-share", "0.1")
    assert total(tmp_path / "out") == total(tmp_path / "expected")


def test_arrays_in_one_file_are_told_and_converted(tmp_path: Path) -> None:
    arrays = {role: np.load(path) for role, path in arrays_in(tmp_path / "npy").items()}
    np.savez(tmp_path / "x.npz", **(arrays | {"train_images": arrays["train_images"].astype(np.float32)}))
    out, err = prepare(tmp_path / "x.npz", tmp_path / "out")
    found = (
        "train: train_images (float32 from 0 to 255), train_labels (integers); "
        "val: val_images (uint8), val_labels (integers); test: test_images (uint8)"
    )
    assert err.splitlines()[0] == f"found arrays: {found}"
    assert out.splitlines() == [
        f"{tmp_path / 'out'}: 8 train, 4 val, 2 test images of 4 classes, from {tmp_path / 'x.npz'}",
        f"layout: {found}",
    ]


def test_a_tar_archive_of_tiny_imagenet_needs_no_other_files(tmp_path: Path) -> None:
    root = official(tmp_path)
    with tarfile.open(tmp_path / "tiny.tgz", "w:gz") as archive:
        archive.add(root, root.name)
    out, err = prepare(tmp_path / "tiny.tgz", tmp_path / "out")
    assert "12 train, 5 val, 3 test images of 3 classes" in out
    assert err.startswith("found a tar archive, compressed with gzip: Tiny ImageNet\n")
    assert left_behind(tmp_path / "out") == ["out"]
