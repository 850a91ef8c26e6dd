"""The files of a data set in a zip or tar archive, which is never unpacked to disk.

Nothing that a member is called or points to can reach a file outside: members with absolute names or `..` are refused,
links and devices are named and not read.
"""

import bz2
import gzip
import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from copy import copy
from functools import partial
from pathlib import Path
from typing import IO, Any

from tinyimnet.data import other_forms
from tinyimnet.data.findings import Unusable
from tinyimnet.data.names import is_hidden
from tinyimnet.data.source import OUTSIDE, PARTS, SPECIAL, TWICE, UNREADABLE, Files, Tree
from tinyimnet.errors import UserError
from tinyimnet.files import check_readable, reading

COMPRESSED: dict[bytes, tuple[Callable[..., Any], str]] = {
    b"\x1f\x8b": (gzip.open, "a tar archive, compressed with gzip"),
    b"BZh": (bz2.open, "a tar archive, compressed with bzip2"),
    b"\xfd7zXZ": (lzma.open, "a tar archive, compressed with xz"),
}
DAMAGED = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, tarfile.TarError)
BLOCK = 1 << 20  # bytes


def open_archive(path: Path) -> "Archive":
    """List the members of an archive, whose form its content tells.

    Raises:
        UserError: it is damaged, encrypted or no archive, or has members outside its folder.
    """
    check_readable(path)
    with path.open("rb") as file:
        head = file.read(512)
    is_tar = head[257:262] == b"ustar" or path.suffix.lower() == ".tar"
    return TarArchive(path) if is_tar or _compression(head) else ZipArchive(path)


class Archive(Tree):
    """The members of an archive: names with slashes, and those of folders with one at the end."""

    def __init__(self, path: Path, files: Iterable[str], others: Iterable[str]):
        self.path, self.root = path, ""
        self.files, self.others = list(files), set(others)  # others: links, devices ...
        for name in (*self.files, *self.others):
            if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name):
                raise UserError(f"{path} has a member {name!r} outside its folder; pack the data set again without it.")
        self.shown = [name for name in self.files if not any(map(is_hidden, name.split("/")[:-1]))]
        self.top = self._top()

    def __getstate__(self) -> dict:
        """What reading needs, which is all that goes to the decoding processes."""
        return {**self.__dict__, "files": [], "others": set(), "shown": []}

    def _top(self) -> str:
        """The folder around those of the classes or parts: archives often hold one folder with everything."""
        top = ""
        while True:
            below = [name[len(top) :].split("/") for name in self.shown if name.startswith(top)]
            firsts = {parts[0] for parts in below if len(parts) > 1}
            if len(firsts) != 1 or firsts & {*PARTS} or max(map(len, below)) < 3:
                return top
            top += f"{firsts.pop()}/"

    def roots(self) -> list[str]:
        """Folders that contain `train`."""
        train = re.compile(rf"({re.escape(self.top)}(?:(?!(?:{'|'.join(PARTS)})/)[^/]+/)?)train/")
        return sorted({match[1] for name in self.shown if (match := train.match(name))})

    def has(self, name: str) -> bool:
        """Whether there is such a file or folder."""
        return any(file == name or file.startswith(f"{name}/") for file in self.shown)

    def listing(self, root: str, enter: tuple[str, ...] | None) -> Files:
        """List the files in `root`, without those of the last name if several have the same."""
        source = copy(self)
        source.root = root
        files, seen, folders = Files(source), set[str](), set[str]()
        for name in sorted((*self.files, *self.others)):
            inner = name.removeprefix(root) if name.startswith(root) else name
            first, slash, _ = inner.partition("/")
            if files.skips(inner):
                continue
            if not name.startswith(root) or (slash and enter is not None and first not in enter):
                files.skipped.add_once(OUTSIDE, first + slash)
            elif name in self.others:
                files.skipped.add(SPECIAL, inner)
            elif name in seen:  # the last one is read
                files.skipped.add(TWICE, inner)
            else:
                seen.add(name)
                if not inner.endswith("/"):
                    files.names.append(inner)
                folder = inner.rpartition("/")[0]
                while folder and folder not in folders:  # archives need no entries for folders
                    folders.add(folder)
                    folder = folder.rpartition("/")[0]
        files.folders = sorted(folders)
        return files


