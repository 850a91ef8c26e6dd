"""One trial of a W&B sweep in its own run folder. An agent starts it, with the command in the sweep's YAML file.

command: ["${env}", "${interpreter}", -m, tinyimnet.launch.trial, --config, configs/tiny1m.yaml, "${args}"]

With SWEEP_TRIAL=FILE the trial is recorded in FILE. slurm/sweep.sbatch uses it to resume the trial after a requeue, and
to decide what follows when the trial has ended:

python -m tinyimnet.launch.trial --folder SWEEP          # prints the folder of the sweep's runs
python -m tinyimnet.launch.trial --again FILE
python -m tinyimnet.launch.trial --ended FILE [SCRIPT [ARGUMENT ...]]
python -m tinyimnet.launch.trial --none EXIT_CODE [SCRIPT [ARGUMENT ...]]       # if the agent started no trial

SCRIPT is the job's own, which is its successor if Slurm does not requeue it.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from tinyimnet import config_cli, errors
from tinyimnet.config import runs_root
from tinyimnet.distributed import slurm
from tinyimnet.errors import UserError
from tinyimnet.files import read_text, write_atomically
from tinyimnet.launch import requeue

KILLED = 137  # assumed exit code of a trial that recorded none
# These identify the W&B run, also in attempts without an agent: if WANDB_SWEEP_ID is set, wandb ignores other settings.
FROM_AGENT = ("WANDB_ENTITY", "WANDB_PROJECT", "WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH")


def main(argv: list[str]) -> int:
    """Train a trial, decide what follows it, or print the folder of its sweep; returns the exit code."""
    if argv[:1] == ["--folder"]:
        print(folder(argv[1]))
        return 0
    if argv[:1] == ["--ended"]:
        return ended(Path(argv[1]), argv[2:])
    if argv[:1] == ["--none"]:
        return no_trial(int(argv[1]), argv[2:])
    if argv[:1] == ["--again"]:
        train(json.loads(read_text(Path(argv[1]))), argv[1])
    train(new_trial(argv), os.environ.get("SWEEP_TRIAL", ""))


def folder(sweep: str) -> Path:
    """The folder of a sweep's runs, absolute.

    Raises:
        UserError: RUNS_ROOT is not valid.
    """
    return (runs_root() / f"sweep-{sweep}").absolute()


def new_trial(arguments: list[str]) -> dict[str, Any]:
    """The trial that the agent started, with these arguments for train.py.

    Raises:
        UserError: no agent started this process.
    """
    environment = {name: os.environ[name] for name in FROM_AGENT if name in os.environ}
    sweep, run = environment.get("WANDB_SWEEP_ID"), environment.get("WANDB_RUN_ID")
    if not sweep or not run:
        raise UserError("WANDB_SWEEP_ID or WANDB_RUN_ID is not set; start trials with `wandb agent`.")
    attempt = [slurm.job_name(), slurm.restarts()]
    return {"run_dir": str(folder(sweep) / run), "environment": environment, "arguments": arguments, "attempt": attempt}


def train(trial: dict[str, Any], file: str) -> NoReturn:
    """Run train.py for this trial; `file`, unless "", records its exit code, or null if it is killed."""

    def write_down(exit_code: int | None) -> None:
        if file:
            write_atomically(Path(file), json.dumps(trial | {"exit_code": exit_code}).encode())

    write_down(None)  # before the imports, which take seconds
    os.environ |= trial["environment"]
    from tinyimnet import train as program
    from tinyimnet.distributed import process_group

    arguments = [*trial["arguments"], f"--run.dir={trial['run_dir']}"]
    exit_code = errors.run(program.main, arguments, may_lose_output=True)
    write_down(exit_code)
    process_group.exit_process(exit_code)


def ended(file: Path, script: Sequence[str]) -> int:
    """Decide what follows a trial and print it: the next trial (deletes the file), a requeue, or the end of the job.

    Where Slurm does not requeue the job, `script` with its arguments becomes its successor.

    Returns the exit code of the trial, or of the job if the job ends.
    """
    trial = json.loads(read_text(file))
    run_dir, exit_code = Path(trial["run_dir"]), trial["exit_code"]
    job, reason = requeue.show_job(slurm.job_name()), requeue.read_marker(run_dir, os.environ).get("reason")
    running = job.get("JobState") == "RUNNING" and not requeue.is_superseded(job, os.environ)
    undisturbed = running and not requeue.is_preempted(job)
    stopped = running and exit_code == 0 and not reason and (run_dir / "STOP").exists()
    if (run_dir / "DONE").exists():
        return over(file, run_dir, "finished", 0)
    if undisturbed and reason == "SIGTERM":
        # The SIGTERM is not from Slurm, hence from the agent: W&B stopped the trial early. It must not resume.
        os.replace(run_dir / "REQUEUE", run_dir / "STOP")
        return over(file, run_dir, "stopped by W&B", 0)
    if stopped or (undisturbed and not reason and exit_code is not None):
        return over(file, run_dir, "failed" if exit_code else "stopped by the user", exit_code)
    verdict = requeue.decide(
        replace(config_cli.load(trial["arguments"], prog="train.py").run, dir=str(run_dir)),
        KILLED if exit_code is None else exit_code, job, os.environ,
        begun_late=trial.get("attempt") == [slurm.job_name(), slurm.restarts()], may_succeed=bool(script),
    )  # fmt: skip
    return requeue.carry_out(verdict, f"trial {run_dir.name}", job, script, run_dir, file)


def no_trial(exit_code: int, script: Sequence[str]) -> int:
    """End a job without a trial, or continue it if it was preempted before one started; returns its exit code."""
    job = requeue.show_job(slurm.job_name())
    if not requeue.is_preempted(job) or job.get("JobState") != "RUNNING":
        print("no trial started: the sweep is finished or stopped")
        return exit_code
    how = "continued by a successor" if job.get("Requeue") == "0" else "requeued"
    verdict = requeue.Verdict(True, 0, f"preempted before a trial started; {how}")
    return requeue.carry_out(verdict, f"job {slurm.job_name()}", job, script)


def over(file: Path, run_dir: Path, how: str, exit_code: int) -> int:
    """Drop a trial that must not resume; returns its exit code."""
    print(f"trial {run_dir.name}: {how}; continuing with the next trial", flush=True)
    file.unlink()
    return exit_code


if __name__ == "__main__":
    if sys.argv[1:2] in (["--ended"], ["--none"]):
        requeue.outlive_sigterm()
    sys.exit(errors.run(main, sys.argv[1:]))
