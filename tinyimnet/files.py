"""Atomic file writes that survive a power failure, paths from users, file locks, digests.

No torch here: the decoding processes import it.
"""

import difflib
import errno
import fcntl
import hashlib
import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from tinyimnet.errors import UserError, did_you_mean

ROOT = Path(__file__).resolve().parent.parent  # the checkout, its copy by `tinyimnet submit`, or site-packages


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, sync it, rename it, sync the folder.

    Raises:
        OSError: the write failed; the previous file is intact.
    """
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
    fsync(path.parent)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a JSON-lines file, without lines that a crash cut off; empty if the file is missing."""
    lines = []
    for text in path.read_text(errors="replace").splitlines() if path.exists() else []:
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
    """Flush a file to disk, or the entries of a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(file: IO[Any]) -> bool | None:
    """Lock an open, writable file until it is closed, without waiting (flock).

    Returns False if another process holds the lock, None if the file system has no such locks (Lustre without the mount
    option `flock`, some NFS servers).
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            return None
        raise


def sha256(path: Path) -> str:
    """Hex digest of a file (hashlib.file_digest is new in Python 3.11)."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
