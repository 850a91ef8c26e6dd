"""Upload the rows of runs that W&B is missing.

This is for runs on nodes without a network, from a node that has one, and for rows that a lost connection left behind.
Records of offline attempts go first, unchanged and in order, with their system metrics. Rows that are still missing
come from metrics.jsonl. Finally the server is asked whether it has every row.
"""

import json
import logging
import multiprocessing
import os
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyimnet import files
from tinyimnet.config import TrackingConfig, runs_root
from tinyimnet.console import command
from tinyimnet.errors import UserError, one_line, paths_named
from tinyimnet.files import read_lines, read_text
from tinyimnet.run import lock
from tinyimnet.run.folder import read_config
from tinyimnet.tracking import identity, isolate, uploaded
from tinyimnet.tracking.mode import wandb_mode
from tinyimnet.tracking.uploaded import KILLED, Uploaded, exit_code_of, rows_of, steps_of

if TYPE_CHECKING:
    from tinyimnet.tracking.wandb_mirror import Mirror

logger = logging.getLogger(__name__)
SETTLE = 30  # seconds that a server has to show the rows it accepted
LOOK = 5.0  # seconds between checks whether a run is still training


def at_rest() -> list[Path]:
    """Tracked runs that are not training, including those of sweeps, without copies of run folders.

    Raises:
        UserError: there are none.
    """
    root = runs_root()
    trials = (trial for sweep in files.matching(root, "sweep-*") for trial in sorted(sweep.glob("*")))
    runs = [run for run in (*files.matching(root, "*"), *trials) if os.path.exists(run / "wandb_run.json")]
    runs = [run for run in runs if not identity.copied_from(run, identity.read_note(run))]
    if not (resting := [run for run in runs if not lock.is_held(run)]):
        what = f"all runs in {root} are still training (found {len(runs)})" if runs else f"no tracked run in {root}"
        raise UserError(f"{what}; name the run folders to upload.")
    return resting


