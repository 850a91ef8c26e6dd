"""Print the logs of a run, each line prefixed with its rank, or with [slurm] for the output of its job.

tinyimnet logs runs/tiny1m
tinyimnet logs runs/tiny1m --follow --lines 100
"""

import argparse
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tinyimnet import cli, errors
from tinyimnet.errors import UserError
from tinyimnet.files import matching, reading
from tinyimnet.launch import runs
from tinyimnet.run.record import read_object

POLL = 0.5  # seconds between checks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, such as runs/tiny1m")
    parser.add_argument("-f", "--follow", action="store_true", help="print new lines until the run is finished")
    parser.add_argument("--lines", type=int, default=20, metavar="N", help="lines of each log (default: 20)")


def main(args: argparse.Namespace) -> int:
    """Print the last lines of every log and, with --follow, new ones as they are written."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # exit quietly on `| head`
    if args.lines < 0:
        raise UserError(f"--lines is {args.lines} and must be 0 or more.")
    [path] = runs.find_runs([args.run], inside=False)
    tails = {file: Tail(file, prefix) for file, prefix in find_logs(path).items()}
    if not tails and not args.follow:
        raise UserError(f"{args.run} has no logs yet; --follow waits for them.")
    with suppress(KeyboardInterrupt):
        for tail in tails.values():
            tail.show(args.lines)
            if not args.follow:
                tail.show_rest()
        if args.follow:
            follow(path, tails)
    for tail in tails.values():
        tail.show_rest()
    return 0


@dataclass
class Tail:
    """A growing log, printed line by line with a prefix."""

    file: Path
    prefix: str
    position: int = 0
    inode: int = 0
    rest: bytes = b""  # an incomplete last line

    def show(self, last: int | None = None) -> bool:
        """Print the new complete lines, or only the `last` of them; returns whether the file has grown."""
        try:
            with reading(self.file), self.file.open("rb") as file:
                stat = os.fstat(file.fileno())
                if stat.st_ino != self.inode or stat.st_size < self.position:  # replaced or truncated
                    self.show_rest()
                    self.inode, self.position = stat.st_ino, 0
                file.seek(self.position)
                *lines, self.rest = (self.rest + file.read()).split(b"\n")
                grown, self.position = file.tell() > self.position, file.tell()
        except FileNotFoundError:  # temporarily
            return False
        self._print(lines if last is None else lines[max(0, len(lines) - last + bool(self.rest)) :])
        return grown

    def show_rest(self) -> None:
        """Print the incomplete last line, if any."""
        self._print([self.rest] if self.rest else [])
        self.rest = b""

    def _print(self, lines: list[bytes]) -> None:
        """Write bytes unchanged: a log may hold anything, and the terminal may not support UTF-8."""
        sys.stdout.buffer.writelines(self.prefix.encode() + line + b"\n" for line in lines)
        sys.stdout.buffer.flush()


def follow(path: Path, tails: dict[Path, Tail]) -> None:
    """Print new lines and new logs until the run is finished and no log grows."""
    if not tails:
        print(f"{path} has no logs yet; waiting for them (Ctrl-C to quit).", file=sys.stderr, flush=True)
    while True:
        finished = (path / "DONE").exists()  # checked first, so that lines written before DONE are printed
        for file, prefix in find_logs(path).items():
            tails.setdefault(file, Tail(file, prefix))
        grown = [tail.show() for tail in tails.values()]
        if finished and not any(grown):
            return
        time.sleep(POLL)


def find_logs(path: Path) -> dict[Path, str]:
    """Existing logs of a run and the prefixes of their lines, sorted by rank, with Slurm's output last."""
    ranks = sorted(matching(path / "logs", "rank_*.log"), key=lambda file: (len(file.stem), file.stem))
    logs = {file: f"[{file.stem.removeprefix('rank_')}] " for file in ranks}
    output = read_object(path / "job.json").get("output")
    if isinstance(output, str) and os.path.isfile(output):
        logs[Path(output)] = "[slurm] "
    return logs


if __name__ == "__main__":
    sys.exit(errors.run(cli.main, ["logs", *sys.argv[1:]]))
