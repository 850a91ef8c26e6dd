"""Sources that `prepare` does not read, recognized by their content: each refusal says what it is and the way out."""

import os
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tinyimnet.console import command
from tinyimnet.data.findings import shortened
from tinyimnet.data.names import is_hidden
from tinyimnet.errors import UserError

FORMS = (
    "`prepare` reads tiny-imagenet-200.zip, its unpacked folder (train/CLASS/, val/images/, val/val_annotations.txt), "
    "a folder of images for each class, and images and labels as .npy files"
)
UNPACK = "unpack it and give the folder"
SAVE = "save its images and labels as .npy files"
SIGNATURES = {  # first bytes: what the file is, and the way out
    b"\x1f\x8b": ("a gzip archive", UNPACK),
    b"BZh": ("a bzip2 archive", UNPACK),
    b"\xfd7zXZ": ("an xz archive", UNPACK),
    b"\x28\xb5\x2f\xfd": ("a zstd archive", UNPACK),
    b"7z\xbc\xaf": ("a 7z archive", UNPACK),
    b"Rar!": ("a rar archive", UNPACK),
    b"PAR1": ("a Parquet file", SAVE),
    b"ARROW1": ("an Arrow file", SAVE),
    b"\x89HDF": ("an HDF5 file", SAVE),
    b"MATLAB": ("a MATLAB file", SAVE),
    b"\x80": ("a pickle", SAVE),
    b"\x93NUMPY": ("one .npy file", "give the folder of all .npy files, or name each with --train-images and so on"),
    b"<": ("a web page", "download the archive again"),
}
LOOKED_AT = 1000  # files of a folder without a data set, to name one that is in another form


def describe(path: Path) -> tuple[str, str] | None:
    """What a regular file is and the way out; None if it is in no form that is recognized here."""
    with path.open("rb") as file:
        head = file.read(512)
    if head[257:262] == b"ustar":
        return "a tar archive", UNPACK
    if head.startswith(b"PK"):
        return _describe_zip(path)
    return next((found for start, found in SIGNATURES.items() if head.startswith(start)), None)


def _describe_zip(path: Path) -> tuple[str, str] | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, OSError):
        return None
    if names and all(name.endswith(".npy") for name in names):
        return "an .npz file", "save each of its arrays as an .npy file"
    return "a zip archive", f"give it: `{command('prepare', path)}`"


def not_a_zip(path: Path, error: Exception) -> UserError:
    """The error for a file that is no zip archive."""
    if path.stat().st_size and (found := describe(path)):
        return _is(path, found)
    return UserError(f"{path} is not a valid zip archive ({error}); download it again.")


def refusal(source: Path, trains: list[str]) -> UserError:
    """The error for a folder or a zip archive that has none or several `train` folders at the expected places."""
    if trains:
        return UserError(f"{source} contains several data sets ({shortened(trains)}); give one of them.")
    if source.is_file():
        found = _describe_zip(source)
        if found and "zip archive" not in found[0]:
            return _is(source, found)
        return UserError(f"{source} contains no `train` folder at the top or one level below; {FORMS}.")
    below = list(islice(_walk(source), LOOKED_AT))
    if deeper := [path.parent for path in below if path.name == "train" and path.is_dir()]:
        return UserError(f"{source} contains its data set deeper, in {deeper[0]}; give that folder.")
    for path in below:
        if path.is_file() and os.access(path, os.R_OK) and (found := describe(path)):
            return UserError(f"{source} contains no `train` folder, but {path.name}, {found[0]}; {found[1]}. {FORMS}.")
    return UserError(f"{source} contains no data set: no folder of images, and no .npy file; {FORMS}.")


def _walk(source: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(source):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        yield from (Path(folder) / name for name in (*folders, *sorted(files)))


def _is(path: Path, found: tuple[str, str]) -> UserError:
    return UserError(f"{path} is {found[0]}, which is not read; {found[1]}. {FORMS}.")
