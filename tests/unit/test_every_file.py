"""Every file of a source is used, belongs to the layout, or is named in the manifest or in one error."""

import os
import re
import shutil
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.sources import VAL, arrays_in, image, left_behind, official
from tinyimnet.data.dataset import open_dataset
from tinyimnet.data.prepare import prepare, read_images
from tinyimnet.errors import UserError

pytestmark = pytest.mark.usefixtures("decoded_in_this_process")
USED = ["x.JPEG", "x.jpg", "x.JPE", "x.jfif", "x.png", "x.gif", "x.BMP", "x.webp", "x.tif", "x.Tiff", "deep/er/x.JPEG"]
SKIPPED = {  # file -> how it is named
    "train/n01/.ipynb_checkpoints/n01_0-checkpoint.JPEG": "train/n01/.ipynb_checkpoints/",
    "train/.ipynb_checkpoints/n01_0.JPEG": "train/.ipynb_checkpoints/",
    "train/.cache/x.JPEG": "train/.cache/",
    "train/.Trash-1000/files/x.JPEG": "train/.Trash-1000/",
    "train/n02/@eaDir/x.JPEG/SYNOPHOTO_THUMB_M.jpg": "train/n02/@eaDir/",
    "train/__MACOSX/x.JPEG": "train/__MACOSX/",
    "__MACOSX/train/n01/x.JPEG": "__MACOSX/",
    ".git/config": ".git/",
    "train/n01/images/._n01_0.JPEG": "train/n01/images/._n01_0.JPEG",
    "val/images/.hidden.JPEG": "val/images/.hidden.JPEG",
    "train/n01/notes.txt": "train/n01/notes.txt",
    "train/n01/images/n01_0.JPEG~": "train/n01/images/n01_0.JPEG~",
    "train/n01/images/no_suffix": "train/n01/images/no_suffix",
    "train/readme.md": "train/readme.md",
    "test/scores.csv": "test/scores.csv",
    "picture.png": "picture.png",
    "README": "README",
    "extra/n09/x.JPEG": "extra/",
}
UNMENTIONED = ["train/Thumbs.db", "val/.DS_Store", "train/n01/desktop.ini"]
REFUSED = {
    "train/x.JPEG": "outside train/CLASS/",
    "val/x.JPEG": "outside train/CLASS/",
    "val/n01/x.JPEG": "outside train/CLASS/",
    "val/images/n01/x.JPEG": "outside train/CLASS/",
    "test/x.JPEG": "outside train/CLASS/",
    "test/n01/x.JPEG": "outside train/CLASS/",
    "val/images/unlisted.JPEG": "without a line in val/val_annotations.txt",
    "train/n01/x.heic": "in an image format that is not read",
    "test/images/x.PPM": "in an image format that is not read",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    tree = official(tmp_path)
    (tree / "val/images/._val_0.JPEG").unlink()
    return tree


def write(root: Path, name: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(image(1))


def pack(root: Path) -> Path:
    archive = root.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(root.rglob("*")):
            file.write(path, path.relative_to(root.parent))
    return archive


def names(skipped: dict[str, list[str]]) -> set[str]:
    return {name for of_kind in skipped.values() for name in of_kind}


@pytest.mark.parametrize("form", [Path, pack], ids=["folder", "zip"])
def test_used_and_named_files_are_all_files(root: Path, tmp_path: Path, form: Callable[[Path], Path]) -> None:
    for number, name in enumerate(USED):
        path = root / "train/n01" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        suffix = path.suffix.lower().replace(".jpe", ".jpeg") if path.suffix == ".JPE" else path.suffix.lower()
        colour = Image.new("RGB", (64, 64), (200, 10 * number, 40))
        colour.save(path, Image.registered_extensions()[suffix])
    for name in (*SKIPPED, *UNMENTIONED):
        write(root, name)
    manifest = prepare(form(root), tmp_path / "out")
    assert manifest["counts"] == {"train": 12 + len(USED), "val": 5, "test": 3}
    assert names(manifest["skipped"]) == set(SKIPPED.values())
    images = open_dataset(tmp_path / "out").images["train"][: 4 + len(USED)].mean((1, 2))
    for number in range(len(USED)):
        assert (abs(images - (200, 10 * number, 40)) < 4).all(axis=1).any(), USED[number]
    assert [entry["id"] for entry in manifest["classes"]] == ["n01", "n02", "n03"]


@pytest.mark.parametrize("form", [Path, pack], ids=["folder", "zip"])
def test_all_images_that_cannot_be_used_are_in_one_error(
    root: Path, tmp_path: Path, form: Callable[[Path], Path]
) -> None:
    for name in REFUSED:
        write(root, name)
    for split in ("train/n01", "val/images", "test/images"):
        (root / split / "empty.JPEG").write_bytes(b"")
    (root / "train/n02/small.png").write_bytes(image(1, size=(32, 32)))
    write(root, "README")
    with pytest.raises(UserError) as raised:
        prepare(form(root), tmp_path / "out")
    sentence = str(raised.value)
    for kind in set(REFUSED.values()):
        assert kind in sentence
    for name in ("train/n01/empty.JPEG", "test/images/empty.JPEG", "train/n02/small.png: 32x32", "README", "6 outside"):
        assert name in sentence
    assert left_behind(tmp_path / "out") == []


@pytest.mark.parametrize("name", REFUSED)
def test_an_image_that_cannot_be_used_is_refused_by_name(root: Path, tmp_path: Path, name: str) -> None:
    write(root, name)
    with pytest.raises(UserError, match=re.escape(REFUSED[name]) + f".*{name}"):
        prepare(root, tmp_path / "out")


@pytest.mark.parametrize("name", SKIPPED)
def test_strict_refuses_every_file_that_is_skipped(root: Path, tmp_path: Path, name: str) -> None:
    write(root, name)
    with pytest.raises(UserError, match=re.escape(SKIPPED[name]) + ".*omit --strict"):
        prepare(root, tmp_path / "out", strict=True)
    assert left_behind(tmp_path / "out") == []


def test_strict_takes_a_source_without_other_files(root: Path, tmp_path: Path) -> None:
    for name in UNMENTIONED:
        write(root, name)
    assert prepare(root, tmp_path / "out", strict=True)["skipped"] == {}


def test_a_long_list_is_shortened_in_errors_and_complete_in_the_manifest(root: Path, tmp_path: Path) -> None:
    for i in range(40):
        write(root, f"train/n01/note_{i}.txt")
    with pytest.raises(UserError, match=r"40 not an image \((train/n01/note_\d+\.txt, ){4}\S+ and 35 more\)"):
        prepare(root, tmp_path / "out", strict=True)
    assert len(prepare(root, tmp_path / "out")["skipped"]["not an image"]) == 40


def test_further_frames_are_named(root: Path, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "green", "blue")]
    frames[0].save(root / "test/images/test_0.gif", save_all=True, append_images=frames[1:])
    assert prepare(root, tmp_path / "out")["skipped"] == {
        "used up to the first frame": ["test/images/test_0.gif: 3 frames"]
    }
    with pytest.raises(UserError, match="test_0.gif"):
        prepare(root, tmp_path / "strict", strict=True)


# ---- links and special files ------------------------------------------------------------------------------------


def test_link_loops_end_and_multiply_nothing(root: Path, tmp_path: Path) -> None:
    write(root.parent, "of_another_data_set.JPEG")
    for number, target in enumerate([".", "..", "../..", "../../..", "../n02", str(root.parent)]):
        (root / f"train/n01/loop_{number}").symlink_to(target)
    (root / "train/n02/self.JPEG").symlink_to("self.JPEG")
    with pytest.raises(UserError, match=r"unreadable \(train/n02/self.JPEG: Too many levels"):
        prepare(root, tmp_path / "out")
    (root / "train/n02/self.JPEG").unlink()
    manifest = prepare(root, tmp_path / "out")
    assert manifest["counts"]["train"] == 12
    assert len(manifest["skipped"]["reached twice"]) == 6


def test_a_link_never_takes_the_place_of_what_it_points_to(root: Path, tmp_path: Path) -> None:
    (root / "train/n00").symlink_to("n01")
    (root / "train/n01/images/n01_00.JPEG").symlink_to("n01_1.JPEG")
    manifest = prepare(root, tmp_path / "out")
    assert manifest["counts"]["train"] == 12
    assert names(manifest["skipped"]) == {"train/n00", "train/n01/images/n01_00.JPEG"}


def test_files_and_folders_may_be_links_to_other_places(root: Path, tmp_path: Path) -> None:
    expected = prepare(root, tmp_path / "expected")["sha256"]
    store = tmp_path / "store"
    store.mkdir()
    for name in ("train/n02", "val/images", "test", "wnids.txt", "train/n01/images/n01_0.JPEG"):
        (root / name).rename(store / name.replace("/", "_"))
        (root / name).symlink_to(store / name.replace("/", "_"))
    manifest = prepare(root, tmp_path / "out")
    assert (manifest["sha256"], manifest["skipped"]) == (expected, {})


def test_broken_links_are_named(root: Path, tmp_path: Path) -> None:
    (root / "train/n01/gone").symlink_to("nowhere")
    assert prepare(root, tmp_path / "out")["skipped"] == {"a broken link": ["train/n01/gone"]}
    (root / "val/images/val_0.JPEG").unlink()
    (root / "val/images/val_0.JPEG").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"unreadable \(val/images/val_0.JPEG: No such file"):
        prepare(root, tmp_path / "again")


