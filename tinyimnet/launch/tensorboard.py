"""Write the metrics of runs as event files that TensorBoard shows: DIR/RUN/events.out.tfevents.tinyimnet.

tinyimnet tensorboard runs/tiny1m --out tb                  # then: tensorboard --logdir tb
tinyimnet tensorboard runs/tiny1m-seed* --out tb --follow   # until the runs are finished, or Ctrl-C

An event file always has what metrics.jsonl has: giving the command again adds the new rows and doubles none. Needs
pip install 'tensorboard>=2.21,<3'.
"""

import argparse
import io
import os
import shlex
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from tinyimnet.console import counted
from tinyimnet.errors import UserError, writing
from tinyimnet.launch import runs
from tinyimnet.launch.logs import POLL
from tinyimnet.run.metrics import STEP
from tinyimnet.run.record import Record, read_record, with_metrics

FILE = "events.out.tfevents.tinyimnet"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, such as runs/tiny1m")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for TensorBoard's --logdir")
    parser.add_argument("-f", "--follow", action="store_true", help="write new rows until the runs are finished")


def main(args: argparse.Namespace) -> int:
    """Write an event file per run and, with --follow, keep them up to date.

    Raises:
        UserError: the package is missing, a run has no metrics or a damaged file, or --out cannot be written.
    """
    paths = runs.find_runs(args.runs, inside=False)
    files = {path: args.out / name / FILE for path, name in zip(paths, runs.names_of(paths), strict=True)}
    for path, file in files.items():
        update(file, content(read_record(path) if args.follow else with_metrics(path)))
    show = f"tensorboard --logdir {shlex.quote(str(args.out))}"
    print(f"{args.out}: {counted(len(files), 'run')}; show with: {show}", flush=True)
    if args.follow:
        with suppress(KeyboardInterrupt):
            follow(files)
    return 0


def follow(files: dict[Path, Path]) -> None:
    """Keep the event files of runs up to date until all runs are finished."""
    written: dict[Path, tuple[int, int, int]] = {}
    while True:
        finished = all((path / "DONE").exists() for path in files)  # checked first, so that the last rows are written
        for path, file in files.items():
            if (newest := _version(path / "metrics.jsonl")) != written.get(path):
                update(file, content(read_record(path)))
                written[path] = newest
        if finished:
            return
        time.sleep(POLL)


def content(run: Record) -> bytes:
    """The event file of a run, a function of its folder alone: the scalars of each row by global step.

    Rows have no wall time. They get the start of the first attempt plus the training time up to the row, so that the
    axis "relative" of TensorBoard is the training time, without interruptions.
    """
    if run.damaged:
        raise UserError(run.damaged[0])
    start = run.attempts[0].started if run.attempts else 0.0
    rows = zip(run.lines, run.seconds(), strict=True)
    scalars = [_scalars(start + seconds, int(line[STEP]), tuple(line.items())) for line, seconds in rows]
    return b"".join([_record(wall_time=start, file_version="brain.Event:2"), *scalars])


@cache  # the checksum, in Python, makes it 0.2 ms, and a long run has 2,000 rows
def _scalars(wall_time: float, step: int, row: tuple[tuple[str, float], ...]) -> bytes:
    values = [{"tag": key, "simple_value": value} for key, value in row if key != STEP]
    return _record(wall_time=wall_time, step=step, summary={"value": values})


def _record(**fields: Any) -> bytes:
    try:
        from tensorboard.compat.proto.event_pb2 import Event  # deferred: the package is an extra
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError:
        raise UserError(
            "event files need the package tensorboard; install it: pip install 'tensorboard>=2.21,<3'."
        ) from None
    record = io.BytesIO()
    RecordWriter(record).write(Event(**fields).SerializeToString())
    return record.getvalue()


def update(file: Path, content: bytes) -> None:
    """Give a file this content, in place: a TensorBoard that has read a part of it reads on from there."""
    with writing(file.parent, "folder"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        with file.open("r+b") as events:
            written = events.read()
            kept = len(written) if content.startswith(written) else 0
            events.seek(kept)
            events.write(content[kept:])
            events.truncate()


def _version(file: Path) -> tuple[int, int, int]:
    """What changes when a file is written; zeros without the file."""
    try:
        with file.open("rb") as rows:  # NFS reports the current size and time only of an opened file
            stat = os.fstat(rows.fileno())
    except FileNotFoundError:
        return 0, 0, 0
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
