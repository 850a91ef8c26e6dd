"""One trial of a W&B sweep in a run folder of its own, which an agent starts: the command of a sweep's YAML.

command: ["${env}", "${interpreter}", -m, launch.trial, --config, configs/tiny1m.yaml, "${args}"]

With SWEEP_TRIAL=FILE the trial is written down there, for slurm/sweep.sbatch, which goes on with it after a requeue and
asks what follows when it has ended:

python -m launch.trial --again FILE
python -m launch.trial --ended FILE
python -m launch.trial --none EXIT_CODE        of an agent that gave none out
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from launch import requeue
from tinyimnet import config_cli, errors
from tinyimnet.config import runs_root
from tinyimnet.distributed import slurm
from tinyimnet.errors import UserError
from tinyimnet.files import write_atomically

KILLED = 137  # exit code of a trial that left none
# Where the run belongs, in attempts that no agent starts too: with WANDB_SWEEP_ID wandb takes no other word for it.
FROM_AGENT = ("WANDB_ENTITY", "WANDB_PROJECT", "WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH")


def main(argv: list[str]) -> int:
    """Train a trial, or say what follows it; the exit code."""
    if argv[:1] == ["--ended"]:
        return ended(Path(argv[1]))
    if argv[:1] == ["--none"]:
        return no_trial(int(argv[1]))
    if argv[:1] == ["--again"]:
        train(json.loads(Path(argv[1]).read_text()), argv[1])
    train(new_trial(argv), os.environ.get("SWEEP_TRIAL", ""))


def new_trial(arguments: list[str]) -> dict[str, Any]:
    """The trial that an agent asks for; `arguments` are train.py's.

    Raises:
        UserError: no agent started this process.
    """
    environment = {name: os.environ[name] for name in FROM_AGENT if name in os.environ}
    sweep, run = environment.get("WANDB_SWEEP_ID"), environment.get("WANDB_RUN_ID")
    if not sweep or not run:
        raise UserError("WANDB_SWEEP_ID or WANDB_RUN_ID is not set: `wandb agent` starts trials, not a person.")
    run_dir = (runs_root() / f"sweep-{sweep}" / run).absolute()
    attempt = [slurm.job_name(), slurm.restarts()]
    return {"run_dir": str(run_dir), "environment": environment, "arguments": arguments, "attempt": attempt}


def train(trial: dict[str, Any], file: str) -> NoReturn:
    """Be train.py for this trial; the file (empty: none) gets its exit code, and keeps null where it is killed."""

    def write_down(exit_code: int | None) -> None:
        if file:
            write_atomically(Path(file), json.dumps(trial | {"exit_code": exit_code}).encode())

    write_down(None)  # ahead of imports that take seconds
    os.environ |= trial["environment"]
    from tinyimnet import train as program
    from tinyimnet.distributed import process_group

    exit_code = errors.run(program.main, [*trial["arguments"], f"--run.dir={trial['run_dir']}"])
    write_down(exit_code)
    process_group.exit_process(exit_code)


def ended(file: Path) -> int:
    """Decide what follows a trial, and say it: the next one (the file is gone then), a requeue, the end of the job.

    Returns the exit code of the trial, or of the job where it ends.
    """
    trial = json.loads(file.read_text())
    run_dir, exit_code = Path(trial["run_dir"]), trial["exit_code"]
    job, reason = requeue.show_job(slurm.job_name()), requeue.read_marker(run_dir, os.environ).get("reason")
    running = job.get("JobState") == "RUNNING" and not requeue.is_superseded(job, os.environ)
    undisturbed = running and not requeue.is_preempted(job)
    stopped = running and exit_code == 0 and not reason and (run_dir / "STOP").exists()
    if (run_dir / "DONE").exists():
        return over(file, run_dir, "finished", 0)
    if undisturbed and reason == "SIGTERM":
        # Not from Slurm, hence from its agent: W&B stops the trial early. It is not to be started again.
        os.replace(run_dir / "REQUEUE", run_dir / "STOP")
        return over(file, run_dir, "stopped by W&B", 0)
    if stopped or (undisturbed and not reason and exit_code is not None):
        return over(file, run_dir, "failed" if exit_code else "stopped by a person", exit_code)
    verdict = requeue.decide(
        replace(config_cli.load(trial["arguments"], prog="train.py").run, dir=str(run_dir)),
        KILLED if exit_code is None else exit_code, job, os.environ,
        begun_late=trial.get("attempt") == [slurm.job_name(), slurm.restarts()],
    )  # fmt: skip
    print(f"trial {run_dir.name}: {verdict.sentence}", flush=True)
    if verdict.requeue:
        requeue.requeue(slurm.job_name())
    return verdict.exit_code


def no_trial(exit_code: int) -> int:
    """End the job, or have it come back where it was preempted while its agent asked for a trial; returns its exit code."""
    job = slurm.job_name()
    if not requeue.is_preempted(requeue.show_job(job)):
        print("no trial was given out: the sweep is finished or stopped")
        return exit_code
    print(f"job {job}: preempted before a trial was given out; requeued", flush=True)
    requeue.requeue(job)
    return 0


def over(file: Path, run_dir: Path, how: str, exit_code: int) -> int:
    """Leave a trial for good."""
    print(f"trial {run_dir.name}: {how}; on to the next", flush=True)
    file.unlink()
    return exit_code


if __name__ == "__main__":
    sys.exit(errors.run(main, sys.argv[1:]))
