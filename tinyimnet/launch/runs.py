"""Run folders and the states of their Slurm jobs, with one query for all runs.

tinyimnet/run/record.py reads the folders. No torch import: commands must start at once, also on a login node.
"""

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from tinyimnet.errors import UserError
from tinyimnet.files import exists, matching, no_such
from tinyimnet.run import states
from tinyimnet.run.folder import submitted, trial_file
from tinyimnet.run.record import Record, read_object

ANSWER = 60  # timeout of a Slurm command in seconds: a busy controller is slow, a lost one never responds
# Scripts in slurm/ whose jobs do nothing but train the run.
SCRIPTS = ("train.sbatch", "array.sbatch", "sweep.sbatch")


class Job(NamedTuple):
    """A job in Slurm's queue.

    Attributes:
        state: Slurm's word, in lower case.
        where: nodes; for a pending job the (reason).
        command: the batch script with its arguments; "(null)" for salloc and --wrap.
    """

    state: str
    where: str = ""
    command: str = ""


# ---- folders ------------------------------------------------------------------------------------------------


def find_runs(places: Iterable[Path], *, inside: bool = True) -> list[Path]:
    """Absolute run folders among `places` or, with `inside`, directly inside them, without duplicates.

    Raises:
        UserError: a place is not a run folder and, with `inside`, contains none.
    """
    found: list[Path] = []
    for place in places:
        named = [place] if _is_run(place) else []
        if inside and not named:
            named = [folder for folder in matching(place, "*") if _is_run(folder, tolerant=True)]
        if not os.path.lexists(place):
            raise UserError(no_such(place))
        if not named:
            what = "not a run folder and contains none" if inside else "not a run folder"
            raise UserError(f"{place} is {what} (a run folder has config.yaml or job.json); give another folder.")
        found += [Path(os.path.abspath(path)) for path in named]
    return list(dict.fromkeys(found))


def names_of(paths: list[Path]) -> list[str]:
    """Short unique names of run folders: their paths relative to the folder that contains all of them."""
    common = os.path.commonpath([path.parent for path in paths])
    return [str(path.relative_to(common)) for path in paths]


def _is_run(folder: Path, *, tolerant: bool = False) -> bool:
    """Whether it is a run folder; with `tolerant`, the unreadable folder of somebody else is none."""
    try:
        return any(exists(folder / name) for name in ("config.yaml", "job.json"))
    except OSError:
        if tolerant:
            return False
        raise


def job_of(run: Record) -> str:
    """Slurm job of the newest submission or attempt; "" if that is outside Slurm, or the job trains another run.

    A run that was submitted to Slurm may be resumed by hand later, and vice versa.
    """
    submitted, sent = run.job.get("submitted"), run.job.get("cluster") == "slurm"
    if run.attempts and not (isinstance(submitted, int | float) and submitted > run.attempts[-1].started):
        job = run.attempts[-1].job
    else:
        job = str(run.job.get("job") or "") if sent else ""
    return job if _trains(job, run.path) else ""


def jobs_of(run: Record) -> list[str]:
    """Every Slurm job that trains this run, has trained it or is to train it; the newest submission is the first."""
    jobs = [*submitted(run.job), *(attempt.job for attempt in reversed(run.attempts))]
    return [job for job in dict.fromkeys(jobs) if job and _trains(job, run.path)]


def is_dedicated(job: str, run: Record, live: Mapping[str, Job]) -> bool:
    """Whether a job in the queue exists only to train this run: anything else may run in an allocation by salloc."""
    script = live[job].command.partition(" ")[0]
    return job in submitted(run.job) or os.path.basename(script) in SCRIPTS


def _trains(job: str, path: Path) -> bool:
    """Whether a job trains this run: a sweep element trains several trials in turn, and records the current one."""
    if not path.parent.name.startswith("sweep-"):
        return True
    trial = read_object(trial_file(path.parent, job))
    return Path(str(trial.get("run_dir"))).name == path.name


# ---- Slurm --------------------------------------------------------------------------------------------------


def live_jobs() -> dict[str, Job]:
    """The user's jobs in the queue; {} without Slurm.

    Raises:
        UserError: squeue is installed but failed.
    """
    if not shutil.which("squeue"):
        return {}
    lines = call("squeue", "-h", "-r", "--me", "-o", "%i|%T|%R|%o").splitlines()
    rows = [line.split("|", 3) for line in lines if line.count("|") >= 2]
    return {job: Job(state.lower(), *rest) for job, state, *rest in rows}


def ended_jobs(jobs: Iterable[str]) -> dict[str, str]:
    """States of jobs that left the queue, as far as accounting is available and knows them.

    Elements of an array that never started have no rows of their own but one in common, named `12_[3-7]` or, if they
    were cancelled one by one, `12`; sacct prints it only if asked for the whole array.
    """
    wanted = sorted(jobs)
    arrays = dict.fromkeys(job.partition("_")[0] for job in wanted)
    if not wanted or not shutil.which("sacct"):
        return {}
    try:
        lines = call("sacct", "-X", "-n", "-P", "-o", "JobID,State", "-j", ",".join(arrays)).splitlines()
    except UserError:
        return {}
    rows = [line.split("|") for line in lines if line.count("|") == 1]
    found = {job.partition("_[")[0]: state.partition(" ")[0].lower() for job, state in rows}  # 'CANCELLED by 1000'
    return {job: found[row] for job in wanted for row in (job.partition("_")[0], job) if row in found}


def state_of(run: Record, live: Mapping[str, Job], ended: Mapping[str, str]) -> str:
    """State of a run, a word of run/states.py: that of its folder, or of a Slurm job that has not started it yet."""
    state, job = run.state(), job_of(run)
    begun = bool(run.attempts) and run.attempts[-1].job == job
    if state == states.FINISHED:
        return state
    if job in live:
        waits = live[job].state == states.PENDING
        if waits or is_dedicated(job, run, live) or not begun:
            return states.REQUEUED if waits and begun else live[job].state
        return state
    if begun:  # the lock of a killed process seems held for LEASE seconds
        return states.KILLED if state == states.RUNNING and job in ended else state
    if ended.get(job, "completed") != "completed":  # completed but not finished: the run stopped and saved
        return ended[job]
    return states.UNKNOWN if state == states.NEW and job and job not in ended else state


def call(*command: str) -> str:
    """Run a Slurm command and return its output.

    Raises:
        UserError: it failed or timed out.
    """
    try:
        return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=ANSWER, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        reason = " ".join((getattr(error, "stderr", None) or str(error)).split())
        raise UserError(f"{command[0]} failed ({reason}); retry when Slurm responds.") from None
