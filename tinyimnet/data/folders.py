"""The files of a data set in a folder on disk."""

import os
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from tinyimnet.data.findings import Findings, Unusable
from tinyimnet.data.names import is_hidden, is_image
from tinyimnet.data.source import OUTSIDE, PARTS, SPECIAL, TWICE, UNREADABLE, Files, Tree
from tinyimnet.errors import UserError
from tinyimnet.files import as_utf8, exists, from_utf8, read_bytes

BROKEN = "a broken link"


class Folder(Tree):
    """The files below a folder."""

    form = "a folder"
    top = ""

    def __init__(self, path: Path):
        self.path = path

    def read(self, name: str) -> bytes:
        """Read a file."""
        try:
            return read_bytes(self.path / from_utf8(name))
        except OSError as error:
            raise Unusable(UNREADABLE, error.strerror or str(error)) from None

    def roots(self) -> list[str]:
        """Folders that contain `train`."""
        try:
            names = sorted(as_utf8(entry.name) for entry in self.path.iterdir())
            below = [f"{name}/" for name in names if not is_hidden(name) and name not in PARTS]
            return [root for root in ("", *below) if (self.path / from_utf8(root) / "train").is_dir()]
        except OSError as error:
            raise _unreadable(error) from None

    def has(self, name: str) -> bool:
        """Whether there is such a file or folder."""
        return exists(self.path / from_utf8(name))

    def listing(self, root: str, enter: tuple[str, ...] | None) -> Files:
        """List the files in `root`."""
        try:
            files = _Walk(self.path / from_utf8(root), enter).run()
            if root:
                for entry in sorted(self.path.iterdir()):
                    name = as_utf8(entry.name) + "/" * entry.is_dir()
                    if name != root and not files.skips(name):
                        files.skipped.add(OUTSIDE, name)
            return files
        except OSError as error:
            raise _unreadable(error) from None


def _unreadable(error: OSError) -> UserError:
    return UserError(f"{error.filename} cannot be read ({error.strerror}); fix its permissions.")


def beside(folder: Path, used: Iterable[Path], enter: tuple[str, ...] = ()) -> Findings:
    """Files and folders in a folder that are not among the used ones."""
    files, paths = Folder(folder).listing("", enter), {os.path.realpath(path) for path in used}
    for name in files.names:
        if os.path.realpath(folder / from_utf8(name)) not in paths:
            files.skipped.add("not of the data set", name)
    return files.skipped


class _Walk:
    """Follows links after everything else: a file that is reached twice keeps its own name, and a loop ends.

    The type of an entry comes with its name, without a call of stat per file. Sockets, devices and named pipes are
    skipped, because reading them could hang.
    """

    def __init__(self, root: Path, enter: tuple[str, ...] | None):
        self.root, self.top_folders = root, enter
        self.files = Files(Folder(root))
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
