"""The run folder, which is the whole truth about a run: the same command starts it, resumes it or says that it is finished.

config.yaml      resolved configuration          metrics.jsonl   one line for each logged step
checkpoints/     newest k and best                final.safetensors, curves.png, DONE   at the end
logs/            one for each rank                LOCK            held by the process that writes here
lives.jsonl      one line for each start: when, where, in which job, from which step
STOP             put there by a user: save and exit
REQUEUE          left there by a run that its scheduler stopped and that is to be started again
MISTAKE          left there by a run that ended by an error for a person, as it would each time
"""

import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from tinyimnet import checkpoint, slurm
from tinyimnet import config as configuration
from tinyimnet.config import Config
from tinyimnet.errors import UserError, one_line
from tinyimnet.files import read_lines, write_atomically
from tinyimnet.lock import RunLock

logger = logging.getLogger(__name__)
MARKERS = ("STOP", "REQUEUE", "MISTAKE", "DONE")


def find_run(config: Config) -> Path:
    """The absolute run folder, after a look that what it holds belongs to this configuration; writes nothing.

    A folder without a checkpoint has nothing to lose: a start that failed may be mended and repeated in it.

    Raises:
        UserError: the folder holds a run with another configuration.
    """
    run_dir = Path(config.run.dir).absolute()
    if (run_dir / "DONE").exists() or checkpoint.exists(run_dir / "checkpoints"):
        changed = configuration.differences(read_config(run_dir), asdict(config))
        if changed:
            raise UserError(
                f"run.dir {config.run.dir} holds a run with another configuration ({'; '.join(changed)}); "
                "give those values again to resume it, or choose another --run.dir."
            )
    return run_dir


def lock_run(run_dir: Path, config: Config, lock: RunLock) -> dict[str, Any] | None:
    """Lock the folder, made where it is missing, and read the newest good checkpoint in it; call it on rank 0.

    Raises:
        UserError: the folder cannot be written, is in use, or holds what this configuration cannot go on from.
    """
    with writable(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    find_run(config)  # again: until now another process may have been here
    _check_extension(run_dir, config)
    return checkpoint.load_newest(run_dir / "checkpoints")


def open_run(run_dir: Path, config: Config, life: dict[str, Any]) -> int:
    """Write the configuration, add this life to the list and clear the markers of the last stop; after lock_run, on rank 0.

    Returns the number of lives with this one.

    Raises:
        UserError: the folder cannot be written.
    """
    with writable(run_dir):
        (run_dir / "checkpoints").mkdir(exist_ok=True)
        (run_dir / "logs").mkdir(exist_ok=True)
        checkpoint.sweep(run_dir / "checkpoints", life["step"])
        write_atomically(run_dir / "config.yaml", configuration.dump(config).encode())
        lives = [*read_lines(run_dir / "lives.jsonl"), life]  # without half a line that a power failure left
        # Found by a later life of a job, STOP was put there while the job waited: one that was obeyed has no later life.
        waited = bool(life.get("job")) and [each.get("job") for each in lives[-2:]] == [life["job"]] * 2
        write_atomically(run_dir / "lives.jsonl", "".join(json.dumps(each) + "\n" for each in lives).encode())
        for marker in MARKERS:
            if not (marker == "STOP" and waited):
                (run_dir / marker).unlink(missing_ok=True)
        return len(lives)


def describe_life(processes: list[dict[str, Any]], step: int, total_steps: int) -> dict[str, Any]:
    """The line of lives.jsonl: a start of the run on these processes (`preflight.check`), and the Slurm job it was in."""
    return {
        "started": time.time(),
        "job": slurm.job_name(),
        "restart": slurm.restarts(),
        "nodes": list(dict.fromkeys(process["host"] for process in processes)),
        "processes": len(processes),
        "code": processes[0]["code"],
        "step": step,
        "total_steps": total_steps,
    }


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


def _check_extension(run_dir: Path, config: Config) -> None:
    if not checkpoint.exists(run_dir / "checkpoints"):
        if (run_dir / "DONE").exists():
            raise UserError(
                f"run.dir {config.run.dir} is finished and has no checkpoint from which a longer run could go on; "
                "choose another --run.dir."
            )
        return
    before = read_config(run_dir)["train"]["epochs"]
    if before != config.train.epochs:
        logger.warning(
            "train.epochs is extended from %d to %d: from here on the learning rate, augment.mix_until and the "
            "resolution follow the longer schedule, so the result is not that of a run of %d epochs.",
            before, config.train.epochs, config.train.epochs,
        )  # fmt: skip


def log_to(run_dir: Path, rank: int, world_size: int) -> None:
    """Write the log of this process to logs/rank_<r>.log as well: where it ran, and why it ended."""
    handler = logging.FileHandler(run_dir / "logs" / f"rank_{rank}.log", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger("tinyimnet").addHandler(handler)
    logging.getLogger("tinyimnet").setLevel(logging.INFO)
    logger.info("rank %d of %d is process %d on %s", rank, world_size, os.getpid(), socket.gethostname())


def read_config(run_dir: Path) -> dict:
    """The configuration that a run was started with, as nested dictionaries."""
    file = run_dir / "config.yaml"
    try:
        tree = yaml.safe_load(file.read_text())
        if not isinstance(tree, dict):
            raise ValueError("not a mapping")
        return tree
    except FileNotFoundError:
        raise UserError(f"{run_dir} is not a run folder: it has no config.yaml.") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"{file} is damaged ({one_line(error)}); restore it, or choose another --run.dir."
        ) from None


def is_done(run_dir: Path, config: Config) -> bool:
    """Whether the run reached the last step of this configuration and exported its weights."""
    return (run_dir / "DONE").exists() and read_config(run_dir)["train"]["epochs"] == config.train.epochs


def mark(run_dir: Path, name: str, content: str) -> None:
    """Leave the marker DONE, REQUEUE or MISTAKE."""
    write_atomically(run_dir / name, content.encode())
