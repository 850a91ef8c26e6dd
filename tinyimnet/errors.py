"""UserError, an error that the user can fix: one sentence, exit code 2."""

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from tinyimnet import streams

logger = logging.getLogger(__name__)
USER_ERROR = 2  # exit code


class UserError(Exception):
    """An error outside the code; the sentence names the key or file, its value, and the way out.

    Args:
        sentence: what the user reads.
        every_rank: print it on every rank, because it may occur on one rank only.
    """

    def __init__(self, sentence: str, *, every_rank: bool = False):
        super().__init__(sentence)
        self.every_rank = every_rank


class Busy(UserError):
    """Another process holds the resource."""


class Parser(argparse.ArgumentParser):
    """argparse that prints descriptions verbatim and reports errors as a UserError."""

    def __init__(self, **options: Any):
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`.")


class LostProcess(Exception):
    """Another process of the group died or hangs; the log of the first one that failed has the cause."""


def one_line(error: Exception) -> str:
    """The message of an error on one line, cut at 200 characters."""
    return " ".join((str(error) or type(error).__name__).split())[:200]


@contextmanager
def writing(out: Path, what: str = "file") -> Iterator[None]:
    """Turn an OSError into a UserError about --out."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}); choose another {what}.") from None


@contextmanager
def paths_named() -> Iterator[None]:
    """Turn an OSError about a path into a UserError; one about anything else, such as a socket, passes through.

    Code that reads what a user names lets OSError pass, so that nothing that cannot be read is called damaged.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None or not error.strerror:
            raise
        raise UserError(
            f"{os.fsdecode(error.filename)} cannot be accessed ({error.strerror}); fix that and rerun the same "
            "command, or give another path.",
            every_rank="RANK" in os.environ,
        ) from error


def run(main: Callable[[list[str]], int], argv: list[str], *, may_lose_output: bool = False) -> int:
    """Call `main(argv)` and return its exit code; a UserError is printed as one sentence (`--debug`: traceback): 2.

    The exit code is 2 as well if a part of stdout was not written, on a full disk for example, unless the result is
    elsewhere (`may_lose_output`).
    """
    streams.prepare()
    try:
        exit_code = _run(main, argv)
    except SystemExit as end:  # --help, --version, a signal
        exit_code = end.code if isinstance(end.code, int) else 0
        may_lose_output = False
    if exit_code == 0 and not may_lose_output and (error := streams.lost()):
        print(f"error: the output could not be written ({error.strerror}).", file=sys.stderr, flush=True)
        return USER_ERROR
    return exit_code


def _run(main: Callable[[list[str]], int], argv: list[str]) -> int:
    debug = "--debug" in argv
    argv = [arg for arg in argv if arg != "--debug"]
    rank = os.environ.get("RANK") or "0"
    try:
        with paths_named():
            return main(argv)
    except UserError as error:
        if debug:
            traceback.print_exc()
            return USER_ERROR
        # To logs/rank_N.log; stderr gets the sentence below.
        logger.info("ended by an error: %s", error, exc_info=error.__cause__)
        if rank == "0" or error.every_rank:
            where = f" (rank {rank})" if error.every_rank else ""
            print(f"error{where}: {error}", file=sys.stderr, flush=True)
        return USER_ERROR
    except LostProcess as error:
        logger.error("rank %s: %s", rank, error)
        return 1
    except Exception:
        logger.exception("rank %s failed", rank)
        return 1
