"""Requeue the job of a batch script when its training has ended, or end the job.

python -m tinyimnet.launch.requeue EXIT_CODE [SCRIPT [ARGUMENT ...] --] [train.py's options]

A job that Slurm does not requeue (--no-requeue) submits SCRIPT as its successor instead; a job of `tinyimnet submit`
gives the folder of its submission. A job is requeued in three cases:
- The scheduler stopped the run and the run saved (this attempt wrote the marker REQUEUE).
- Slurm preempts the job. In the grace period Slurm sends SIGTERM and waits; a job that exits then counts as completed.
- A process failed or was lost after the job had made progress.
Every other job ends: a finished run, a user error, a STOP file, a cancelled job, a run that makes no progress.
"""

import json
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tinyimnet import config_cli, errors
from tinyimnet.config import RunConfig
from tinyimnet.distributed import slurm
from tinyimnet.errors import UserError
from tinyimnet.files import read_text
from tinyimnet.launch import successors
from tinyimnet.run.folder import newest_step, read_attempts, record_job

# Consecutive failed attempts without a new checkpoint after which a job ends: a repeated failure is no accident.
IDLE_ATTEMPTS = 3
SECOND_CTRL_C = 128 + signal.SIGINT


class Verdict(NamedTuple):
    """The decision about a job: whether it has another attempt, its exit code if not, and the reason."""

    requeue: bool
    exit_code: int
    sentence: str


def main(argv: list[str]) -> int:
    """Requeue this job, submit its successor or end it, and print the reason; returns its exit code."""
    end = argv.index("--") if "--" in argv else 0
    script, options = argv[1:end], argv[end + 1 :]
    run = config_cli.load(options, prog="python -m tinyimnet.launch.requeue").run
    job, record = slurm.job_name(), show_job(slurm.job_name())
    verdict = decide(run, int(argv[0]), record, os.environ, may_succeed=bool(script))
    return carry_out(verdict, f"job {job}", record, script, Path(run.dir))


def carry_out(
    verdict: Verdict,
    subject: str,
    record: Mapping[str, str],
    script: Sequence[str],
    run_dir: Path | None = None,
    trial: Path | None = None,
) -> int:
    """Requeue this job or submit its successor, if there is another attempt, and print the reason.

    Args:
        verdict: the decision.
        subject: what the decision is about.
        record: fields that Slurm reports about the job (`show_job`).
        script: the batch script of this job, and its arguments; or the folder of `tinyimnet submit`.
        run_dir: folder of the run that goes on.
        trial: file of that run, if it is a trial of a sweep.

    Returns:
        The exit code of this job.
    """
    successor, output = "", ""
    if verdict.requeue and record.get("Requeue") == "0":
        successor, output = successors.submit(script, os.environ, trial)
    elif verdict.requeue:
        requeue(slurm.job_name())
    print(f"{subject}: {verdict.sentence}{successor and f', which is job {successor}'}", flush=True)
    if successor and run_dir:
        record_job(run_dir, successor, output=output)
    return verdict.exit_code


def requeue(job: str) -> None:
    """Requeue a job; Slurm then ends its processes, including the caller, after KillWait (30 s by default).

    Raises:
        UserError: scontrol failed.
    """
    done = slurm.patiently("scontrol", "requeue", job)
    if done.returncode:
        raise UserError(
            f"scontrol requeue {job} failed ({' '.join(done.stderr.split())}); the run is saved: submit it again to "
            "resume, with sbatch --requeue if the cluster allows it."
        )


