"""Ask runs to save and stop; rerun the command that started a run to resume it.

tinyimnet cancel runs/tiny1m runs/tiny1m-seed1

A Slurm job gets scancel (SIGTERM, on which the run saves); a run outside Slurm gets a STOP file.
"""

import argparse
import sys
from pathlib import Path

from tinyimnet import cli, errors
from tinyimnet.console import command
from tinyimnet.errors import UserError
from tinyimnet.launch import runs
from tinyimnet.run import lock
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
    live = runs.live_jobs() if any(map(runs.job_of, found)) else {}
    without = []
    for name, run in zip(runs.names_of([run.path for run in found]), found, strict=True):
        if what := stop(run, live.get(runs.job_of(run), ("", ""))[0]):
            print(f"{name}: {what}", flush=True)
        else:
            without.append(f"{name} ({'finished' if run.finished else 'not running'})")
    if without:
        raise UserError(f"nothing to cancel: {', '.join(without)}; `{command('status')}` shows all runs.")
    return 0


def stop(run: Record, state: str) -> str:
    """Stop a run and return what was done; "" if it is not running.

    Args:
        run: the run.
        state: state of its Slurm job; "" if the job is not in the queue.

    Raises:
        UserError: the run could not be stopped.
    """
    if state and state != "completing":
        runs.call("scancel", runs.job_of(run))
        saves = "; the run saves before it stops" if state == "running" else ""
        return f"cancelled Slurm job {runs.job_of(run)} ({state}){saves}"
    if not lock.is_held(run.path):
        return ""
    try:
        (run.path / "STOP").touch()
    except OSError as error:
        raise UserError(f"{run.path / 'STOP'} cannot be written ({error.strerror}); fix that and retry.") from None
    return "created the file STOP; the run saves before it stops"


if __name__ == "__main__":
    sys.exit(errors.run(cli.main, ["cancel", *sys.argv[1:]]))
