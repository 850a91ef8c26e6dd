"""Layout of the run folder, whose contents alone determine whether a command starts, resumes or skips a run.

config.yaml      resolved configuration          metrics.jsonl   one line per logged step
checkpoints/     newest k and best               final.safetensors, curves.png, DONE   written at the end
logs/            one file per rank               LOCK            held by the process that writes here
profile/         trace.json.gz, operators.txt    written with run.profile
attempts.jsonl   one line per attempt: start time, nodes, job, first step, device, versions
job.json         the last submission by `tinyimnet submit`, or the successor that a job submitted
SAVED            left by the first checkpoint: a run that loses all of them does not silently start over
STOP             created by a user: save and exit
REQUEUE          left by a run that its scheduler stopped and that is to be requeued
ERROR            left by a run that ended with a user error, which a requeue would only repeat

No torch import: status and requeue start without it.
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tinyimnet.config import Config
from tinyimnet.errors import UserError, one_line
from tinyimnet.files import exists, matching, no_such, read_lines, read_text, write_atomically

SAVED = "SAVED"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C: 15 times as fast, which `status` of 200 runs notices
MARKERS = ("STOP", "REQUEUE", "ERROR", "DONE")


@dataclass(frozen=True)
class Attempt:
    """One start of a run until it ends or is killed; a line of attempts.jsonl.

    Attributes:
        started: Unix time.
        job: Slurm job id, 123 or 123_4; empty outside Slurm.
        restart: how often Slurm had requeued that job.
        nodes: host names in rank order.
        processes: world size.
        step: optimizer steps done before this attempt.
        total_steps: optimizer steps of the whole run.
        code: digest of the source code.
        environment: the device, and the versions on which the bits of the weights depend; empty before it was recorded.
    """

    started: float
    job: str
    restart: int
    nodes: tuple[str, ...]
    processes: int
    step: int
    total_steps: int
    code: str = ""
    environment: dict[str, str] = field(default_factory=dict)


def submitted(sent: Mapping[str, Any]) -> list[str]:
    """Slurm jobs that were submitted for a run, newest first; `sent` is the content of job.json."""
    earlier = sent.get("earlier")
    newest = [sent.get("job")] if sent.get("cluster") == "slurm" else []
    return [str(job) for job in [*newest, *(earlier if isinstance(earlier, list) else [])] if job]


def record_job(run_dir: Path, job: str, cluster: str = "slurm", output: str = "") -> None:
    """Write job.json: a job of `tinyimnet submit`, or a successor, and the earlier ones, which may still be queued.

    Args:
        run_dir: run folder.
        job: id of the job.
        cluster: slurm, local or debug.
        output: file with the output of the job; "" if it is unknown.

    Raises:
        UserError: the run folder cannot be written.
    """
    earlier: list[str] = []
    with suppress(OSError, ValueError, AttributeError):  # missing or damaged
        earlier = submitted(json.loads(read_text(run_dir / "job.json")))
    sent = {"cluster": cluster, "job": job, "submitted": time.time(), "output": output, "earlier": earlier}
    with writable(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(run_dir / "job.json", json.dumps(sent).encode())


def trial_file(sweep: Path, job: str) -> Path:
    """The file with the current trial of a job, in the folder of its sweep; named as in slurm/sweep.sbatch."""
    array, _, element = job.partition("_")
    return sweep / f".trial-{array}-{element or 0}"


def read_attempts(run_dir: Path) -> list[Attempt]:
    """Attempts of a run, oldest first; a line truncated by a crash is skipped."""
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
        environment=dict(line.get("environment", {})),
    )


def checkpoint_path(folder: Path, step: int) -> Path:
    """Path of the checkpoint of a step in <run>/checkpoints."""
    return folder / f"step_{step:08d}.pt"


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in <run>/checkpoints in ascending order, without best.pt."""
    return sorted(int(file.stem.removeprefix("step_")) for file in matching(folder, "step_*.pt"))


def newest_step(run_dir: Path) -> int:
    """Step of the newest checkpoint of a run, intact or damaged; 0 if there is none."""
    return max(checkpoint_steps(run_dir / "checkpoints"), default=0)


@contextmanager
def writable(run_dir: Path) -> Iterator[None]:
    """Turn an OSError into a UserError saying that run.dir cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"run.dir {run_dir} cannot be written ({error.strerror}); fix that and rerun the same command, "
            "or choose another --run.dir."
        ) from error


def read_config(run_dir: Path) -> dict:
    """The configuration that a run was started with, as nested dictionaries.

    Raises:
        UserError: config.yaml is missing or damaged.
    """
    if not exists(run_dir):
        raise UserError(no_such(run_dir))
    file = run_dir / "config.yaml"
    try:
        text = read_text(file)
        # libyaml refuses names that are not UTF-8, which config_file.write escapes.
        tree = yaml.load(text, yaml.SafeLoader if r"\uDC" in text else LOADER)
        if not isinstance(tree, dict):
            raise ValueError("not a mapping")
        return tree
    except FileNotFoundError:
        raise UserError(
            f"{run_dir} is not a run folder: it has no config.yaml; name a run folder such as runs/smoke."
        ) from None
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file} is damaged ({one_line(error)}); restore it, or choose another run.") from None


def is_done(run_dir: Path, config: Config) -> bool:
    """Whether the run reached the last step of this configuration and exported its weights."""
    return exists(run_dir / "DONE") and read_config(run_dir)["train"]["epochs"] == config.train.epochs


def mark(run_dir: Path, name: str, content: str) -> None:
    """Write the marker DONE, REQUEUE or ERROR."""
    write_atomically(run_dir / name, content)