def test_pipes_sockets_and_devices_are_named_and_never_opened(root: Path, tmp_path: Path, monkeypatch) -> None:
    os.mkfifo(root / "train/n01/pipe.JPEG")
    monkeypatch.chdir(root / "train/n01")  # the path of a socket has at most 107 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.JPEG")
    (root / "train/n01/device.JPEG").symlink_to("/dev/zero")
    assert names(prepare(root, tmp_path / "out")["skipped"]) == {
        f"train/n01/{name}.JPEG" for name in ("pipe", "socket", "device")
    }
    os.mkfifo(tmp_path / "source")
    with pytest.raises(UserError, match="is neither a file nor a folder"):
        prepare(tmp_path / "source", tmp_path / "again")


def test_a_link_in_an_archive_is_named(root: Path, tmp_path: Path) -> None:
    archive, link = pack(root), zipfile.ZipInfo("tiny-imagenet-200/train/n01/link.JPEG")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(link, "images/n01_0.JPEG")
    skipped = prepare(archive, tmp_path / "out")["skipped"]
    assert skipped == {"neither a file nor a folder": ["train/n01/link.JPEG"]}


# ---- classes ----------------------------------------------------------------------------------------------------


def test_a_class_folder_without_images_is_named(root: Path, tmp_path: Path) -> None:
    (root / "wnids.txt").unlink()
    (root / "train/n04/images").mkdir(parents=True)
    manifest = prepare(root, tmp_path / "out")
    assert manifest["skipped"] == {"without an image in train": ["train/n04/"]}
    assert len(manifest["classes"]) == 3


