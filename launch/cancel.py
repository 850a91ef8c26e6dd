"""Ask runs to save and stop: python -m launch.cancel RUN [RUN ...]

A job of Slurm gets scancel, and so SIGTERM, on which the run saves; a run outside Slurm gets a file STOP.
"""

import sys
from pathlib import Path

from launch import runs
from tinyimnet import errors
from tinyimnet.errors import Parser, UserError
from tinyimnet.run import lock
from tinyimnet.run.record import Record, read_record


def main(argv: list[str]) -> int:
    """Stop every run that is named and say how; returns the exit code.

    Raises:
        UserError: a folder is no run (then nothing is stopped), or a run has nothing to stop (then the others are).
    """
    description = "Ask runs to save and stop. The command that started a run goes on with it later."
    parser = Parser(prog="python -m launch.cancel", description=description, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, such as runs/tiny1m")
    found = [read_record(path) for path in runs.find_runs(parser.parse_args(argv).runs, inside=False)]
    live = runs.live_jobs() if any(map(runs.job_of, found)) else {}
    without = []
    for name, run in zip(runs.names_of([run.path for run in found]), found, strict=True):
        if what := stop(run, live.get(runs.job_of(run), ("", ""))[0]):
            print(f"{name}: {what}", flush=True)
        else:
            without.append(f"{name} ({'finished' if run.finished else 'not running'})")
    if without:
        raise UserError(f"no live job to cancel: {', '.join(without)}; `python -m launch.status` shows all.")
    return 0


def stop(run: Record, state: str) -> str:
    """Stop a run whose job is in a state, empty: not in the queue; returns what was done, empty: nothing is alive.

    Raises:
        UserError: it could not be stopped.
    """
    if state and state != "completing":
        runs.call("scancel", runs.job_of(run))
        saves = "; it saves first" if state == "running" else ""
        return f"cancelled Slurm job {runs.job_of(run)} ({state}){saves}"
    if not lock.is_held(run.path):
        return ""
    try:
        (run.path / "STOP").touch()
    except OSError as error:
        raise UserError(f"{run.path / 'STOP'} cannot be written ({error.strerror}); mend that.") from None
    return "asked to stop with a file STOP; it saves first"


if __name__ == "__main__":
    sys.exit(errors.run(main, sys.argv[1:]))
