"""A source of another form is read where that is clear, or named for what it is, with the way out."""

import io
import os
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from helpers.sources import image, left_behind, official, pack
from tinyimnet.data.prepare import prepare
from tinyimnet.errors import UserError

pytestmark = pytest.mark.usefixtures("decoded_in_this_process")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return official(tmp_path)


UNPACK, SAVE = "unpack it and give the folder", r"save its images and labels as \.npy files"
FILES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "x.7z": (lambda p: p.write_bytes(b"7z\xbc\xaf\x27\x1c"), "a 7z archive", UNPACK),
    "x.arrow": (lambda p: p.write_bytes(b"ARROW1\0\0"), "an Arrow file", SAVE),
    "x.h5": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n"), "an HDF5 file", SAVE),
    "x.pkl": (lambda p: p.write_bytes(pickle.dumps([1])), "a pickle", SAVE),
    "x.npy": (lambda p: np.save(p, np.zeros(3)), r"one \.npy file", r"give the folder of all \.npy files"),
    "x.zip": (lambda p: p.write_text("<html>404</html>"), "a web page", "download the archive again"),
}
FORMS = r"`prepare` reads Tiny ImageNet and a folder of images for each class, .* Parquet files of images and labels\.$"


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_form_is_named_for_what_it_is(tmp_path: Path, name: str) -> None:
    write, form, way_out = FILES[name]
    write(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name} is {form}, which is not read; {way_out}.*\. {FORMS}"):
        prepare(tmp_path / name, tmp_path / "out")
    assert left_behind(tmp_path / "out") == []


@pytest.mark.parametrize("name", [name for name in FILES if name != "x.npy"])
def test_a_folder_of_another_form_is_named_for_what_it_is(tmp_path: Path, name: str) -> None:
    write, form, way_out = FILES[name]
    (tmp_path / "source/data").mkdir(parents=True)
    write(tmp_path / "source/data" / name)
    with pytest.raises(UserError, match=rf"no data set, but {name}, {form}; {way_out}\. {FORMS}"):
        prepare(tmp_path / "source", tmp_path / "out")


HELD: dict[str, tuple[Callable[[Path], object], str]] = {
    "x.zip": (lambda p: zipfile.ZipFile(p, "w").close(), "a zip archive"),
    "x.tar": (lambda p: tar(p, "w"), "a tar archive"),
    "x.tgz": (lambda p: tar(p, "w:gz"), "a gzip archive"),
    "x.tar.xz": (lambda p: tar(p, "w:xz"), "an xz archive"),
    "x.npz": (lambda p: np.savez(p, x=np.zeros(3)), r"an \.npz file"),
    "x.parquet": (lambda p: p.write_bytes(b"PAR1....PAR1"), "a Parquet file"),
}


def tar(path: Path, mode: str) -> None:
    with tarfile.open(path, mode) as archive:
        archive.addfile(tarfile.TarInfo("train/n01/x.JPEG"), io.BytesIO())


@pytest.mark.parametrize("name", HELD)
def test_a_folder_that_holds_a_file_that_is_read_names_it(tmp_path: Path, name: str) -> None:
    write, form = HELD[name]
    (tmp_path / "source/deep/er").mkdir(parents=True)
    write(tmp_path / "source/deep/er" / name)
    with pytest.raises(UserError, match=f"no data set, but {name}, {form}; give it: .*source/deep/er/{name}"):
        prepare(tmp_path / "source", tmp_path / "out")


def test_a_data_set_two_levels_deep_is_found_and_named(root: Path, tmp_path: Path) -> None:
    (tmp_path / "x/y").mkdir(parents=True)
    root.rename(tmp_path / "x/y/tiny-imagenet-200")
    with pytest.raises(UserError, match="deeper, in .*/x/y/tiny-imagenet-200; give that folder"):
        prepare(tmp_path / "x", tmp_path / "out")


def test_two_data_sets_are_both_named(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "other")
    with pytest.raises(UserError, match=r"several data sets \(.*/other, .*/tiny-imagenet-200\); give one"):
        prepare(tmp_path, tmp_path / "out")


def test_an_archive_with_backslashes_gives_the_same_arrays(root: Path, tmp_path: Path) -> None:
    expected = prepare(root, tmp_path / "expected")["sha256"]
    with zipfile.ZipFile(tmp_path / "windows.zip", "w") as file:
        for path in root.rglob("*"):
            if path.is_file():
                file.writestr(str(path.relative_to(root.parent)).replace("/", "\\"), path.read_bytes())
    assert prepare(tmp_path / "windows.zip", tmp_path / "out")["sha256"] == expected


@pytest.mark.parametrize("inner", ["tiny-imagenet-200", "."])
def test_an_unpacked_archive_of_a_mac_is_read(root: Path, tmp_path: Path, inner: str) -> None:
    source = tmp_path / "unpacked"
    shutil.copytree(root, source / inner)
    (source / "__MACOSX" / inner / "train").mkdir(parents=True)
    (source / "__MACOSX" / inner / "train/._n01").write_bytes(b"junk")
    manifest = prepare(source, tmp_path / "out")
    assert manifest["counts"]["train"] == 12
    assert "__MACOSX/" in manifest["skipped"]["hidden or of the system"]


def test_what_is_beside_the_folder_of_the_data_set_is_named(root: Path, tmp_path: Path) -> None:
    source = tmp_path / "around"
    source.mkdir()
    root.rename(source / root.name)
    (source / "other").mkdir()
    (source / "train.csv").touch()
    skipped = prepare(source, tmp_path / "out")["skipped"]
    assert skipped["outside the folders of images"] == ["other/", "train.csv"]


def test_a_prepared_folder_is_no_source(root: Path, tmp_path: Path) -> None:
    prepare(root, tmp_path / "prepared")
    with pytest.raises(UserError, match="is already prepared; train on it with --data.root"):
        prepare(tmp_path / "prepared", tmp_path / "out")


def test_classes_in_a_file_do_not_fit_a_source_of_image_files(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--classes .* is only for arrays and Parquet files"):
        prepare(root, tmp_path / "out", tmp_path / "ids.txt")


def test_an_empty_folder_gets_the_forms_that_are_read(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(UserError, match="contains no data set.*`prepare` reads Tiny ImageNet"):
        prepare(tmp_path / "source", tmp_path / "out")


def test_images_in_no_folder_get_the_forms_that_are_read(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/1.JPEG").write_bytes(image(1))
    with pytest.raises(UserError, match="contains no data set: .*a folder of images for each class"):
        prepare(tmp_path / "source", tmp_path / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_archive_without_permission_is_named(root: Path, tmp_path: Path) -> None:
    archive = pack(root)
    archive.chmod(0)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)"):
        prepare(archive, tmp_path / "out")
