"""Atomic file writes that survive a power failure, reads that name their file when they fail, paths from users, locks.

No torch here: the decoding processes import it. All text is UTF-8, whatever the locale.
"""

import csv
import difflib
import errno
import fcntl
import fnmatch
import hashlib
import io
import json
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from tinyimnet.errors import UserError, did_you_mean

# Answers of a file system without flock; EINVAL cannot mean the arguments of `lock`. 524 is the kernel's own ENOTSUPP,
# which autofs lets through (https://github.com/LLNL/scr/issues/510).
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, 524)
ROOT = Path(__file__).resolve().parent.parent  # the checkout, its copy by `tinyimnet submit`, or site-packages


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file under a temporary name, sync it, rename it, sync the folder; text as UTF-8.

    A symbolic link stays, and its target is replaced. A device, a pipe and this program's own output (/dev/stdout) are
    written in place.

    Raises:
        OSError: the write failed; the previous file is intact.
    """
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogateescape")  # names of files as they are on the disk
    if in_place := _open_in_place(path):
        with in_place:
            in_place.write(content)
        return
    path = Path(os.path.realpath(path))
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        with suppress(OSError):  # a read-only file system; on a full one this gives the space back
            partial.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def _open_in_place(path: Path) -> IO[bytes] | None:
    """Open what must not be replaced by a file; None for a file, or if there is nothing."""
    with suppress(FileNotFoundError):
        found = path.stat()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, AttributeError, ValueError):  # not a real file, as in a notebook
                if os.path.samestat(found, os.fstat(stream.fileno())):
                    stream.flush()
                    return os.fdopen(os.dup(stream.fileno()), "wb")  # at its position: opening it anew would truncate
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            return path.open("wb")
    return None


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Name the file in an OSError of the block: a failed read, unlike a failed open, does not."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = str(path)
        raise


def read_bytes(path: Path) -> bytes:
    """The content of a file; an OSError names it."""
    with reading(path):
        return path.read_bytes()


def read_text(path: Path) -> str:
    """The text of a UTF-8 file; an OSError names it.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
    """
    with reading(path):
        return path.read_text(encoding="utf-8")


def check_readable(path: Path) -> None:
    """Raise the OSError that reading a file gives, for libraries that report another one."""
    with reading(path), path.open("rb") as file:
        file.read(1)


def as_utf8(name: str) -> str:
    """The name of a file as UTF-8 text, in which every locale compares it to names in text files."""
    return os.fsencode(name).decode("utf-8", "surrogateescape")


def from_utf8(name: str) -> str:
    """The inverse of `as_utf8`: the name by which to open the file in this locale."""
    return os.fsdecode(name.encode("utf-8", "surrogateescape"))


def exists(path: Path) -> bool:
    """Whether there is such a file or folder.

    Path.exists may not tell, depending on the version of Python.

    Raises:
        OSError: it cannot be known, for lack of permission for example.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def matching(folder: Path, pattern: str) -> list[Path]:
    """Sorted entries of a folder whose names match; empty without the folder.

    Raises:
        OSError: the folder cannot be read; Path.glob would find nothing in it.
    """
    try:
        return sorted(entry for entry in folder.iterdir() if fnmatch.fnmatchcase(entry.name, pattern))
    except (FileNotFoundError, NotADirectoryError):
        return []


def write_csv(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Write rows as CSV, atomically.

    Raises:
        OSError: the write failed; the previous file is intact.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_atomically(path, text.getvalue())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a JSON-lines file, without lines that a crash cut off; empty if the file is missing."""
    try:
        content = read_bytes(path).decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    lines = []
    for text in content.splitlines():
        with suppress(json.JSONDecodeError):
            lines.append(json.loads(text))
    return [line for line in lines if isinstance(line, dict)]


def expanded(text: str, name: str = "") -> Path:
    """A path from a user, with `~`, $NAME, ${NAME} and ${NAME:-DEFAULT} expanded as in a shell.

    Every path in an option, a key or a variable is read with this: a shell expands nothing in single quotes and no `~`
    in --out=~/x, and YAML has no variables.

    Args:
        text: what the user wrote.
        name: the key, option or variable that holds it, for the message.

    Raises:
        UserError: a variable is not set, there is no such user, or the text has control characters.
    """
    whole = f"{name} {text}".strip()
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise UserError(f"{name or 'the path'} {text!r} holds a control character; write a path without one.")

    def value(match: re.Match[str]) -> str:
        variable, default = match[1] or match[2], match[3]
        if not (found := os.environ.get(variable) or default):
            raise UserError(f"{whole} names the variable {variable}, which is not set; set it, or write a path.")
        return found

    path = os.path.expanduser(re.sub(r"\$(\w+)|\$\{(\w+)(?::-([^}]*))?\}", value, text))
    if path.startswith("~"):
        raise UserError(f"{whole} names the home folder of a user who does not exist; write ./{text} for a folder ~.")
    return Path(path)


def no_such(path: Path) -> str:
    """A sentence about a path that does not exist, with a similar name beside it or beside its first missing parent."""
    near = ""
    with suppress(OSError, StopIteration):
        missing = next(each for each in (*reversed(path.parents), path) if not each.exists())
        names = {each.name: str(each) for each in missing.parent.iterdir()}
        near = names[next(iter(difflib.get_close_matches(missing.name, names, 1)))]
    return f"{path} does not exist{did_you_mean(near)}"


def fsync(path: Path) -> None:
    """Flush a file to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_folder(path: Path) -> None:
    """Flush the entries of a folder to disk, where the file system can do that and the folder is readable.

    CIFS, some FUSE and 9p mounts refuse with EINVAL or EOPNOTSUPP: their renames are as durable as they get.
    """
    try:
        fsync(path)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.EPERM, errno.EBADF):
            raise


def lock(file: IO[Any]) -> bool | None:
    """Lock an open, writable file until it is closed, without waiting (flock).

    Returns False if another process holds the lock, None if the file system has no such locks (Lustre without the mount
    option `flock`, some NFS servers, autofs).

    Raises:
        OSError: the lock failed for another reason, such as an I/O error.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in NO_LOCKS:
            return None
        raise


def sha256(path: Path) -> str:
    """Hex digest of a file (hashlib.file_digest is new in Python 3.11)."""
    digest = hashlib.sha256()
    with reading(path), path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
