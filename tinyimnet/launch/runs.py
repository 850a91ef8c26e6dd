"""Run folders and the states of their Slurm jobs, with one query for all runs.

tinyimnet/run/record.py reads the folders. No torch import: commands must start at once, also on a login node.
"""

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tinyimnet.errors import UserError
from tinyimnet.files import exists, matching
from tinyimnet.run.record import Record, read_object

ANSWER = 60  # timeout of a Slurm command in seconds: a busy controller is slow, a lost one never responds


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


def _trains(job: str, path: Path) -> bool:
    """Whether a job trains this run: a sweep element trains several trials in turn, and records the current one."""
    if not path.parent.name.startswith("sweep-"):
        return True
    array, _, element = job.partition("_")
    trial = read_object(path.parent / f".trial-{array}-{element or 0}")  # named by slurm/sweep.sbatch
    return Path(str(trial.get("run_dir"))).name == path.name


# ---- Slurm --------------------------------------------------------------------------------------------------


def live_jobs() -> dict[str, tuple[str, str]]:
    """State and nodes of the user's jobs, or (reason) instead of nodes for pending ones; {} without Slurm.

    Raises:
        UserError: squeue is installed but failed.
    """
    if not shutil.which("squeue"):
        return {}
    rows = _table(call("squeue", "-h", "-r", "--me", "-o", "%i|%T|%R"), columns=3)
    return {job: (state.lower(), where) for job, state, where in rows}


def ended_jobs(jobs: Iterable[str]) -> dict[str, str]:
    """States of jobs that left the queue, as far as accounting is available and knows them."""
    wanted = ",".join(sorted(jobs))
    if not wanted or not shutil.which("sacct"):
        return {}
    try:
        rows = _table(call("sacct", "-X", "-n", "-P", "-o", "JobID,State", "-j", wanted), columns=2)
    except UserError:
        return {}
    return {job: state.split(" ")[0].lower() for job, state in rows}  # 'CANCELLED by 1000'


def state_of(run: Record, live: dict[str, tuple[str, str]], ended: dict[str, str]) -> str:
    """State of a run in one word: finished, else the state of its Slurm job, else that of its folder (Record.state)."""
    state, job = run.state(), job_of(run)
    if state == "finished":
        return state
    if job in live:
        slurm_state = live[job][0]
        requeued = slurm_state == "pending" and run.attempts and run.attempts[-1].job == job
        return "requeued" if requeued else slurm_state
    if ended.get(job, "completed") != "completed":  # completed but not finished: the run stopped and saved
        return ended[job]
    return "unknown" if state == "new" and job and job not in ended else state


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


def _table(text: str, columns: int) -> list[list[str]]:
    rows = [line.split("|", columns - 1) for line in text.splitlines()]
    return [row for row in rows if len(row) == columns]
