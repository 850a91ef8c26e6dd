"""UserError, an error that the user can fix: one sentence, exit code 2."""

import argparse
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

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


def rank_of_process() -> str:
    """Rank that a launcher or srun gave this process, "0" if none did; before and after launcher.map_environment."""
    return os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0"


def exit_on_sigterm() -> None:
    """In a Slurm step, exit with code 1 on SIGTERM until the run installs its handlers.

    When a rank fails, srun ends the others with SIGTERM and returns the highest of all exit codes. That of a user error
    (2) must not become 143.
    """
    if "SLURM_STEP_ID" in os.environ:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(1))


def run(main: Callable[[list[str]], int], argv: list[str]) -> int:
    """Call `main(argv)` and return its exit code; a UserError is printed as one sentence (`--debug`: traceback): 2."""
    debug = "--debug" in argv
    argv = [arg for arg in argv if arg != "--debug"]
    try:
        return main(argv)
    except UserError as error:
        rank = rank_of_process()
        if debug:
            traceback.print_exc()
            return USER_ERROR
        logger.info("ended by an error: %s", error)  # to logs/rank_N.log; stderr gets the sentence below
        if rank == "0" or error.every_rank:
            where = f" (rank {rank})" if error.every_rank else ""
            print(f"error{where}: {error}", file=sys.stderr, flush=True)
        return USER_ERROR
    except LostProcess as error:
        logger.error("rank %s: %s", rank_of_process(), error)
        return 1
    except Exception:
        logger.exception("rank %s failed", rank_of_process())
        return 1