def decide(
    run: RunConfig,
    exit_code: int,
    job: Mapping[str, str],
    environ: Mapping[str, str],
    *,
    begun_late: bool = False,
    may_succeed: bool = False,
) -> Verdict:
    """Decide whether this job is requeued.

    Args:
        run: folder and maximum number of attempts of the run.
        exit_code: exit code of the training.
        job: fields that Slurm reports about the job (`show_job`).
        environ: SLURM_RESTART_COUNT and the ids of the job.
        begun_late: the run started in the middle of this attempt, and may not have had time for a step.
        may_succeed: a job that Slurm does not requeue can submit its successor.
    """
    attempt, begun = slurm.restarts(environ) + 1, attempts_of_job(Path(run.dir), environ)
    # A run that crashes on exit is finished as well. Each attempt removes a DONE of an earlier run when it starts.
    if (exit_code == 0 or attempt - 1 in begun) and (Path(run.dir) / "DONE").exists():
        return Verdict(False, 0, f"finished in attempt {attempt}")
    if job.get("JobState", "RUNNING") != "RUNNING":
        return Verdict(False, exit_code, f"{job['JobState'].lower()}; not requeued")
    if is_superseded(job, environ):
        return Verdict(False, exit_code, "a later attempt of this job has started; not requeued")
    marker = read_marker(Path(run.dir), environ)
    # Before the check for preemption: a STOP file has priority.
    if exit_code == 0 and not marker and (Path(run.dir) / "STOP").exists():
        return Verdict(False, 0, "stopped by the user; not requeued")
    if is_users_error(Path(run.dir), exit_code, environ):
        exit_code = errors.USER_ERROR
    preempted = is_preempted(job)
    accident = bool(job) and not (preempted or marker) and is_accident(Path(run.dir), exit_code, environ)
    if not preempted and not marker and not accident:
        how = f"ended with exit code {exit_code}" if exit_code else "stopped by the user"  # Ctrl-C leaves no file
        return Verdict(False, exit_code, f"{how}; not requeued")
    if preempted:
        why = "preempted"
    elif marker:
        why = f"stopped by {marker['reason']}, checkpoint saved"
    else:
        why = f"ended with exit code {exit_code}, newest checkpoint at step {newest_step(Path(run.dir))}"
    if marker and not preempted and not marker["steps"] and not begun_late:
        return Verdict(
            False, 1, f"{why}, but attempt {attempt} completed no step; not requeued, because the next attempt would "
            "end the same way: raise the time limit, or lower run.stop_before_end and sbatch --signal"
        )  # fmt: skip
    if job.get("Requeue") == "0" and not may_succeed:
        return Verdict(
            False, 1, f"{why}; not requeued, because the job was submitted with --no-requeue or the cluster does not "
            "requeue jobs: submit it again to resume"
        )  # fmt: skip
    if attempt >= run.max_attempts:
        return Verdict(
            False, 1, f"{why}; not requeued after attempt {attempt} (run.max_attempts is {run.max_attempts}): "
            "submit it again to resume"
        )  # fmt: skip
    again = "continued by" if job.get("Requeue") == "0" else "requeued as"
    return Verdict(True, 0, f"{why}; {again} attempt {attempt + 1}")


def read_marker(run_dir: Path, environ: Mapping[str, str]) -> dict:
    """Contents of the marker REQUEUE; {} if it is missing, damaged or from another attempt."""
    try:
        marker = json.loads(read_text(run_dir / "REQUEUE"))
        return marker if marker["attempt"] == [slurm.job_name(environ), slurm.restarts(environ)] else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def is_accident(run_dir: Path, exit_code: int, environ: Mapping[str, str]) -> bool:
    """Whether the next attempt may succeed: a process was killed, or a node or its network was lost.

    Slurm itself notices a lost node after SlurmdTimeout (300 s by default); the processes on the other nodes notice at
    once and exit. An attempt that was rejected before it started also counts, for example one on a node that failed the
    preflight. A user error in an attempt that had started does not count, and neither does a stop by the user.

    One of the last IDLE_ATTEMPTS attempts of this job, including this one, must have made progress: saved a new
    checkpoint or, as the first attempt, resumed from a checkpoint of another job.
    """
    restart, begun = slurm.restarts(environ), attempts_of_job(run_dir, environ)
    by_a_person = exit_code == SECOND_CTRL_C or (run_dir / "STOP").exists()
    if not exit_code or is_users_error(run_dir, exit_code, environ) or by_a_person:
        return False
    saved = newest_step(run_dir)
    productive = [attempt for attempt, step in begun.items() if step < saved or (attempt == 0 and step > 0)]
    return bool(productive) and restart - max(productive) < IDLE_ATTEMPTS


def is_users_error(run_dir: Path, exit_code: int, environ: Mapping[str, str]) -> bool:
    """Whether an attempt that had started ended with an error that the user has to fix.

    The exit code is not enough: srun returns that of a signal if it killed a process that was waiting for W&B.
    """
    failed = exit_code == errors.USER_ERROR or (exit_code and (run_dir / "ERROR").exists())
    return bool(failed) and slurm.restarts(environ) in attempts_of_job(run_dir, environ)


def attempts_of_job(run_dir: Path, environ: Mapping[str, str]) -> dict[int, int]:
    """Attempts of this job and its predecessors that started: {number of attempts before it: first step}."""
    jobs = {slurm.job_name(environ), *slurm.predecessors(environ)} - {""}
    return {each.restart: each.step for each in read_attempts(run_dir) if each.job in jobs}


def show_job(job: str) -> dict[str, str]:
    """JobState, PreemptTime, Restarts and Requeue of a job; {} outside Slurm or if Slurm does not respond."""
    if not job:
        return {}
    answer = slurm.patiently("scontrol", "--oneliner", "show", "job", job)
    return dict(re.findall(r"\b(JobState|PreemptTime|Restarts|Requeue)=(\S+)", answer.stdout))


def is_preempted(job: Mapping[str, str]) -> bool:
    """Whether Slurm is preempting a job."""
    return job.get("PreemptTime", "None") != "None"


def is_superseded(job: Mapping[str, str], environ: Mapping[str, str]) -> bool:
    """Whether Slurm restarted a job while this attempt still runs, because it considered the node lost."""
    return int(job.get("Restarts", "0")) > slurm.requeues(environ)


def outlive_sigterm() -> None:
    """Ignore SIGTERM, with which Slurm ends a requeued or cancelled job, until the verdict is printed."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


if __name__ == "__main__":
    outlive_sigterm()
    sys.exit(errors.run(main, sys.argv[1:]))
