"""What a batch script does when its training has ended: start the job again, or end it.

python -m launch.requeue EXIT_CODE [train.py's options]

A job is requeued where the run was stopped by its scheduler and saved (the marker REQUEUE of this attempt), where Slurm
preempts it (with a grace period Slurm sends SIGTERM and waits, and a job that ends by itself meanwhile counts as
completed), and where a process failed or was lost after the job had got on. All else ends: a finished run, a mistake, a
person's STOP, a cancelled job, a run that makes no progress.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tinyimnet import config_cli, errors
from tinyimnet.config import RunConfig
from tinyimnet.distributed import slurm
from tinyimnet.errors import UserError
from tinyimnet.run.folder import newest_step, read_attempts

# Seconds, beyond the 20 to 40 that scontrol waits for a controller itself; one that restarts or fails over is back by then.
PATIENCE = 60
# Attempts in a row that fail and save nothing new, after which a job ends: what fails each time is no accident.
IDLE_ATTEMPTS = 3
SECOND_CTRL_C = 128 + signal.SIGINT


class Verdict(NamedTuple):
    """What becomes of a job: whether it starts again, its exit code where it does not, and why."""

    requeue: bool
    exit_code: int
    sentence: str


def main(argv: list[str]) -> int:
    """Requeue this job or not, and say why; the exit code of the job."""
    exit_code, run = int(argv[0]), config_cli.load(argv[1:], prog="python -m launch.requeue").run
    verdict = decide(run, exit_code, show_job(slurm.job_name()), os.environ)
    print(f"job {slurm.job_name()}: {verdict.sentence}", flush=True)
    if verdict.requeue:
        requeue(slurm.job_name())
    return verdict.exit_code


def requeue(job: str) -> None:
    """Have Slurm start a job again; it ends this one, and with it the caller.

    Raises:
        UserError: Slurm refuses.
    """
    done = scontrol("requeue", job)
    if done.returncode:
        raise UserError(
            f"scontrol requeue {job} failed ({' '.join(done.stderr.split())}); the run is saved: submit it again to go "
            "on, with sbatch --requeue where the cluster allows it."
        )


def decide(
    run: RunConfig,
    exit_code: int,
    job: Mapping[str, str],
    environ: Mapping[str, str],
    *,
    begun_late: bool = False,
) -> Verdict:
    """What becomes of this job.

    Args:
        run: the run's folder and its number of attempts.
        exit_code: of the training.
        job: what Slurm says about the job (`show_job`).
        environ: SLURM_RESTART_COUNT and the ids of the job.
        begun_late: the run was not there yet when this attempt began, and may have had no time for a step.
    """
    attempt, begun = slurm.restarts(environ) + 1, attempts_of_job(Path(run.dir), environ)
    # What crashes when it leaves is finished as well; a DONE of an earlier run is removed when an attempt begins.
    if (exit_code == 0 or attempt - 1 in begun) and (Path(run.dir) / "DONE").exists():
        return Verdict(False, 0, f"finished in attempt {attempt}")
    if job.get("JobState", "RUNNING") != "RUNNING":
        return Verdict(False, exit_code, f"{job['JobState'].lower()}; not requeued")
    if is_superseded(job, environ):
        return Verdict(False, exit_code, "a later attempt of this job has begun; not requeued")
    marker = read_marker(Path(run.dir), environ)
    # Ahead of a preemption: what it asked for is done.
    if exit_code == 0 and not marker and (Path(run.dir) / "STOP").exists():
        return Verdict(False, 0, "stopped by a person; not requeued")
    preempted = is_preempted(job)
    accident = bool(job) and not (preempted or marker) and is_accident(Path(run.dir), exit_code, environ)
    if not preempted and not marker and not accident:
        return Verdict(False, exit_code, f"ended with exit code {exit_code}; not requeued")
    if preempted:
        why = "preempted"
    elif marker:
        why = f"stopped by {marker['reason']} and saved"
    else:
        why = f"ended with exit code {exit_code}, with step {newest_step(Path(run.dir))} saved"
    if marker and not preempted and not marker["steps"] and not begun_late:
        return Verdict(
            False, 1, f"{why} without one step done in attempt {attempt}; not requeued, because the next would end the "
            "same way: give it a longer time limit, or a lower run.stop_before_end and sbatch --signal"
        )  # fmt: skip
    if attempt >= run.max_attempts:
        return Verdict(
            False, 1, f"{why}; not requeued after attempt {attempt} of run.max_attempts {run.max_attempts}: submit it again to go on"
        )  # fmt: skip
    return Verdict(True, 0, f"{why}; requeued for attempt {attempt + 1}")


def read_marker(run_dir: Path, environ: Mapping[str, str]) -> dict:
    """The marker REQUEUE of this attempt of the job; empty without one, and for one of an earlier attempt."""
    try:
        marker = json.loads((run_dir / "REQUEUE").read_text())
        return marker if marker["attempt"] == [slurm.job_name(environ), slurm.restarts(environ)] else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def is_accident(run_dir: Path, exit_code: int, environ: Mapping[str, str]) -> bool:
    """Whether an attempt that failed may be followed by one that does not: a process was killed, a node or its network lost.

    Slurm itself notices a lost node after SlurmdTimeout, 300 s by default; the processes on the other nodes see it at once
    and end. An attempt that was refused before it began counts as well, for example by the preflight for a node that is not
    in order, but neither a mistake in one that had begun nor what a person wanted to end. In no case unless an earlier
    attempt of this job, or this one, got on IDLE_ATTEMPTS ago at most: saved something new or, as the first one, went on from
    what another job had saved.
    """
    restart, begun = slurm.restarts(environ), attempts_of_job(run_dir, environ)
    # The exit code alone does not tell: srun has that of a signal where it killed a process that waited for W&B.
    users_error = restart in begun and (exit_code == errors.USER_ERROR or (run_dir / "ERROR").exists())
    by_a_person = exit_code == SECOND_CTRL_C or (run_dir / "STOP").exists()
    if not exit_code or users_error or by_a_person:
        return False
    saved = newest_step(run_dir)
    productive = [attempt for attempt, step in begun.items() if step < saved or (attempt == 0 and step > 0)]
    return bool(productive) and restart - max(productive) < IDLE_ATTEMPTS


def attempts_of_job(run_dir: Path, environ: Mapping[str, str]) -> dict[int, int]:
    """The attempts of this job that began: how often it had been started again, and the step from which each went on."""
    job = slurm.job_name(environ)
    return {each.restart: each.step for each in read_attempts(run_dir) if job and each.job == job}


def show_job(job: str) -> dict[str, str]:
    """JobState, PreemptTime and Restarts of a job; empty outside Slurm, and where it does not answer."""
    if not job:
        return {}
    answer = scontrol("--oneliner", "show", "job", job)
    return dict(re.findall(r"\b(JobState|PreemptTime|Restarts)=(\S+)", answer.stdout))


def is_preempted(job: Mapping[str, str]) -> bool:
    """Whether Slurm is taking the nodes away from a job."""
    return job.get("PreemptTime", "None") != "None"


def is_superseded(job: Mapping[str, str], environ: Mapping[str, str]) -> bool:
    """Whether Slurm has started a job again while this attempt of it goes on: it took its node for lost."""
    return int(job.get("Restarts", "0")) > slurm.restarts(environ)


def scontrol(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run scontrol, and again for PATIENCE seconds while it fails: a run of days is not to end with one lost answer."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            done = subprocess.run(["scontrol", *arguments], capture_output=True, text=True)
        except OSError as error:  # not there: a container without Slurm's commands
            return subprocess.CompletedProcess(["scontrol", *arguments], 1, "", f"scontrol: {error.strerror}")
        if not done.returncode or time.monotonic() >= deadline:
            return done
        time.sleep(2)


if __name__ == "__main__":
    sys.exit(errors.run(main, sys.argv[1:]))