class ZipArchive(Archive):
    """A zip archive; each process opens it for itself."""

    form = "a zip archive"

    def __init__(self, path: Path):
        self._archive: zipfile.ZipFile | None = None
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
        except (zipfile.BadZipFile, NotImplementedError, OSError) as error:
            raise other_forms.not_an_archive(path, error) from None
        for member in members:
            if member.flag_bits & 1:
                raise UserError(f"{path} is encrypted ({member.filename}); pack it again without a password.")
        # Some Windows tools write backslashes.
        self.separator = "/" if any("/" in member.filename for member in members) else "\\"
        files: list[str] = []
        others: list[str] = []
        for member in members:
            name, kind = member.filename.replace(self.separator, "/"), stat.S_IFMT(member.external_attr >> 16)
            (files if name.endswith("/") or kind in (0, stat.S_IFREG) else others).append(name)
        super().__init__(path, files, others)

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_archive": None}

    def read(self, name: str) -> bytes:
        """Read a member and check its checksum."""
        try:
            self._archive = self._archive or zipfile.ZipFile(self.path)
            return self._archive.read((self.root + name).replace("/", self.separator))
        except Exception as error:  # damaged bytes raise zlib.error, BadZipFile, EOFError ...
            raise Unusable(UNREADABLE, str(error)) from None


class TarArchive(Archive):
    """A tar archive, also a compressed one.

    It is read twice: once for the names, because the label of an image may be in a file behind it, and once from the
    beginning to the end for the images, which are sorted by their `position`. Each process decompresses it for itself,
    all at the same time, so that no bytes pass between processes.
    """

    def __init__(self, path: Path):
        self._file: IO[bytes] | None = None
        with path.open("rb") as file:
            found = _compression(file.read(512))
        self.opener: Callable[..., Any]
        self.opener, self.form = found or (open, "a tar archive")
        self.places: dict[str, tuple[int, int]] = {}  # offset and size of each file in the decompressed archive
        try:
            names, others = self._members(path)
        except DAMAGED as error:
            raise UserError(
                f"{path} is damaged, or holds no tar archive ({error}); download or pack it again."
            ) from None
        super().__init__(path, names, others)

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_file": None}

    def _members(self, path: Path) -> tuple[list[str], list[str]]:
        names: list[str] = []
        others: list[str] = []
        with reading(path), self.opener(path, "rb") as file, tarfile.TarFile(fileobj=file, encoding="utf-8") as archive:
            while member := archive.next():
                archive.members = []  # type: ignore[attr-defined]  # it would keep a kilobyte per file
                name = re.sub("^(\\./+)+", "", re.sub("//+", "/", member.name)) + "/" * member.isdir()
                is_file = member.isreg() and not member.issparse()
                if name not in ("./", "."):
                    (names if is_file or member.isdir() else others).append(name)
                if is_file:
                    self.places[name] = (member.offset_data, member.size)
            file.seek(archive.offset)  # tarfile ends without an error at a damaged or missing header
            zeros = [not block.strip(b"\0") for block in iter(partial(file.read, BLOCK), b"")]
            if not zeros or not all(zeros):
                raise tarfile.ReadError(f"it does not end after its {len(names):,} members")
        return names, others

    def position(self, name: str) -> int:
        """Where the file begins."""
        return self.places[self.root + name][0]

    def read(self, name: str) -> bytes:
        """Read a member; going back costs a compressed archive a new beginning."""
        offset, size = self.places[self.root + name]
        try:
            self._file = self._file or self.opener(self.path, "rb")
            self._file.seek(offset)
            return self._file.read(size)
        except (OSError, *DAMAGED) as error:
            raise Unusable(UNREADABLE, str(error)) from None


def _compression(head: bytes) -> tuple[Callable[..., Any], str] | None:
    """How to open a file that begins with `head`, and what it is; None if it is not compressed."""
    return next((found for start, found in COMPRESSED.items() if head.startswith(start)), None)
