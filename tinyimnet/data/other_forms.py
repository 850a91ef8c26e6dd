"""Sources that `prepare` does not read, recognized by their content: each refusal says what it is and the way out."""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tinyimnet.console import command
from tinyimnet.data.findings import shortened
from tinyimnet.data.names import is_hidden
from tinyimnet.errors import UserError

FORMS = (
    "`prepare` reads Tiny ImageNet and a folder of images for each class, unpacked or as a zip or tar archive, images "
    "and labels as .npy or .npz files, and Parquet files of images and labels"
)
UNPACK = "unpack it and give the folder"
SAVE = "save its images and labels as .npy files"
GIVE = "give it"  # a form that is read, where it is not looked for
SIGNATURES = {  # first bytes: what the file is, and the way out
    b"\x1f\x8b": ("a gzip archive", GIVE),
    b"BZh": ("a bzip2 archive", GIVE),
    b"\xfd7zXZ": ("an xz archive", GIVE),
    b"\x28\xb5\x2f\xfd": ("a zstd archive", UNPACK),
    b"7z\xbc\xaf": ("a 7z archive", UNPACK),
    b"Rar!": ("a rar archive", UNPACK),
    b"PAR1": ("a Parquet file", GIVE),
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
        return "a tar archive", GIVE
    if head.startswith(b"PK"):
        return ("an .npz file" if path.suffix.lower() == ".npz" else "a zip archive"), GIVE
    return next((found for start, found in SIGNATURES.items() if head.startswith(start)), None)


def not_an_archive(path: Path, error: Exception) -> UserError:
    """The error for a file that is no archive."""
    found = describe(path) if path.stat().st_size else None
    if found and found[1] != GIVE:
        return UserError(f"{path} is {found[0]}, which is not read; {found[1]}. {FORMS}.")
    return UserError(f"{path} is not a valid zip archive ({error}); download it again.")


def several(source: Path, roots: list[str]) -> UserError:
    """The error for a source with several folders with `train`."""
    trains = [str(source / root) if source.is_dir() else f"{root}train" for root in roots]
    return UserError(f"{source} contains several data sets ({shortened(trains)}); give one of them.")


def refusal(source: Path, folders: list[str]) -> UserError:
    """The error for a folder or an archive without images in folders of their classes.

    Args:
        source: the folder or the archive.
        folders: the folders in it.
    """
    if deeper := [folder.removesuffix("/train") for folder in folders if folder.endswith("/train")]:
        way_out = "give that folder" if source.is_dir() else "pack that folder alone"
        where = source / deeper[0] if source.is_dir() else deeper[0]
        return UserError(f"{source} contains its data set deeper, in {where}; {way_out}.")
    below = islice(_walk(source), LOOKED_AT) if source.is_dir() else ()
    for path in below:
        if path.is_file() and os.access(path, os.R_OK) and (found := describe(path)):
            what, way_out = found
            if way_out == GIVE:
                way_out = f"give it: `{command('prepare', path)}`"
            return UserError(f"{source} contains no data set, but {path.name}, {what}; {way_out}. {FORMS}.")
    return UserError(f"{source} contains no data set: no folder of images, and no arrays; {FORMS}.")


def _walk(source: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(source):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        yield from (Path(folder) / name for name in (*folders, *sorted(files)))
