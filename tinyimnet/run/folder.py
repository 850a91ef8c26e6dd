"""The run folder, which is the whole truth about a run: the same command starts it, resumes it or says that it is finished.

config.yaml      resolved configuration          metrics.jsonl   one line for each logged step
checkpoints/     newest k and best               final.safetensors, curves.png, DONE   at the end
logs/            one for each rank               LOCK            held by the process that writes here
attempts.jsonl   one line for each start: when, where, in which job, from which step
STOP             put there by a user: save and exit
REQUEUE          left there by a run that its scheduler stopped and that is to be started again
ERROR            left there by a run that ended by an error for a person, as it would each time

No torch here: launch.status and launch.requeue start without it.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tinyimnet.config import Config
from tinyimnet.errors import UserError, one_line
from tinyimnet.files import read_lines, write_atomically

MARKERS = ("STOP", "REQUEUE", "ERROR", "DONE")


@dataclass(frozen=True)
class Attempt:
    """One start of a run, until it ends or is killed: a line of attempts.jsonl.

    Attributes:
        started: Unix time.
        job: of Slurm, 123 or 123_4; empty outside.
        restart: how often Slurm had started that job again.
        nodes: host names, in the order of the ranks.
        processes: world size.
        step: optimizer steps done before it.
        total_steps: of the whole run.
        code: digest of the program.
    """

    started: float
    job: str
    restart: int
    nodes: tuple[str, ...]
    processes: int
    step: int
    total_steps: int
    code: str = ""


def read_attempts(run_dir: Path) -> list[Attempt]:
    """The attempts of a run, the first one first; without a line that a crash left unfinished."""
    found = []
    for line in read_lines(run_dir / "attempts.jsonl"):
        with suppress(KeyError, TypeError, ValueError):
            found.append(_attempt(line))
    return found


def _attempt(line: dict[str, Any]) -> Attempt:
    return Attempt(
        started=float(line["started"]),
        job=str(line["job"]),
        restart=int(line["restart"]),
        nodes=tuple(map(str, line["nodes"])),
        processes=int(line["processes"]),
        step=int(line["step"]),
        total_steps=int(line["total_steps"]),
        code=str(line.get("code", "")),
    )


def checkpoint_path(folder: Path, step: int) -> Path:
    """The checkpoint of a step in <run>/checkpoints."""
    return folder / f"step_{step:08d}.pt"


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in <run>/checkpoints, best.pt not counted, in rising order."""
    return sorted(int(file.stem.removeprefix("step_")) for file in folder.glob("step_*.pt"))


def newest_step(run_dir: Path) -> int:
    """Step of the newest checkpoint of a run, good or damaged; 0 without one."""
    return max(checkpoint_steps(run_dir / "checkpoints"), default=0)


@contextmanager
def writable(run_dir: Path) -> Iterator[None]:
    """Turn an OSError into the sentence that the run folder cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"run.dir {run_dir} cannot be written ({error.strerror}); mend that and give the same command again, "
            "or choose another --run.dir."
        ) from error


def read_config(run_dir: Path) -> dict:
    """The configuration that a run was started with, as nested dictionaries.

    Raises:
        UserError: there is none, or it is damaged.
    """
    file = run_dir / "config.yaml"
    try:
        tree = yaml.safe_load(file.read_text())
        if not isinstance(tree, dict):
            raise ValueError("not a mapping")
        return tree
    except FileNotFoundError:
        raise UserError(
            f"{run_dir} is not a run folder: it has no config.yaml; name one, such as runs/smoke."
        ) from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file} is damaged ({one_line(error)}); restore it, or choose another run.") from None


def is_done(run_dir: Path, config: Config) -> bool:
    """Whether the run reached the last step of this configuration and exported its weights."""
    return (run_dir / "DONE").exists() and read_config(run_dir)["train"]["epochs"] == config.train.epochs


def mark(run_dir: Path, name: str, content: str) -> None:
    """Leave the marker DONE, REQUEUE or ERROR."""
    write_atomically(run_dir / name, content.encode())
