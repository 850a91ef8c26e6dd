"""The files of a data set, in a folder or in a zip archive that is never unpacked to disk."""

import os
import re
import stat
import zipfile
from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from tinyimnet.data import other_forms
from tinyimnet.data.findings import Findings, Unusable
from tinyimnet.data.names import UNMENTIONED, is_hidden, is_image
from tinyimnet.errors import UserError
from tinyimnet.files import as_utf8, check_readable, exists, from_utf8, read_bytes

SPLITS = ("train", "val", "test")
VALIDATION = ("val", "valid", "validation")  # names of the validation part of plain folders
PARTS = ("train", *VALIDATION, "test")
HIDDEN = "hidden or of the system"
OUTSIDE = "outside the folders of images"
TWICE = "reached twice"
SPECIAL = "neither a file nor a folder"
BROKEN = "a broken link"
UNREADABLE = "unreadable"


class Source:
    """The files below the folder that contains `train`, on disk or in an archive.

    Args:
        path: the folder itself, or the archive.
        prefix: in an archive, the part of the names before `train`.
        separator: between the folders of a name in the archive; some Windows tools write backslashes.
    """

    def __init__(self, path: Path, prefix: str = "", separator: str = "/"):
        self.path, self.prefix, self.separator = path, prefix, separator
        self._archive: zipfile.ZipFile | None = None  # each process opens its own

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_archive": None}

    def read(self, name: str) -> bytes:
        """Read a file.

        Raises:
            Unusable: the file cannot be read, or its checksum in the archive does not match.
        """
        try:
            if self.path.is_dir():
                return read_bytes(self.path / from_utf8(name))
            self._archive = self._archive or zipfile.ZipFile(self.path)
            return self._archive.read((self.prefix + name).replace("/", self.separator))
        except OSError as error:
            raise Unusable(UNREADABLE, error.strerror or str(error)) from None
        except Exception as error:  # damaged bytes in an archive raise zlib.error, BadZipFile, EOFError ...
            raise Unusable(UNREADABLE, str(error)) from None

    def lines(self, name: str) -> list[str]:
        """Lines of a text file that are not blank, without the spaces at their ends."""
        try:
            return [stripped for line in text_lines(self.read(name)) if (stripped := line.strip())]
        except Unusable as fault:
            raise UserError(f"{self.path}: {name} cannot be read ({fault.detail}); restore it.") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path}: {name} is not UTF-8 ({error}); save it as UTF-8.") from None


def text_lines(content: bytes) -> list[str]:
    """Lines of a UTF-8 text with the line ends of any system, with or without a byte order mark."""
    return re.split("\r\n|\r|\n", content.decode("utf-8-sig"))


@dataclass
class Files:
    """What a source contains: paths relative to the folder with `train`.

    Attributes:
        source: reads them.
        names: files to classify.
        folders: folders, without a slash at the end.
        skipped: files and folders that are not part of any data set.
    """

    source: Source
    names: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    skipped: Findings = field(default_factory=Findings)

    def skips(self, name: str) -> bool:
        """Whether a part of `name` is hidden or of the system; the outermost such part is then added to `skipped`."""
        folder, _, last = name.rpartition("/")
        hidden_folder = _hidden_folder(folder)
        if not hidden_folder and not is_hidden(last):
            return False
        if hidden_folder or last.lower() not in UNMENTIONED:
            self.skipped.add_once(HIDDEN, hidden_folder or name)
        return True


@lru_cache(maxsize=1)  # names come sorted by folder
def _hidden_folder(folder: str) -> str:
    """The path of the outermost hidden folder in `folder`, with a slash at the end; empty if there is none."""
    parts = folder.split("/")
    hidden = next((i for i, part in enumerate(parts) if is_hidden(part)), None)
    return "" if hidden is None else "/".join(parts[: hidden + 1]) + "/"


def open_source(path: Path) -> Files:
    """List the files of a folder or of a zip archive.

    Raises:
        UserError: it cannot be read, or contains no data set in the official layout.
    """
    if path.is_dir():
        return open_folder(path, SPLITS)
    if path.is_file():
        return _open_archive(path)
    if exists(path):
        raise UserError(f"{path} is neither a file nor a folder; {other_forms.FORMS}.")
    raise UserError(f"{path} does not exist; give tiny-imagenet-200.zip or its folder, or use --download.")


# ---- folders ----------------------------------------------------------------------------------------------------


def dataset_roots(source: Path) -> list[Path]:
    """Folders that contain `train`, among `source` and its direct subfolders; a class may be called `train`."""
    try:
        below = [entry for entry in sorted(source.iterdir()) if not is_hidden(entry.name) and entry.name not in PARTS]
        return [folder for folder in (source, *below) if (folder / "train").is_dir()]
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); fix its permissions.") from None