def test_classes_that_differ_only_in_case_are_refused(root: Path, tmp_path: Path) -> None:
    (root / "wnids.txt").unlink()
    write(root, "train/N01/x.JPEG")
    with pytest.raises(UserError, match=r"but for the case \(n01: and N01\)"):
        prepare(root, tmp_path / "out")


def test_a_class_that_is_not_utf8_is_refused(root: Path, tmp_path: Path) -> None:
    (root / "wnids.txt").unlink()
    write(root, "train/caf\udce9/x.JPEG")
    with pytest.raises(UserError, match=r"not UTF-8 \(train/caf\\udce9/x.JPEG\)"):
        prepare(root, tmp_path / "out")


def test_an_image_under_two_classes_is_used_twice(root: Path, tmp_path: Path) -> None:
    """As in Tiny ImageNet itself, which has 20 such images."""
    shutil.copy(root / "train/n01/images/n01_0.JPEG", root / "train/n02/images/n02_11.JPEG")
    assert prepare(root, tmp_path / "out")["counts"]["train"] == 13


@pytest.mark.parametrize("change", ["\ufeff{}", "{}\n\n", " {}", "{}\r\n"], ids=["BOM", "blank", "space", "CRLF"])
def test_text_files_of_any_system_are_read(root: Path, tmp_path: Path, change: str) -> None:
    expected = prepare(root, tmp_path / "expected")["sha256"]
    for name in ("wnids.txt", "words.txt", "val/val_annotations.txt"):
        lines = (root / name).read_text().splitlines()
        content = change.format("\n".join(lines)) if "\ufeff" in change else "\n".join(map(change.format, lines))
        (root / name).write_text(content, newline="")
    manifest = prepare(root, tmp_path / "out")
    assert manifest["sha256"] == expected
    assert manifest["classes"][0] == {"id": "n01", "name": "goldfish"}


