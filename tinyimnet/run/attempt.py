"""Start of an attempt: find and lock the run folder, load its newest checkpoint, open it for writing."""

import json
import logging
import os
import re
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
from tinyimnet.files import exists, write_atomically
from tinyimnet.run import checkpoint
from tinyimnet.run.folder import MARKERS, SAVED, Attempt, read_attempts, read_config, writable
from tinyimnet.run.lock import RunLock

logger = logging.getLogger(__name__)
TRACES = ("attempts.jsonl", "job.json", "LOCK", SAVED)  # one of them is in every run folder
# What else may be in the folder of a run that has not started: the output of its job, a submission that failed.
HARMLESS = re.compile(r".*\.(log|out|err)|submit-\d{8}-\d{6}")


def find_run(config: Config) -> Path:
    """Return the absolute run folder after checking that it belongs to this configuration; writes nothing.

    A folder with neither a checkpoint nor DONE accepts any configuration, so a failed start can be fixed and retried.

    Raises:
        UserError: the run was started with a different configuration or lost its checkpoints, or the folder is no run.
    """
    run_dir = Path(config.run.dir).absolute()
    if exists(run_dir / "DONE") or checkpoint.exists(run_dir / "checkpoints"):
        changed = configuration.differences(read_config(run_dir), asdict(config))
        if changed:
            raise UserError(
                f"run.dir {config.run.dir} was started with a different configuration ({'; '.join(changed)}); "
                "restore those values to resume it, or choose another --run.dir."
            )
    else:
        _check_new(run_dir)
    return run_dir


def lock_run(run_dir: Path, config: Config, lock: RunLock) -> tuple[dict[str, Any] | None, int]:
    """Lock the run folder, creating it if needed; call on rank 0.

    Returns:
        The newest intact checkpoint, or None if there is none, and the number of this attempt, counted from 1.

    Raises:
        UserError: the folder cannot be written, is in use, or cannot be resumed with this configuration.
    """
    with writable(run_dir):
        lock.acquire()
    find_run(config)  # again: before the lock was held, another process could change the folder
    _check_extension(run_dir, config)
    return checkpoint.load_newest(run_dir / "checkpoints"), len(read_attempts(run_dir)) + 1


def open_run(run_dir: Path, config: Config, this: Attempt) -> None:
    """Write the configuration, record this attempt and clear old markers; call on rank 0 after lock_run.

    Raises:
        UserError: the folder cannot be written.
    """
    with writable(run_dir):
        (run_dir / "checkpoints").mkdir(exist_ok=True)
        (run_dir / "logs").mkdir(exist_ok=True)
        checkpoint.remove_leftovers(run_dir / "checkpoints", this.step)
        before = read_attempts(run_dir)
        if before and this.step:
            _compare_environments(before[-1].environment, this.environment)
        attempts = [*before, this]
        # A job that obeys STOP is not requeued. If a later attempt of the same job finds STOP, a user created it while
        # the job was queued, and it still has to be obeyed.
        waited = bool(this.job and before) and before[-1].job in (this.job, *slurm.predecessors())
        lines = "".join(json.dumps(asdict(each)) + "\n" for each in attempts)
        write_atomically(run_dir / "attempts.jsonl", lines)  # first: it makes the folder a run folder
        write_atomically(run_dir / "config.yaml", configuration.dump(config))
        for marker in MARKERS:
            if not (marker == "STOP" and waited):
                (run_dir / marker).unlink(missing_ok=True)


def this_attempt(ranks: Sequence[Mapping[str, Any]], step: int, total_steps: int) -> Attempt:
    """Describe the attempt that starts at `step`; `ranks` comes from preflight.check."""
    return Attempt(
        started=time.time(),
        job=slurm.job_name(),
        restart=slurm.restarts(),
        nodes=tuple(dict.fromkeys(rank["host"] for rank in ranks)),
        processes=len(ranks),
        step=step,
        total_steps=total_steps,
        code=ranks[0]["code"],
        environment=_environment(ranks),
    )


def log_to(run_dir: Path, rank: int, world_size: int) -> None:
    """Also write the log of this process to logs/rank_<r>.log: where it ran and why it ended."""
    file = run_dir / "logs" / f"rank_{rank}.log"
    handler = logging.FileHandler(file, delay=True, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger("tinyimnet").addHandler(handler)
    logging.getLogger("tinyimnet").setLevel(logging.INFO)
    logger.info("rank %d of %d is process %d on %s", rank, world_size, os.getpid(), socket.gethostname())


def _environment(ranks: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Device and versions of all ranks; the preflight accepts different drivers, which are joined."""
    of_ranks = [{"device": rank["device"], **rank["versions"], **rank["gpu_versions"]} for rank in ranks]
    return {name: ", ".join(sorted({found[name] for found in of_ranks if name in found})) for name in of_ranks[0]}


def _compare_environments(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Warn on a difference; an earlier version of the program recorded nothing."""
    changed = [f"{name}: {before[name]} -> {now[name]}" for name in now if before.get(name, now[name]) != now[name]]
    if changed:
        logger.warning(
            "the environment has changed since the last attempt (%s), so the final weights may differ in their bits "
            "from those of an uninterrupted run; to avoid that, resume on nodes of one kind with the same versions.",
            "; ".join(changed),
        )


def _check_new(run_dir: Path) -> None:
    """Refuse a folder without checkpoints if it is not a run folder, or had checkpoints."""
    if not run_dir.is_dir():
        return
    try:
        names = {path.name for path in run_dir.iterdir()}
        made = {name for name in ("checkpoints", "logs") if name in names and not any((run_dir / name).iterdir())}
    except OSError as error:
        raise UserError(f"run.dir {run_dir} cannot be read ({error.strerror}); choose another --run.dir.") from None
    others = sorted(name for name in names - made if not HARMLESS.fullmatch(name))
    if others and not names.intersection(TRACES):
        raise UserError(
            f"run.dir {run_dir} is not a run folder and holds other files ({', '.join(others[:3])}); "
            "choose a new or an empty folder."
        )
    resumed = max((attempt.step for attempt in read_attempts(run_dir)), default=0)
    if resumed or SAVED in names:
        found = f"an attempt resumed from step {resumed:,}" if resumed else f"{SAVED} is there"
        raise UserError(
            f"run.dir {run_dir} has no checkpoint, but it had one ({found}); restore checkpoints/ to resume the run, "
            "or choose another --run.dir; to start over in this one, move it away first."
        )


def _check_extension(run_dir: Path, config: Config) -> None:
    if not checkpoint.exists(run_dir / "checkpoints"):
        if exists(run_dir / "DONE"):
            raise UserError(
                f"run.dir {config.run.dir} is finished and has no checkpoint from which to extend it; "
                "choose another --run.dir."
            )
        return
    before = read_config(run_dir)["train"]["epochs"]
    if before != config.train.epochs:
        logger.warning(
            "train.epochs is extended from %d to %d: from here on, the learning rate, augment.mix_until and the "
            "resolution follow the longer schedule, so the result differs from that of a %d-epoch run from scratch.",
            before, config.train.epochs, config.train.epochs,
        )  # fmt: skip
