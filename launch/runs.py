"""What is known of runs: from their folders, and from Slurm with one question for all of them.

Nothing here writes. Any file of a run may be missing or half written, after a crash or because the run has not begun:
then it says nothing, and what is left decides. No torch here: the tools have to start at once, on a login node too.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tinyimnet import lock
from tinyimnet.config import flatten
from tinyimnet.errors import UserError
from tinyimnet.tracking import STEP

ANSWER = 60  # seconds that a command of Slurm may take: a busy controller is slow, a lost one never answers
TOP1 = "val/ema_top1"


@dataclass(frozen=True)
class Life:
    """One start of a run, until it ends or is killed."""

    started: float  # unix time
    job: str  # of Slurm, 123 or 123_4; empty outside
    nodes: list[str]
    step: int  # where it began
    total_steps: int


@dataclass(frozen=True)
class Run:
    """What the folder of a run says."""

    path: Path
    job: str  # of Slurm, that of the newest submission or life; empty: the newest is outside Slurm, or trains another run
    lives: list[Life]
    lines: list[dict[str, float]]  # of metrics.jsonl
    finished: bool
    alive: bool  # somebody renews its lock
    stopped: bool  # by its scheduler or a person; it can go on
    url: str  # of W&B; empty: none

    @property
    def step(self) -> int | None:
        """The last step that is logged, else the one at which the last life began; None before the first life."""
        if self.lines:
            return int(self.lines[-1][STEP])
        return self.lives[-1].step if self.lives else None

    def values(self, key: str) -> list[float]:
        """Everything that was logged under a key, oldest first."""
        return [line[key] for line in self.lines if key in line]


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
            raise UserError(
                f"{place} is {what}: a run has config.yaml or job.json in it; name another folder."
            )
        found += [Path(os.path.abspath(path)) for path in named]
    return list(dict.fromkeys(found))


def names_of(paths: list[Path]) -> list[str]:
    """Short names that tell run folders apart: each without the folder that all of them lie in."""
    common = os.path.commonpath([path.parent for path in paths])
    return [str(path.relative_to(common)) for path in paths]


def read_run(path: Path) -> Run:
    """What a run folder says now."""
    lives = [life for line in _read_lines(path / "lives.jsonl") if (life := _life(line))]
    lines = [
        {k: v for k, v in line.items() if isinstance(v, int | float)}
        for line in _read_lines(path / "metrics.jsonl")
    ]
    job = _newest_job(read_json(path / "job.json"), lives)
    return Run(
        path=path,
        job=job if _is_of(job, path) else "",
        lives=lives,
        lines=[line for line in lines if isinstance(line.get(STEP), int)],
        finished=os.path.exists(path / "DONE"),
        alive=lock.is_held(path),
        stopped=any(os.path.exists(path / marker) for marker in ("REQUEUE", "STOP")),
        url=str(read_json(path / "wandb_run.json").get("url") or ""),
    )


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none."""
    return _object(_text(file))


def read_settings(path: Path) -> dict[str, Any]:
    """The configuration of a run as {'optim.lr': 0.1}; empty where config.yaml is missing or damaged."""
    try:
        return flatten(yaml.safe_load(_text(path / "config.yaml")))
    except (AttributeError, TypeError, yaml.YAMLError):
        return {}


def _is_run(folder: Path) -> bool:
    """os.path, because a folder that may not be read is none and no error."""
    return any(os.path.isfile(folder / name) for name in ("config.yaml", "job.json"))


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def _object(text: str) -> dict[str, Any]:
    try:
        tree = json.loads(text)
    except ValueError:
        return {}
    return tree if isinstance(tree, dict) else {}


def _read_lines(file: Path) -> list[dict[str, Any]]:
    return [_object(line) for line in _text(file).splitlines()]


def _life(line: dict[str, Any]) -> Life | None:
    try:
        nodes = [str(node) for node in line["nodes"]]
        step, total = int(line["step"]), int(line["total_steps"])
        return Life(float(line["started"]), str(line["job"]), nodes, step, total)
    except (KeyError, TypeError, ValueError):
        return None


def _newest_job(submission: dict[str, Any], lives: list[Life]) -> str:
    """A run that was sent to Slurm may go on by hand later, and the other way round: the later one counts."""
    submitted = submission.get("submitted")
    later = isinstance(submitted, int | float) and bool(lives) and submitted > lives[-1].started
    if lives and not later:
        return lives[-1].job
    return str(submission.get("job") or "") if submission.get("cluster") == "slurm" else ""


def _is_of(job: str, path: Path) -> bool:
    """Whether a job is about this run: an element of a sweep takes one trial after the other, and writes down which."""
    if not path.parent.name.startswith("sweep-"):
        return True
    array, _, element = job.partition("_")
    trial = read_json(path.parent / f".trial-{array}-{element or 0}")  # the name is slurm/sweep.sbatch's
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


def state_of(run: Run, live: dict[str, tuple[str, str]], ended: dict[str, str]) -> str:
    """One word: that the run is finished, else what Slurm says of its job, else what its folder looks like."""
    if run.finished:
        return "finished"
    if run.job in live:
        state = live[run.job][0]
        return "requeued" if state == "pending" and run.lives and run.lives[-1].job == run.job else state
    if (
        ended.get(run.job, "completed") != "completed"
    ):  # completed, but not finished: it was stopped and saved
        return ended[run.job]
    if run.alive:
        return "running"
    if run.stopped:
        return "stopped"
    return "ended" if run.lives or not run.job or run.job in ended else "unknown"


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
