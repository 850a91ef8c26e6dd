"""Zip and tar archives of image files give the arrays of their folder, are read in place and cannot reach outside."""

import gzip
import io
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.sources import image, left_behind, official
from tinyimnet.data.archives import TarArchive, open_archive
from tinyimnet.data.prepare import prepare
from tinyimnet.errors import UserError

pytestmark = pytest.mark.usefixtures("decoded_in_this_process")


def pack(folder: Path, name: str, around: str = "") -> Path:
    """Pack the files of a folder, in no particular order, without entries for folders."""
    archive, files = folder.parent / name, sorted(path for path in folder.rglob("*") if path.is_file())
    members = [(around + str(path.relative_to(folder)), path.read_bytes()) for path in files[::2] + files[1::2]]
    if name.endswith(".zip"):
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
            for member, content in members:
                zipped.writestr(member, content)
    else:
        with tarfile.open(archive, MODES[name]) as tar:
            for member, content in members:
                add(tar, member, content)
    return archive


def add(tar: tarfile.TarFile, name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, len(content)
    tar.addfile(member, io.BytesIO(content))


MODES = {"x.tar": "w", "x.tar.gz": "w:gz", "x.tgz": "w:gz", "x.tar.bz2": "w:bz2", "x.tar.xz": "w:xz"}
PLAIN = [f"{name}/{i}.jpg" for name in ("cat", "dog") for i in range(4)]
PARTS = [f"{part}/{name}" for part in ("train", "valid") for name in PLAIN]


def write(folder: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(image(number))
    return folder


@pytest.mark.parametrize("around", ["", "tiny-imagenet-200/", "some/where/"])
@pytest.mark.parametrize("name", [*MODES, "x.zip"])
def test_tiny_imagenet_in_an_archive_is_its_folder(name: str, around: str, tmp_path: Path) -> None:
    root = official(tmp_path)
    expected = prepare(root, tmp_path / "expected")
    found = prepare(pack(root, name, around), tmp_path / "out")
    for key in ("sha256", "classes", "test_files", "layout", "skipped"):
        assert found[key] == expected[key], key


@pytest.mark.parametrize(
    "name, around", [("x.zip", ""), ("x.zip", "pictures/"), ("x.tar", "./"), ("x.tgz", ""), ("x.tgz", "./pictures/")]
)
@pytest.mark.parametrize("names, share", [(PLAIN, 0.5), (PARTS, None)])
def test_a_plain_folder_in_an_archive_is_that_folder(
    names: list[str], share: float | None, name: str, around: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "pictures", names)
    (folder / "cat/notes.txt" if share else folder / "train/cat/notes.txt").touch()
    (folder / "words.txt").write_text("cat\tfelis catus, cat\n")
    expected = prepare(folder, tmp_path / "expected", val_share=share)
    found = prepare(pack(folder, name, around), tmp_path / "out", val_share=share)
    for key in ("sha256", "classes", "layout", "skipped"):
        assert found[key] == expected[key], key
    assert found["classes"][0] == {"id": "cat", "name": "felis catus"}


def test_images_in_an_archive_are_scaled_too(tmp_path: Path) -> None:
    folder = write(tmp_path / "pictures", PLAIN)
    (folder / "cat/wide.jpg").write_bytes(image(1, size=(128, 64)))
    expected = prepare(folder, tmp_path / "expected", val_share=0.25, fit="pad")
    found = prepare(pack(folder, "x.tgz"), tmp_path / "out", val_share=0.25, fit="pad")
    assert (found["sha256"], found["fit"]) == (expected["sha256"], "pad")


def test_a_tar_archive_is_read_forward_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[int] = []
    read = TarArchive.read

    def recorded(self: TarArchive, name: str) -> bytes:
        places.append(self.places[self.root + name][0])
        return read(self, name)

    archive = pack(official(tmp_path), "x.tar.gz")
    monkeypatch.setattr(TarArchive, "read", recorded)
    manifest = prepare(archive, tmp_path / "out")
    images = places[-sum(manifest["counts"].values()) :]  # after three text files
    assert images == sorted(images) and len(places) == len(images) + 3


def test_nothing_is_unpacked_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("unpacked")

    for kind in (tarfile.TarFile, zipfile.ZipFile):
        monkeypatch.setattr(kind, "extract", refused)
        monkeypatch.setattr(kind, "extractall", refused)
    root = official(tmp_path)
    for name in ("x.tar.gz", "x.zip"):
        prepare(pack(root, name), tmp_path / f"{name} out")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["tiny-imagenet-200", "x.tar.gz", "x.zip", "x.tar.gz out", "x.zip out"]
    )


# ---- hostile members ----------------------------------------------------------------------------------------------

OUTSIDE = ["/etc/x.jpg", "../x.jpg", "cat/../../x.jpg", "\\x.jpg", "cat\\..\\..\\x.jpg"]


@pytest.mark.parametrize("member", OUTSIDE)
@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_a_member_outside_the_archive_is_refused(name: str, member: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / name, MODES[name]) as tar:
        for inside in PLAIN:
            add(tar, inside, image(1))
        add(tar, member, image(1))
    with pytest.raises(UserError, match="x.tar.* has a member .*x.jpg' outside its folder; pack"):
        prepare(tmp_path / name, tmp_path / "out", val_share=0.5)
    assert [path.name for path in tmp_path.iterdir()] == [name]


KINDS = {
    "link": (tarfile.SYMTYPE, "/etc/passwd"),
    "hard link": (tarfile.LNKTYPE, "../../secret"),
    "device": (tarfile.CHRTYPE, ""),
    "pipe": (tarfile.FIFOTYPE, ""),
}


@pytest.mark.parametrize("kind", KINDS)
def test_links_and_devices_in_a_tar_archive_are_named_and_not_read(kind: str, tmp_path: Path) -> None:
    type_of, target = KINDS[kind]
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in PLAIN:
            add(tar, name, image(1))
        add(tar, "cat/odd.jpg", kind=type_of, link=target)
    manifest = prepare(tmp_path / "x.tar", tmp_path / "out", val_share=0.5)
    assert manifest["counts"] == {"train": 4, "val": 4}
    assert manifest["skipped"] == {"neither a file nor a folder": ["cat/odd.jpg"]}


def test_the_last_of_several_members_of_one_name_is_used(tmp_path: Path) -> None:
    """As tar and unzip do."""
    folder = write(tmp_path / "pictures", PLAIN)
    archive = pack(folder, "x.tar")
    (folder / "cat/0.jpg").write_bytes(image(99))
    expected = prepare(folder, tmp_path / "expected", val_share=0.5)
    with tarfile.open(archive, "a") as tar:
        add(tar, "cat/0.jpg", image(99))
    found = prepare(archive, tmp_path / "out", val_share=0.5)
    assert found["sha256"] == expected["sha256"]
    assert found["skipped"] == {"reached twice": ["cat/0.jpg"]}


# ---- damaged archives -----------------------------------------------------------------------------------------------


def cut(path: Path, share: float) -> None:
    os.truncate(path, int(path.stat().st_size * share))


def flip(path: Path) -> None:
    """Change a byte in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(bytes(content))


def damage_a_header(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content.replace(b"dog/2.jpg", b"dog/9.jpg"))


def lose_the_end(path: Path) -> None:
    """Keep whole members only, as a download that was cut off between two."""
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    os.truncate(path, last.offset)


DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "tar cut in a file": ("x.tar", lambda path: cut(path, 0.5)),
    "tar cut between files": ("x.tar", lose_the_end),
    "tar with a damaged header": ("x.tar", damage_a_header),
    "gzip cut": ("x.tar.gz", lambda path: cut(path, 0.7)),
    "gzip with a changed byte": ("x.tar.gz", flip),
    "bzip2 with a changed byte": ("x.tar.bz2", flip),
    "xz cut": ("x.tar.xz", lambda path: cut(path, 0.7)),
    "empty tar": ("x.tar", lambda path: cut(path, 0)),
    "gzip of something else": ("x.tar.gz", lambda path: path.write_bytes(gzip.compress(b"hello"))),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_tar_archive_is_one_sentence(case: str, tmp_path: Path) -> None:
    name, spoil = DAMAGE[case]
    archive = pack(write(tmp_path / "pictures", PLAIN), name)
    spoil(archive)
    with pytest.raises(UserError, match=rf"{name} is damaged, or holds no tar archive \(.+\); download or pack it"):
        prepare(archive, tmp_path / "out", val_share=0.5)
    assert left_behind(tmp_path / "out") == []


def test_an_image_that_is_damaged_in_an_archive_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "pictures", PLAIN)
    cut(folder / "dog/1.jpg", 0.5)
    with pytest.raises(UserError, match=r"1 damaged or not an image \(dog/1.jpg\)"):
        prepare(pack(folder, "x.tgz"), tmp_path / "out", val_share=0.5)


NO_DATA: dict[str, tuple[list[str], str]] = {
    "empty": ([], "contains no data set: no folder of images"),
    "images without folders": (["1.jpg", "2.jpg"], "contains no data set: no folder of images"),
    "several data sets": ([f"{a}/{name}" for a in "ab" for name in PARTS], r"several data sets \(a/train, b/train\)"),
    "one class": (PLAIN[:4], "has 1 class; give data of at least 2"),
    "other parts": (["x/Train/a/1.jpg", "x/Val/a/1.jpg"], "it has Train and Val but no `train` folder"),
    "a data set too deep": (["a/1.jpg", "b/c/train/d/1.jpg"], "deeper, in b/c; pack that folder alone"),
}


@pytest.mark.parametrize("case", NO_DATA)
@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz"])
def test_an_archive_without_a_data_set_is_one_sentence(name: str, case: str, tmp_path: Path) -> None:
    names, sentence = NO_DATA[case]
    (tmp_path / "pictures").mkdir()
    with pytest.raises(UserError, match=sentence):
        prepare(pack(write(tmp_path / "pictures", names), name), tmp_path / "out", val_share=0.5)


def test_a_class_may_be_called_like_a_part_in_an_archive(tmp_path: Path) -> None:
    names = [f"{part}/{name}/1.jpg" for part in ("train", "valid") for name in ("cat", "train")]
    archive = pack(write(tmp_path / "pictures", names), "x.zip")
    assert open_archive(archive).roots() == [""]
    assert [entry["id"] for entry in prepare(archive, tmp_path / "out")["classes"]] == ["cat", "train"]


def test_what_a_mac_adds_around_the_folder_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "pictures", [f"pictures/{name}" for name in PLAIN])
    (folder / "__MACOSX/pictures/cat").mkdir(parents=True)
    shutil.copy(folder / "pictures/cat/0.jpg", folder / "__MACOSX/pictures/cat/._0.jpg")
    (folder / "readme.txt").touch()
    skipped = prepare(pack(folder, "x.zip"), tmp_path / "out", val_share=0.5)["skipped"]
    assert skipped == {"hidden or of the system": ["__MACOSX/"], "outside the folders of images": ["readme.txt"]}
