"""The standard streams of the program: present from the start, and never a reason for its work to fail.

No torch here: a stream has to be open before a library opens files of its own.
"""

import io
import os
import sys
from contextlib import suppress


def open_missing() -> None:
    """Open /dev/null in place of each standard stream that the caller closed (`>&-`).

    The next file to be opened would get its number otherwise, and prints would go into that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", errors="backslashreplace", closefd=False))


open_missing()  # on import, which is before those of torch and others


class _Unfailing(io.FileIO):
    """An output stream that drops what a full disk or a closed pipe does not take; `error` is the first failure."""

    error: OSError | None = None

    def write(self, data: bytes) -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError as error:
            self.error = self.error or error
            return len(data)


def _unfailing(number: int, text: io.TextIOWrapper) -> io.TextIOWrapper:
    with suppress(OSError):
        text.flush()
    raw = _Unfailing(number, "w", closefd=False)
    return io.TextIOWrapper(
        raw if text.write_through else io.BufferedWriter(raw),  # type: ignore # write_through: python -u
        encoding=text.encoding,
        errors="backslashreplace",  # class names that the terminal's encoding does not have
        line_buffering=text.line_buffering,
        write_through=text.write_through,
    )


def prepare() -> None:
    """Let no print raise: neither for want of a reader or of space, nor for a character that the locale lacks.

    A stream that somebody has replaced, as a notebook does, is left alone.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            setattr(sys, name, _unfailing(number, stream))


def lost() -> OSError | None:
    """Why a part of stdout was not written; None if all of it was, or if its reader wanted no more (`| head`)."""
    sys.stdout.flush()
    buffer = getattr(sys.stdout, "buffer", None)
    error = getattr(getattr(buffer, "raw", buffer), "error", None)
    return None if isinstance(error, BrokenPipeError) else error
