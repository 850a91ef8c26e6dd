"""Send to W&B what it does not have yet of runs.

For runs on nodes without a network, from one that has it, and for what a lost connection left behind. Records of attempts that
were offline are sent as they are, in their order, with system metrics; rows that are missing then come from metrics.jsonl.
At the end the server is asked whether it has every row.
"""

import json
import multiprocessing
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyimnet import files
from tinyimnet.config import runs_root
from tinyimnet.errors import UserError, one_line
from tinyimnet.files import read_lines
from tinyimnet.run import lock
from tinyimnet.tracking import uploaded
from tinyimnet.tracking.uploaded import KILLED, Uploaded, exit_code_of, rows_of, steps_of

if TYPE_CHECKING:
    from tinyimnet.tracking.wandb_mirror import Mirror

SETTLE = 30  # seconds that a server has to show rows that it took
LOOK = 5.0  # seconds between two looks whether a run is still alive


def at_rest() -> list[Path]:
    """The runs that nobody trains, of sweeps too.

    Raises:
        UserError: there is none.
    """
    root = runs_root()
    runs = [file.parent for way in ("*", "sweep-*/*") for file in sorted(root.glob(f"{way}/wandb_run.json"))]
    if not (resting := [run for run in runs if not lock.is_held(run)]):
        what = f"each of the {len(runs)} runs in {root} is being trained" if runs else f"no run in {root}"
        raise UserError(f"{what}; name run folders.")
    return resting


def check(run: Path, *, live: bool = False) -> None:
    """Raise a UserError where a run cannot be sent, or something else sends it."""
    try:
        metadata = json.loads((run / "wandb_run.json").read_text())
    except (OSError, ValueError):
        raise UserError(f"{run} has no wandb_run.json: it is no run folder, or its training did not use W&B.") from None
    if lock.is_held(run) and metadata.get("mode") == "online":
        raise UserError(f"{run} is being trained and sends its rows itself; wait for its end.")
    if lock.is_held(run) and not live:
        raise UserError(f"{run} is being trained; follow it with --live, or send it when it has ended.")


def try_send(run: Path, timeout: int) -> UserError | None:
    """Send one run; returns its error, so that the others are still sent."""
    try:
        check(run)
        print(f"{run}: {bounded(send, run, timeout)}", flush=True)
        return None
    except UserError as error:
        return error


def bounded(call: Callable[[Path, Any], Any], run: Path, timeout: int | None) -> Any:
    """What `call` returns in a process of its own, which is ended after so many seconds; one at a time for a run.

    wandb's own calls and exit hooks have waited for ever for a server that hangs.
    """
    with one_at_a_time(run), multiprocessing.get_context("spawn").Pool(1) as pool:
        try:
            return pool.apply_async(call, (run, timeout)).get(timeout)
        except multiprocessing.TimeoutError:
            raise UserError(
                f"{run} was not sent within {timeout} s; the same command goes on, with a longer --timeout if need be."
            ) from None


@contextmanager
def one_at_a_time(run: Path) -> Iterator[None]:
    """Two that send the same rows would double them."""
    with uploaded.send_lock(run) as file:
        if files.lock(file) is False:
            raise UserError(f"{run} is being sent by another command or the end of its training; wait for that.")
        yield


# ---- in the process that speaks to W&B ----------------------------------------------------------------------


def send(run_dir: Path, timeout: int) -> str:
    """Send what is missing of a run that has ended; returns what was done.

    Raises:
        UserError: W&B does not take it.
    """
    mirror = mirror_of(run_dir)
    rows = steps_of(read_lines(run_dir / "metrics.jsonl"))
    ended = how_it_ended(run_dir, uploaded.records(run_dir, mirror.id))  # before there is a record of this
    try:
        before = ask(mirror)
        if before.is_complete(run_dir):
            return f"W&B has all {len(rows):,} rows already: {before.url}"
        send_records(mirror, before, timeout / 2)
        if not ask(mirror).is_complete(run_dir):
            mirror.connect()
            mirror.finish(ended, preempted=False)
        after = wait_for(mirror)
    except Exception as error:
        raise UserError(
            f"{run_dir} was not sent ({one_line(error)}); look at the network, WANDB_BASE_URL and WANDB_API_KEY."
        ) from None
    if not after.is_complete(run_dir):
        raise UserError(
            f"W&B has {len(rows & after.steps):,} of {len(rows):,} rows of {run_dir} and final weights of step "
            f"{after.final}; give the same command again."
        )
    return f"sent {len(rows - before.steps):,} of {len(rows):,} rows; W&B has them all: {after.url}"


def mirror_of(run_dir: Path) -> "Mirror":
    """One that sends to the project that has the run."""
    from tinyimnet.tracking.wandb_mirror import Mirror

    mirror = Mirror(run_dir, "online", fallback=False)
    mirror.project = json.loads((run_dir / "wandb_run.json").read_text()).get("project", mirror.project)
    return mirror


def ask(mirror: "Mirror") -> Uploaded:
    """Ask the server, without starting the run there."""
    import wandb

    api = wandb.Api(timeout=uploaded.ANSWER)
    entity = mirror.entity or api.settings["entity"] or api.default_entity
    return uploaded.on_server(f"{entity}/{mirror.project}/{mirror.id}")


def send_records(mirror: "Mirror", has: Uploaded, timeout: float) -> None:
    """Send the records of offline attempts of which the server has nothing; wandb puts them in the order of the attempts.

    One of which it has a part would be sent from its beginning, and its rows would be there twice.
    """
    offline = uploaded.records(mirror.run_dir, mirror.id, offline=True)
    new = [
        record for record in offline if not list(record.glob("*.synced")) and not steps_of(rows_of(record)) & has.steps
    ]
    if new:
        command = [sys.executable, "-m", "wandb", "sync", *(str(record.absolute()) for record in new)]
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(
                command,
                cwd=mirror.run_dir,
                timeout=timeout,
                capture_output=True,
                stdin=subprocess.DEVNULL,
            )


def wait_for(mirror: "Mirror") -> Uploaded:
    """What the server has, as soon as that is everything; what it took may show later."""
    until, pause = time.monotonic() + SETTLE, 1.0
    while not (has := ask(mirror)).is_complete(mirror.run_dir) and time.monotonic() < until:
        time.sleep(pause)
        pause *= 2  # a look is several requests, of which W&B allows so many a minute
    return has


def how_it_ended(run_dir: Path, recorded: list[Path]) -> int:
    """Exit code of the last attempt."""
    if (run_dir / "DONE").exists():
        return 0
    return exit_code_of(recorded[-1]) if recorded else KILLED


def follow(run_dir: Path, _timeout: None) -> None:
    """Send the rows of a run while it trains, until nobody holds its lock any more."""
    orders: queue.Queue[dict] = queue.Queue()
    mirror = mirror_of(run_dir)

    def watch() -> None:
        while lock.is_held(run_dir):
            time.sleep(LOOK)
        attempts = uploaded.records(run_dir, mirror.id, offline=True)
        orders.put({"end": {"exit_code": how_it_ended(run_dir, attempts), "preempted": False}})

    threading.Thread(target=watch, daemon=True).start()
    mirror.follow(orders)