def open_folder(path: Path, parts: tuple[str, ...]) -> Files:
    """List the files in the folder that contains `train`, `path` or one below it, and in those of its `parts`.

    Raises:
        UserError: there is no such folder, or there are several.
    """
    roots = dataset_roots(path)
    if len(roots) != 1:
        raise other_forms.refusal(path, [str(root) for root in roots])
    files = list_folder(roots[0], parts)
    if roots[0] != path:
        for entry in sorted(path.iterdir()):
            if entry != roots[0] and not files.skips(entry.name + "/" * entry.is_dir()):
                files.skipped.add(OUTSIDE, entry.name + "/" * entry.is_dir())
    return files


def list_folder(root: Path, enter: tuple[str, ...] | None) -> Files:
    """List the files in `root`, and below those of its folders that are in `enter`; None: below all of them.

    Raises:
        UserError: a folder cannot be read.
    """
    try:
        return _Walk(root, enter).run()
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); fix its permissions.") from None


class _Walk:
    """Follows links after everything else: a file that is reached twice keeps its own name, and a loop ends.

    The type of an entry comes with its name, without a call of stat per file. Sockets, devices and named pipes are
    skipped, because reading them could hang.
    """

    def __init__(self, root: Path, enter: tuple[str, ...] | None):
        self.root, self.top_folders = root, enter
        self.files = Files(Source(root))
        self.real_root = os.path.realpath(root)
        self.seen: set[str] = set()  # without links in the path
        self.folders, self.links = deque([""]), deque[str]()

    def run(self) -> Files:
        while self.folders or self.links:
            name = (self.folders or self.links).popleft()
            path = self.root / from_utf8(name)
            real = os.path.realpath(path)
            around_root = name and f"{self.real_root}/".startswith(f"{real}/")
            if real in self.seen or around_root:
                self.files.skipped.add(TWICE, name)
            elif path.is_dir():
                if name and "/" not in name and self.top_folders is not None and name not in self.top_folders:
                    self.files.skipped.add(OUTSIDE, f"{name}/")
                else:
                    self.enter(name, real)
            elif path.is_file() or (not path.exists() and (is_image(name) or name.endswith(".txt"))):
                # Reading a broken link fails with its cause.
                self.seen.add(real)
                self.files.names.append(name)
            else:
                self.files.skipped.add(SPECIAL if path.exists() else BROKEN, name)
        return self.files

    def enter(self, folder: str, real: str) -> None:
        self.seen.add(real)
        self.files.folders.append(folder)
        with os.scandir(self.root / from_utf8(folder)) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = f"{folder}/{as_utf8(entry.name)}" if folder else as_utf8(entry.name)
                is_folder = entry.is_dir(follow_symlinks=False)
                if self.files.skips(f"{name}/" if is_folder else name):
                    continue
                if entry.is_symlink():
                    self.links.append(name)
                elif is_folder:
                    self.folders.append(name)
                elif entry.is_file():
                    self.seen.add(f"{real}/{entry.name}")
                    self.files.names.append(name)
                else:
                    self.files.skipped.add(SPECIAL, name)


# ---- archives ---------------------------------------------------------------------------------------------------


def _open_archive(path: Path) -> Files:
    members = _members(path)
    separator = "/" if any("/" in member.filename for member in members) else "\\"
    names = [member.filename.replace(separator, "/") for member in members]
    shown = [name for name in names if not any(map(is_hidden, name.split("/")[:-1]))]
    prefixes = sorted({match[1] for name in shown if (match := re.match("((?:[^/]+/)?)train/", name))})
    if len(prefixes) != 1:
        raise other_forms.refusal(path, [f"{prefix}train" for prefix in prefixes])
    (prefix,) = prefixes
    files, seen = Files(Source(path, prefix, separator)), set[str]()
    for name, member in sorted(zip(names, members, strict=True), key=lambda pair: pair[0]):
        inner = name.removeprefix(prefix) if name.startswith(prefix) else name
        top, slash, _ = inner.partition("/")
        if files.skips(inner):
            continue
        if not name.startswith(prefix) or (slash and top not in SPLITS):
            files.skipped.add_once(OUTSIDE, top + slash)
        elif name.endswith("/"):
            files.folders.append(inner.rstrip("/"))
        elif stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
            files.skipped.add(SPECIAL, inner)
        elif name in seen:  # the last one is read
            files.skipped.add(TWICE, inner)
        else:
            seen.add(name)
            files.names.append(inner)
    return files


def _members(path: Path) -> list[zipfile.ZipInfo]:
    check_readable(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError) as error:
        raise other_forms.not_a_zip(path, error) from None
    for member in members:
        if member.filename.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", member.filename):
            raise UserError(
                f"{path} has a member {member.filename!r} outside its folder; download the official archive."
            )
        if member.flag_bits & 1:
            raise UserError(f"{path} is encrypted ({member.filename}); download the official archive.")
    return members
