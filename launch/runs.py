"""Runs as the tools here see them: which folders are meant, and what Slurm says of their jobs, asked once for all.

What a folder says is in tinyimnet/run/record.py. No torch here: the tools have to start at once, on a login node too.
"""

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tinyimnet.errors import UserError
from tinyimnet.run.record import Record, read_object

ANSWER = 60  # seconds that a command of Slurm may take: a busy controller is slow, a lost one never answers


# ---- folders ------------------------------------------------------------------------------------------------


def find_runs(places: Iterable[Path], *, inside: bool = True) -> list[Path]:
    """The absolute folders of runs that are named or, with `inside`, lie in a folder that is named, each once.

    Raises:
        UserError: a place is no such folder.
    """
    found: list[Path] = []
    for place in places:
        named = [place] if _is_run(place) else []
        if inside and not named:
            named = sorted(filter(_is_run, place.glob("*")))
        if not named:
            what = "no run folder and holds none" if inside else "no run folder"
            raise UserError(f"{place} is {what}: a run has config.yaml or job.json in it; name another folder.")
        found += [Path(os.path.abspath(path)) for path in named]
    return list(dict.fromkeys(found))


def names_of(paths: list[Path]) -> list[str]:
    """Short names that tell run folders apart: each without the folder that all of them lie in."""
    common = os.path.commonpath([path.parent for path in paths])
    return [str(path.relative_to(common)) for path in paths]


def _is_run(folder: Path) -> bool:
    """os.path, because a folder that may not be read is none and no error."""
    return any(os.path.isfile(folder / name) for name in ("config.yaml", "job.json"))


def job_of(run: Record) -> str:
    """The Slurm job of the newest submission or attempt; empty: the newest is outside Slurm, or trains another run.

    A run that was sent to Slurm may go on by hand later, and the other way round.
    """
    submitted, sent = run.job.get("submitted"), run.job.get("cluster") == "slurm"
    if run.attempts and not (isinstance(submitted, int | float) and submitted > run.attempts[-1].started):
        job = run.attempts[-1].job
    else:
        job = str(run.job.get("job") or "") if sent else ""
    return job if _trains(job, run.path) else ""


def _trains(job: str, path: Path) -> bool:
    """Whether a job is about this run: an element of a sweep takes one trial after the other, and writes down which."""
    if not path.parent.name.startswith("sweep-"):
        return True
    array, _, element = job.partition("_")
    trial = read_object(path.parent / f".trial-{array}-{element or 0}")  # the name is slurm/sweep.sbatch's
    return Path(str(trial.get("run_dir"))).name == path.name


# ---- Slurm --------------------------------------------------------------------------------------------------


def live_jobs() -> dict[str, tuple[str, str]]:
    """State and nodes (of a pending job: the reason, in brackets) of the user's jobs; empty without Slurm.

    Raises:
        UserError: squeue is there and gives no answer.
    """
    if not shutil.which("squeue"):
        return {}
    rows = _table(call("squeue", "-h", "-r", "--me", "-o", "%i|%T|%R"), columns=3)
    return {job: (state.lower(), where) for job, state, where in rows}


def ended_jobs(jobs: Iterable[str]) -> dict[str, str]:
    """State of jobs that are no longer in the queue, as far as the accounting is there and knows them."""
    wanted = ",".join(sorted(jobs))
    if not wanted or not shutil.which("sacct"):
        return {}
    try:
        rows = _table(call("sacct", "-X", "-n", "-P", "-o", "JobID,State", "-j", wanted), columns=2)
    except UserError:
        return {}
    return {job: state.split(" ")[0].lower() for job, state in rows}  # 'CANCELLED by 1000'


def state_of(run: Record, live: dict[str, tuple[str, str]], ended: dict[str, str]) -> str:
    """One word: what Slurm says of its job, unless the run is finished, else what its folder says (Record.state)."""
    state, job = run.state(), job_of(run)
    if state == "finished":
        return state
    if job in live:
        slurm_state = live[job][0]
        requeued = slurm_state == "pending" and run.attempts and run.attempts[-1].job == job
        return "requeued" if requeued else slurm_state
    if ended.get(job, "completed") != "completed":  # completed, but not finished: it was stopped and saved
        return ended[job]
    return "unknown" if state == "new" and job and job not in ended else state


def call(*command: str) -> str:
    """What a command of Slurm prints.

    Raises:
        UserError: it fails, or does not answer.
    """
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=ANSWER, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        reason = " ".join((getattr(error, "stderr", None) or str(error)).split())
        raise UserError(f"{command[0]} failed ({reason}); try again when Slurm answers.") from None


def _table(text: str, columns: int) -> list[list[str]]:
    rows = [line.split("|", columns - 1) for line in text.splitlines()]
    return [row for row in rows if len(row) == columns]
