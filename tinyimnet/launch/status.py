"""Show all runs in one table: state, nodes, attempts, progress, speed, accuracy, time left.

tinyimnet status                        # the runs in $RUNS_ROOT or runs/
tinyimnet status --watch runs/tiny1m*
"""

import argparse
import signal
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.console import Group
from rich.live import Live
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from tinyimnet import cli, errors
from tinyimnet.config import AugmentConfig, runs_root
from tinyimnet.console import clock, console
from tinyimnet.data.resolution import step_resolutions, work_left
from tinyimnet.errors import UserError
from tinyimnet.launch import runs
from tinyimnet.launch.runs import Job
from tinyimnet.run import states
from tinyimnet.run.metrics import TOP1, evaluations
from tinyimnet.run.record import Record, read_record

STYLES = {"good": "green", "waiting": "yellow", "bad": "red"}
HEADER = ("run", "state", "nodes", "attempts", "step", "images/s", "EMA top-1 %\nlast / best", "ETA")
LEFT = 3  # leading text columns; the others are numbers
WIDE = 1000  # characters; no table is wider


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    where = "run folders, or folders of them (default: $RUNS_ROOT, or runs)"
    parser.add_argument("places", nargs="*", type=Path, metavar="RUN_OR_FOLDER", help=where)
    parser.add_argument("--watch", action="store_true", help="redraw the table until Ctrl-C")
    pause = "with --watch: seconds between redraws (default: 5)"
    parser.add_argument("--interval", type=float, default=5.0, metavar="SECONDS", help=pause)


def main(args: argparse.Namespace) -> int:
    """Print the table, once or until Ctrl-C."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # exit quietly on `| head`
    if not 1 <= args.interval <= 86400:
        raise UserError(f"--interval is {args.interval:g} and must be between 1 and 86400 seconds.")
    places = args.places or [runs_root()]
    if args.watch:
        watch(places, args.interval)
    else:
        show(places)
    return 0


def watch(places: list[Path], interval: float) -> None:
    """Redraw the table on a terminal, or print it repeatedly elsewhere, until Ctrl-C."""
    with suppress(KeyboardInterrupt):
        if not console.is_terminal:
            while True:
                show(places)
                time.sleep(interval)
        with Live(console=console, auto_refresh=False) as screen:
            while True:
                table, notes = view(places)
                screen.update(Group(table, *[Text(note, overflow="fold") for note in notes]), refresh=True)
                time.sleep(interval)


def show(places: list[Path]) -> None:
    """Print the table, and each note below it as a single line, however long, so that a pipe gets all of it."""
    table, notes = view(places)
    console.print(table)
    for note in notes:
        console.print(note)


def view(places: list[Path]) -> tuple[Table, list[str]]:
    """The current table, and notes to print below it: Slurm errors, unreadable files, and W&B URLs without room.

    Raises:
        UserError: a place is not a run folder and contains none.
    """
    found = [read_record(path, evaluations) for path in runs.find_runs(places)]
    names = runs.names_of([run.path for run in found])
    jobs = {job for run in found if (job := runs.job_of(run)) and not run.finished}
    live, notes = {}, []
    try:
        live = runs.live_jobs() if jobs else {}
    except UserError as error:
        notes.append(f"{error} Until then, states come from the run folders.")
    notes += [sentence for run in found for sentence in run.damaged]
    ended = runs.ended_jobs(jobs - live.keys())
    rows = [(name, *_cells(run, live, ended)) for name, run in zip(names, found, strict=True)]
    urls = [run.url for run in found]
    table = _table(rows, urls)
    wanted = Measurement.get(console, console.options.update(width=WIDE), table).maximum
    if any(urls) and wanted > console.width:
        table = _table(rows, [])
        notes += [f"{name}  {url}" for name, url in zip(names, urls, strict=True) if url]
    return table, notes


def seconds_left(run: Record, now: float) -> float | None:
    """Seconds to the last step at the speed of this attempt, or else of the last log line; None if unknown."""
    if not run.attempts or run.step is None:
        return None
    attempt, speed, config = run.attempts[-1], run.last("perf/images_per_s"), run.config
    if run.step >= attempt.total_steps:
        return 0
    if run.step > attempt.step and now > attempt.started:
        since, elapsed = attempt.step, now - attempt.started
    else:
        batch = config.get("train.global_batch_size")
        if not (speed and speed > 0 and isinstance(batch, int)):
            return None
        since, elapsed = run.step - 1, batch / speed
    return elapsed * work_left(step_resolutions(_schedule(config), attempt.total_steps), since, run.step)


def _schedule(config: dict[str, Any]) -> AugmentConfig:
    """The keys of a flat configuration that `step_resolutions` reads; the defaults if one is damaged."""
    defaults = AugmentConfig()
    names = ("start_resolution", "full_resolution_from", "end_resolution", "end_resolution_from")
    values = {name: config.get(f"augment.{name}", getattr(defaults, name)) for name in names}
    return replace(defaults, **values) if all(isinstance(v, int | float) for v in values.values()) else defaults


def _cells(run: Record, live: dict[str, Job], ended: dict[str, str]) -> tuple[str, ...]:
    """Table cells of a run, without its name."""
    state, job = runs.state_of(run, live, ended), runs.job_of(run)
    nodes = live[job].where if job in live else ", ".join(run.attempts[-1].nodes if run.attempts else [])
    if (end := ended.get(job, state)) not in (state, "completed"):
        nodes = f"{nodes} ({end})"  # why Slurm ended the job
    speed, top1 = run.last("perf/images_per_s"), run.series(TOP1)[1]
    left = seconds_left(run, time.time()) if state == states.RUNNING else None
    return (
        state,
        nodes or "-",
        str(len(run.attempts) or "-"),
        _progress(run),
        "-" if speed is None else f"{speed:,.0f}",
        f"{top1[-1]:.2f} / {max(top1):.2f}" if top1 else "-",
        "-" if left is None else clock(left),
    )


def _progress(run: Record) -> str:
    """'1,234 / 5,000 (24 %)', or the part of it that is known."""
    if run.step is None:
        return "-"
    total = run.total_steps
    return f"{run.step:,} / {total:,} ({100 * run.step // total} %)" if total > 0 else f"{run.step:,}"


def _table(rows: list[tuple[str, ...]], urls: list[str]) -> Table:
    title = f"runs at {time.strftime('%H:%M:%S')}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    whole = {"state", "attempts", "images/s", "ETA", *(["step"] if console.width >= 100 else [])}
    for i, name in enumerate(HEADER):
        side: Literal["left", "right"] = "left" if i < LEFT else "right"
        table.add_column(name, justify=side, overflow="fold", no_wrap=name in whole)
    if any(urls):
        table.add_column("W&B", no_wrap=True)
    for row, url in zip(rows, urls or [""] * len(rows), strict=True):
        style = STYLES[states.look(row[1])]
        cells = [Text(row[0]), Text(row[1], style), *map(Text, row[2:])]
        table.add_row(*cells, *[Text(url)] * any(urls))
    return table


if __name__ == "__main__":
    sys.exit(errors.run(cli.main, ["status", *sys.argv[1:]]))
