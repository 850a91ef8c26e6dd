"""The logs of a run, all its processes side by side: python -m launch.logs RUN [--follow] [--lines N]"""

import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from launch import runs
from tinyimnet import errors
from tinyimnet.errors import Parser, UserError
from tinyimnet.run.record import read_object

POLL = 0.5  # seconds between two looks


def main(argv: list[str]) -> int:
    """Print the last lines of every log, and with --follow what comes after them; returns the exit code."""
    description = "Print the logs of a run, each line behind its rank, or [slurm] for Slurm's own output."
    parser = Parser(prog="python -m launch.logs", description=description, allow_abbrev=False)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, such as runs/tiny1m")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until it is finished, or Ctrl-C")
    parser.add_argument("--lines", type=int, default=20, metavar="N", help="lines of each log (default: 20)")
    args = parser.parse_args(argv)
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
    """A log that is printed as it grows, line by line, each behind a prefix."""

    file: Path
    prefix: str
    position: int = 0
    inode: int = 0
    rest: bytes = b""  # a line whose end is not written yet

    def show(self, last: int | None = None) -> bool:
        """Print the whole lines that are new, or the last few of them; returns whether the file has grown."""
        try:
            with self.file.open("rb") as file:
                stat = os.fstat(file.fileno())
                if stat.st_ino != self.inode or stat.st_size < self.position:  # another file, or begun again
                    self.show_rest()
                    self.inode, self.position = stat.st_ino, 0
                file.seek(self.position)
                *lines, self.rest = (self.rest + file.read()).split(b"\n")
                grown, self.position = file.tell() > self.position, file.tell()
        except OSError:  # gone for the moment
            return False
        self._print(lines if last is None else lines[max(0, len(lines) - last + bool(self.rest)) :])
        return grown

    def show_rest(self) -> None:
        """Print a last line without an end, where there is one."""
        self._print([self.rest] if self.rest else [])
        self.rest = b""

    def _print(self, lines: list[bytes]) -> None:
        """The bytes as they are: a log may hold anything, and the terminal may not know UTF-8."""
        sys.stdout.buffer.writelines(self.prefix.encode() + line + b"\n" for line in lines)
        sys.stdout.buffer.flush()


def follow(path: Path, tails: dict[Path, Tail]) -> None:
    """Print what is added to the logs and what is in new ones, until the run is finished and nothing more comes."""
    if not tails:
        print(f"{path} has no logs yet: waiting, Ctrl-C ends it.", file=sys.stderr, flush=True)
    while True:
        finished = (path / "DONE").exists()  # before the look: what came ahead of it is printed
        for file, prefix in find_logs(path).items():
            tails.setdefault(file, Tail(file, prefix))
        grown = [tail.show() for tail in tails.values()]
        if finished and not any(grown):
            return
        time.sleep(POLL)


def find_logs(path: Path) -> dict[Path, str]:
    """The logs that a run has by now, by rank, Slurm's own last, and what to put before their lines."""
    ranks = sorted((path / "logs").glob("rank_*.log"), key=lambda file: (len(file.stem), file.stem))
    logs = {file: f"[{file.stem.removeprefix('rank_')}] " for file in ranks}
    output = read_object(path / "job.json").get("output")
    if isinstance(output, str) and os.path.isfile(output):
        logs[Path(output)] = "[slurm] "
    return logs


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it quietly
    sys.exit(errors.run(main, sys.argv[1:]))
