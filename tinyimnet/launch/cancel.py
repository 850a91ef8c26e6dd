"""Ask runs to save and stop; rerun the command that started a run to resume it.

tinyimnet cancel runs/tiny1m runs/tiny1m-seed1

Every Slurm job of a run gets scancel (SIGTERM, on which the run saves). A run outside Slurm, or in a job that other
work may share (salloc, a script of one's own), gets a STOP file.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tinyimnet import cli, errors
from tinyimnet.console import command
from tinyimnet.errors import UserError
from tinyimnet.launch import runs
from tinyimnet.launch.runs import Job
from tinyimnet.run import lock, states
from tinyimnet.run.record import Record, read_record


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, such as runs/tiny1m")


def main(args: argparse.Namespace) -> int:
    """Stop every given run and print how.

    Raises:
        UserError: a path is not a run folder (nothing is stopped), or a run is not running (the others are stopped).
    """
    found = [read_record(path) for path in runs.find_runs(args.runs, inside=False)]
    live = runs.live_jobs() if any(map(runs.jobs_of, found)) else {}
    without = []
    for name, run in zip(runs.names_of([run.path for run in found]), found, strict=True):
        done = False
        for what in stop(run, live):
            done = True
            print(f"{name}: {what}", flush=True)
        if not done:
            without.append(f"{name} ({'finished' if run.finished else 'not running'})")
    if without:
        raise UserError(f"nothing to cancel: {', '.join(without)}; `{command('status')}` shows all runs.")
    return 0


def stop(run: Record, live: Mapping[str, Job]) -> Iterator[str]:
    """Stop a run and yield what was done; nothing if it neither runs nor waits.

    Args:
        run: the run.
        live: the user's jobs in Slurm's queue.

    Raises:
        UserError: the run could not be stopped.
    """
    queued = [job for job in runs.jobs_of(run) if job in live and live[job].state != "completing"]
    own = [job for job in queued if runs.is_dedicated(job, run, live)]
    for job in own:
        runs.call("scancel", job)
        saves = "; the run saves before it stops" if live[job].state == states.RUNNING else ""
        yield f"cancelled Slurm job {job} ({live[job].state}){saves}"
    last = run.attempts[-1].job if run.attempts else ""
    waits = [job for job in queued if job not in own and job == last and live[job].state == states.PENDING]
    runs_elsewhere = lock.is_held(run.path) and all(live[job].state != states.RUNNING for job in own)
    if not runs_elsewhere and not waits:
        return
    try:
        (run.path / "STOP").touch()
    except OSError as error:
        raise UserError(f"{run.path / 'STOP'} cannot be written ({error.strerror}); fix that and retry.") from None
    yield "created the file STOP; " + (
        "the run saves before it stops" if runs_elsewhere else f"Slurm job {waits[0]} ends when it starts"
    )


if __name__ == "__main__":
    sys.exit(errors.run(cli.main, ["cancel", *sys.argv[1:]]))
