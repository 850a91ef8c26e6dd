"""The one kind of error a user can cause and mend: a single sentence, exit code 2."""

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

logger = logging.getLogger(__name__)
USER_ERROR = 2  # exit code


class UserError(Exception):
    """A mistake outside the code: the text names the key or file, its value, and the way out.

    Args:
        sentence: what the user reads.
        every_rank: print it on every process, not on rank 0 alone, because it may happen on one only.
    """

    def __init__(self, sentence: str, *, every_rank: bool = False):
        super().__init__(sentence)
        self.every_rank = every_rank


class Busy(UserError):
    """Another process is at it."""


class Parser(argparse.ArgumentParser):
    """argparse whose errors are our one-sentence errors."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`.")


class LostProcess(Exception):
    """Another process of the group is gone or stuck; the one that failed first knows why."""


def one_line(error: Exception) -> str:
    """What an error says, on one line of at most 200 characters."""
    return " ".join((str(error) or type(error).__name__).split())[:200]


@contextmanager
def writing(out: Path, what: str = "file") -> Iterator[None]:
    """Turn an OSError into the sentence that --out cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}); choose another {what}.") from None


def run(main: Callable[[list[str]], int], argv: list[str]) -> int:
    """Call `main(argv)` and return its exit code; a UserError becomes one sentence and 2 (`--debug`: a traceback)."""
    debug = "--debug" in argv
    argv = [arg for arg in argv if arg != "--debug"]
    rank = os.environ.get("RANK") or "0"
    try:
        return main(argv)
    except UserError as error:
        if debug:
            traceback.print_exc()
            return USER_ERROR
        logger.info("ended by an error: %s", error)  # for the log of the rank; below is for the person
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