def check(run: Path, *, live: bool = False) -> None:
    """Raise a UserError if a run cannot be uploaded or uploads its own rows."""
    try:
        metadata = json.loads(read_text(run / "wandb_run.json"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise UserError(f"{run} has no wandb_run.json: it is not a run folder or was not tracked on W&B.") from None
    if lock.is_held(run) and metadata.get("mode") == "online":
        raise UserError(f"{run} is still training and uploads its own rows; wait for it to end.")
    if lock.is_held(run) and not live:
        raise UserError(f"{run} is still training; follow it with --live, or sync it after it has ended.")
    mode = wandb_mode(TrackingConfig(**read_config(run)["tracking"]))
    if mode.name == "disabled":
        raise UserError(f"W&B is disabled ({mode.source or f'tracking.wandb of {run}'}), so {run} is not uploaded.")
    original = identity.copied_from(run, metadata)
    if original and not os.environ.get("WANDB_RUN_ID"):
        raise UserError(
            f"{run} is a copy of {original}, whose rows W&B run {metadata['id']} has; upload it as another run with "
            f"WANDB_RUN_ID=ID {command('sync', run)}"
        )


def try_send(run: Path, timeout: int) -> UserError | None:
    """Upload one run; return its error instead of raising it, so that the other runs are still uploaded."""
    try:
        with paths_named():
            check(run)
            print(f"{run}: {bounded(send, run, timeout)}", flush=True)
        return None
    except UserError as error:
        return error


def bounded(call: Callable[[Path, Any], Any], run: Path, timeout: int | None) -> Any:
    """Return `call(run, timeout)` from a separate process, which is killed after `timeout` seconds.

    wandb calls and exit hooks have waited forever for a server that hangs. Only one such process per run is allowed.
    """
    with one_at_a_time(run), multiprocessing.get_context("spawn").Pool(1, isolate.libraries_first) as pool:
        try:
            return pool.apply_async(call, (run, timeout)).get(timeout)
        except multiprocessing.TimeoutError:
            raise UserError(
                f"{run} was not uploaded within {timeout} s; rerun the same command to continue, with a longer "
                "--timeout if needed."
            ) from None


@contextmanager
def one_at_a_time(run: Path) -> Iterator[None]:
    """Hold the upload lock of a run: two uploads of the same rows would duplicate them."""
    with uploaded.send_lock(run) as file:
        held = files.lock(file)
        if held is None:
            logger.warning("the file system of %s has no locks; start no second upload of it.", run)
        if held is False:
            raise UserError(f"{run} is already being uploaded, by its training or another sync; wait for that to end.")
        yield


# ---- in the process that talks to W&B -----------------------------------------------------------------------


def send(run_dir: Path, timeout: int) -> str:
    """Upload what W&B is missing of a run that has ended; return a summary.

    Raises:
        UserError: the upload failed or is incomplete.
    """
    mirror = mirror_of(run_dir)
    rows = steps_of(read_lines(run_dir / "metrics.jsonl"))
    ended = how_it_ended(run_dir, uploaded.records(run_dir, mirror.id))  # before this upload adds a record
    try:
        before = ask(mirror)
        if before.is_complete(run_dir):
            return f"W&B already has all {len(rows):,} rows: {before.url}"
        send_records(mirror, before, timeout / 2)
        if not ask(mirror).is_complete(run_dir):
            mirror.connect()
            mirror.finish(ended, preempted=False)
        after = wait_for(mirror)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{run_dir} was not uploaded ({one_line(error)}); check the network, WANDB_BASE_URL and WANDB_API_KEY."
        ) from None
    if not after.is_complete(run_dir):
        raise UserError(
            f"W&B has {len(rows & after.steps):,} of {len(rows):,} rows of {run_dir} and final weights of step "
            f"{after.final}; rerun the same command."
        )
    return f"uploaded {len(rows - before.steps):,} of {len(rows):,} rows; W&B now has all of them: {after.url}"


def mirror_of(run_dir: Path) -> "Mirror":
    """A mirror that uploads to the W&B project where the run already is."""
    from tinyimnet.tracking.wandb_mirror import Mirror

    mirror = Mirror(run_dir, "online", fallback=False)
    mirror.project = json.loads(read_text(run_dir / "wandb_run.json")).get("project", mirror.project)
    return mirror


def ask(mirror: "Mirror") -> Uploaded:
    """Ask the server what it has of the run, without starting the run there.

    Raises:
        UserError: the run belongs to another folder.
    """
    has = uploaded.on_server(mirror.entity, mirror.project, mirror.id)
    has.check_owner(mirror.run_dir, mirror.id)
    return has


def send_records(mirror: "Mirror", has: Uploaded, timeout: float) -> None:
    """Upload the records of offline attempts of which the server has no rows; wandb sorts them by attempt.

    A record that the server has in part would be uploaded from its beginning, which would duplicate rows.
    """
    offline = uploaded.records(mirror.run_dir, mirror.id, offline=True)
    new = [
        record for record in offline if not list(record.glob("*.synced")) and not steps_of(rows_of(record)) & has.steps
    ]
    if new:
        sync = isolate.command("wandb", "sync", *(str(record.absolute()) for record in new))
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(
                sync,
                cwd=mirror.run_dir,
                timeout=timeout,
                capture_output=True,
                stdin=subprocess.DEVNULL,
            )


def wait_for(mirror: "Mirror") -> Uploaded:
    """Wait up to SETTLE seconds until the server shows everything, and return what it has."""
    until, pause = time.monotonic() + SETTLE, 1.0
    while not (has := ask(mirror)).is_complete(mirror.run_dir) and time.monotonic() < until:
        time.sleep(pause)
        pause *= 2  # one check is several requests, and W&B limits requests per minute
    return has


def how_it_ended(run_dir: Path, recorded: list[Path]) -> int:
    """Exit code of the last attempt."""
    if (run_dir / "DONE").exists():
        return 0
    return exit_code_of(recorded[-1]) if recorded else KILLED


def follow(run_dir: Path, _timeout: None) -> None:
    """Upload the rows of a run while it trains, until its lock has no holder."""
    orders: queue.Queue[dict] = queue.Queue()
    mirror = mirror_of(run_dir)

    def watch() -> None:
        while lock.is_held(run_dir):
            time.sleep(LOOK)
        attempts = uploaded.records(run_dir, mirror.id, offline=True)
        orders.put({"end": {"exit_code": how_it_ended(run_dir, attempts), "preempted": False}})

    threading.Thread(target=watch, daemon=True).start()
    mirror.follow(orders)
