"""UserError, an error that the user can fix: one sentence, exit code 2."""

import argparse
import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from tinyimnet import streams

logger = logging.getLogger(__name__)
USER_ERROR = 2  # exit code
HEADSTART = 3  # seconds that another rank has to print the error: srun ends all when one exits


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


def did_you_mean(meant: str, otherwise: str = ".") -> str:
    """The end of a sentence about something unknown: a suggestion, if there is one."""
    return f"; did you mean {meant}?" if meant else otherwise


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
    try:
        with paths_named():
            return main(argv)
    except UserError as error:
        rank = rank_of_process()
        if debug:
            traceback.print_exc()
            return USER_ERROR
        # To logs/rank_N.log; stderr gets the sentence below.
        logger.info("ended by an error: %s", error, exc_info=error.__cause__)
        tell_launcher(f"error: {error}")
        if rank == "0" or error.every_rank:
            where = f" (rank {rank})" if error.every_rank else ""
            print(f"error{where}: {error}", file=sys.stderr, flush=True)
        elif "SLURM_STEP_ID" in os.environ:
            time.sleep(HEADSTART)
        return USER_ERROR
    except LostProcess as error:
        logger.error("rank %s: %s", rank_of_process(), error)
        return 1
    except Exception as error:
        logger.exception("rank %s failed", rank_of_process())
        tell_launcher(f"{type(error).__name__}: {one_line(error)}")
        return 1


def tell_launcher(message: str) -> None:
    """Have torchrun and `accelerate launch` with several processes repeat a message at the end of their own report.

    Each prints 40 lines after a failed process, and ends with the content of this file (torch.distributed.elastic).
    """
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        extra = {"py_callstack": message, "timestamp": str(int(time.time()))}
        with suppress(OSError):
            Path(file).write_text(json.dumps({"message": {"message": message, "extraInfo": extra}}), encoding="utf-8")
