"""The beginning of an attempt: find its run folder, lock it, resume from what it holds, open it for writing."""

import json
import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinyimnet import config as configuration
from tinyimnet.config import Config
from tinyimnet.distributed import slurm
from tinyimnet.errors import UserError
from tinyimnet.files import write_atomically
from tinyimnet.run import checkpoint
from tinyimnet.run.folder import MARKERS, Attempt, read_attempts, read_config, writable
from tinyimnet.run.lock import RunLock

logger = logging.getLogger(__name__)


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


def lock_run(run_dir: Path, config: Config, lock: RunLock) -> tuple[dict[str, Any] | None, int]:
    """Lock the folder, made where it is missing; call it on rank 0.

    Returns:
        The newest good checkpoint, None where there is none, and the number of this attempt, from 1.

    Raises:
        UserError: the folder cannot be written, is in use, or holds what this configuration cannot go on from.
    """
    with writable(run_dir):
        lock.acquire()
    find_run(config)  # again: until now another process may have been here
    _check_extension(run_dir, config)
    return checkpoint.load_newest(run_dir / "checkpoints"), len(read_attempts(run_dir)) + 1


def open_run(run_dir: Path, config: Config, this: Attempt) -> None:
    """Write the configuration, add this attempt to the list, clear the markers of the last stop; after lock_run, on rank 0.

    Raises:
        UserError: the folder cannot be written.
    """
    with writable(run_dir):
        (run_dir / "checkpoints").mkdir(exist_ok=True)
        (run_dir / "logs").mkdir(exist_ok=True)
        checkpoint.remove_leftovers(run_dir / "checkpoints", this.step)
        write_atomically(run_dir / "config.yaml", configuration.dump(config).encode())
        attempts = [*read_attempts(run_dir), this]
        # Found by a later attempt of a job, STOP was put there while the job waited: one that was obeyed has no later attempt.
        waited = bool(this.job) and [each.job for each in attempts[-2:]] == [this.job] * 2
        lines = "".join(json.dumps(asdict(each)) + "\n" for each in attempts)
        write_atomically(run_dir / "attempts.jsonl", lines.encode())
        for marker in MARKERS:
            if not (marker == "STOP" and waited):
                (run_dir / marker).unlink(missing_ok=True)


def this_attempt(ranks: Sequence[Mapping[str, Any]], step: int, total_steps: int) -> Attempt:
    """This start of the run, on the processes that preflight.check describes, from `step` on."""
    return Attempt(
        started=time.time(),
        job=slurm.job_name(),
        restart=slurm.restarts(),
        nodes=tuple(dict.fromkeys(rank["host"] for rank in ranks)),
        processes=len(ranks),
        step=step,
        total_steps=total_steps,
        code=ranks[0]["code"],
    )


def log_to(run_dir: Path, rank: int, world_size: int) -> None:
    """Write the log of this process to logs/rank_<r>.log as well: where it ran, and why it ended."""
    handler = logging.FileHandler(run_dir / "logs" / f"rank_{rank}.log", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger("tinyimnet").addHandler(handler)
    logging.getLogger("tinyimnet").setLevel(logging.INFO)
    logger.info("rank %d of %d is process %d on %s", rank, world_size, os.getpid(), socket.gethostname())


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