# ---- other sources ----------------------------------------------------------------------------------------------


def test_files_beside_arrays_are_named(tmp_path: Path) -> None:
    arrays_in(tmp_path / "npy")
    for name in ("._x_train.npy", "notes.txt", "old/x_train.npy"):
        write(tmp_path / "npy", name)
    assert names(prepare(tmp_path / "npy", tmp_path / "out")["skipped"]) == {"._x_train.npy", "notes.txt", "old/"}
    with pytest.raises(UserError, match="notes.txt"):
        prepare(tmp_path / "npy", tmp_path / "strict", strict=True)


def test_the_images_of_a_prediction_are_found_the_same_way(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "images"
    for name in ("b.JPG", "a.Png", "notes.txt", "deeper/c.JPEG"):
        write(folder, name)
    for name in ("c.bmp", "d.bmp", "e.heic"):
        (folder / name).touch()
    os.mkfifo(folder / "pipe.JPEG")
    files, images = read_images(folder)
    assert (files, images.shape) == (["a.Png", "b.JPG", "deeper/c.JPEG"], (3, 64, 64, 3))
    np.testing.assert_array_equal(images[0], images[1])
    assert (message := capsys.readouterr().err).count("\n") == 1
    assert all(part in message for part in ("2 damaged or not an image (c.bmp, d.bmp)", "notes", "pipe.JPEG", "e.heic"))
    with pytest.raises(UserError, match=r"2 damaged or not an image \(c.bmp, d.bmp\).*notes.txt.*omit --strict"):
        read_images(folder, strict=True)


def test_a_name_with_a_line_break_stays_on_one_line(root: Path, tmp_path: Path) -> None:
    write(root, "train/n01/two\nlines\x1b[31m.txt")
    (name,) = names(prepare(root, tmp_path / "out")["skipped"])
    assert name == r"train/n01/two\nlines\x1b[31m.txt"


def test_all_lines_of_the_annotations_that_do_not_fit_are_named(root: Path, tmp_path: Path) -> None:
    lines = [f"{file}\tn0{i}" for i, file in enumerate(VAL, start=3)]
    (root / "val/val_annotations.txt").write_text(
        "\n".join([*lines, *lines[:2], "gone_1.JPEG\tn01", "gone_2.JPEG\tn01"])
    )
    with pytest.raises(UserError) as raised:
        prepare(root, tmp_path / "out")
    for part in ("val_2.JPEG: 'n04', ", "2 with two lines", "2 listed in", "(gone_1.JPEG, gone_2.JPEG)"):
        assert part in str(raised.value)
