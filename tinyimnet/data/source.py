"""The interface of all sources of image files: what they contain, and the bytes of a file by its name."""

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from tinyimnet.data.findings import Findings, Unusable
from tinyimnet.data.names import UNMENTIONED, is_hidden
from tinyimnet.errors import UserError

SPLITS = ("train", "val", "test")
VALIDATION = ("val", "valid", "validation")  # names of the validation part of plain folders
PARTS = ("train", *VALIDATION, "test")
HIDDEN = "hidden or of the system"
OUTSIDE = "outside the folders of images"
TWICE = "reached twice"
SPECIAL = "neither a file nor a folder"
UNREADABLE = "unreadable"


class Source(ABC):
    """Files that are read by name. Decoding processes get a copy each, so an open file is no part of its state.

    Attributes:
        path: the folder or the file, for messages.
        form: what it is, in words.
    """

    path: Path
    form: str

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Read a file.

        Raises:
            Unusable: the file cannot be read, or its checksum in the archive does not match.
        """

    def position(self, name: str) -> int:
        """The place of a file in a source that is cheap to read in order; 0 if the order does not matter."""
        return 0

    def lines(self, name: str) -> list[str]:
        """Lines of a text file that are not blank, without the spaces at their ends."""
        try:
            return [stripped for line in text_lines(self.read(name)) if (stripped := line.strip())]
        except Unusable as fault:
            raise UserError(f"{self.path}: {name} cannot be read ({fault.detail}); restore it.") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path}: {name} is not UTF-8 ({error}); save it as UTF-8.") from None


class Tree(Source):
    """A source with folders: a folder on disk (folders.py) or an archive (archives.py).

    Attributes:
        top: the folder that contains everything else, with a slash at the end; empty on disk.
    """

    top: str

    @abstractmethod
    def roots(self) -> list[str]:
        """Folders with `train`, the top one or just below it, with a slash at the end; a class may have that name."""

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether there is such a file or folder."""

    @abstractmethod
    def listing(self, root: str, enter: tuple[str, ...] | None) -> "Files":
        """List the files in `root`, and below those of its folders that are in `enter`; None: below all of them.

        Raises:
            UserError: a folder cannot be read.
        """


def text_lines(content: bytes) -> list[str]:
    """Lines of a UTF-8 text with the line ends of any system, with or without a byte order mark."""
    return re.split("\r\n|\r|\n", content.decode("utf-8-sig"))


@dataclass
class Files:
    """What a tree contains: paths relative to the folder with `train` or with the classes.

    Attributes:
        source: reads them.
        names: files to classify.
        folders: folders, without a slash at the end; that of the whole tree may be among them as an empty name.
        skipped: files and folders that are not part of any data set.
    """

    source: Source
    names: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    skipped: Findings = field(default_factory=Findings)

    def lines(self, name: str) -> list[str]:
        """Lines of a text file; none without it."""
        return self.source.lines(name) if name in self.names else []

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
