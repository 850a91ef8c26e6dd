"""Mirror a run folder to one Weights & Biases run, online or offline, in a process beside the training.

python isolate.py tinyimnet.tracking.wandb_mirror RUN [--mode offline] [--rank N]

The mirror uploads the rows of metrics.jsonl that the W&B run does not have yet, including those that earlier attempts
failed to send. The training writes orders to standard input, one JSON object per line: {"alert": {...}} or
{"end": {"exit_code": 0, "preempted": false}}. If standard input closes without an "end", the training was killed.
Lines printed here are messages for the user and go to the console of the training.
"""

import argparse
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import wandb

from tinyimnet import files, streams
from tinyimnet.config import TrackingConfig
from tinyimnet.errors import one_line
from tinyimnet.files import write_atomically
from tinyimnet.run.folder import read_config
from tinyimnet.run.metrics import STEP
from tinyimnet.run.record import read_object
from tinyimnet.run.seeds import group_name
from tinyimnet.tracking import artifacts
from tinyimnet.tracking.environment import init_timeout, prepare_environment
from tinyimnet.tracking.identity import FOLDER, run_id
from tinyimnet.tracking.tracker import MARGIN, how_to_sync
from tinyimnet.tracking.uploaded import ANSWER, KILLED, Uploaded, on_server, recorded, send_lock

POLL = 1.0  # seconds between reads of metrics.jsonl
AGAIN = 10.0  # seconds between attempts to connect
TEARDOWN = 5.0  # seconds for wandb-core to end
# Metrics drawn over the global step. The client adds the step only to rows that have one of them.
AXES = ("train/*", "val/*", "perf/*", "epoch")


class Mirror:
    """One W&B run that follows one run folder.

    Args:
        run_dir: run folder with config.yaml.
        mode: online or offline.
        rank: rank of the training process; ranks above 0 upload only system metrics.
        pid: id of the training process, whose system metrics are uploaded; 0 if there is none.
        fallback: record offline if the server does not answer.
    """

    def __init__(self, run_dir: Path, mode: str, *, rank: int = 0, pid: int = 0, fallback: bool = True):
        self.run_dir, self.mode, self.rank, self.pid, self.fallback = run_dir, mode, rank, pid, fallback
        prepare_environment(run_dir)
        self.config = read_config(run_dir)
        self.tracking = TrackingConfig(**self.config["tracking"])
        self.id, self.project = run_id(run_dir) if rank == 0 else "", self.tracking.project
        self.run: Any = None
        self.uploaded = Uploaded()  # what W&B has
        self.entity: str | None = read_object(run_dir / "wandb_run.json").get("entity")
        self.send_lock: TextIO | None = None  # held while this process uploads
        self.offset = 0  # bytes of metrics.jsonl read
        self.tried = -AGAIN

    def follow(self, orders: "queue.Queue[dict]") -> None:
        """Upload new rows and handle orders until the training ends."""
        while True:
            order: dict = {}
            with suppress(queue.Empty):
                order = orders.get(timeout=POLL)
            if "end" in order:
                # A dead connection may go unnoticed until this last call, so a failure gets one retry on a new one.
                end = partial(self.finish, **order["end"])
                if not self.try_connected(end, wait=False):
                    self.try_connected(end, wait=False)
                return
            self.try_connected(self.send_rows)
            if "alert" in order:
                self.try_connected(partial(self.alert, **order["alert"]))

    def try_connected(self, call: Callable[[], None], *, wait: bool = True) -> bool:
        """Make a call that needs a connected run; return whether it succeeded.

        After a failure, the next call reconnects and finds out which rows arrived. For example, scancel sends SIGTERM
        to every process, which kills wandb-core, and from then on every call on that connection raises.
        """
        try:
            if self.run is None:
                if wait and time.monotonic() - self.tried < AGAIN:
                    return False
                self.tried = time.monotonic()
                self.connect()
            call()
            return True
        except Exception as error:  # OSError from a dead wandb-core, wandb.Error and others
            if self.rank == 0:
                lines = self.run_dir / "metrics.jsonl"
                say(f"connection lost ({one_line(error)}); reconnecting (all rows are kept in {lines})")
            self.disconnect()
            return False

    def connect(self) -> None:
        """Start or resume the run in the requested mode, or fall back to offline.

        Raises:
            Exception: neither mode works.
        """
        if self.rank:
            self.join()
            return
        if self.mode == "online":
            try:
                self.connect_online()
            except Exception as error:
                self.disconnect()
                if not self.fallback:
                    raise
                say(f"{one_line(error)} Recording offline; upload later with: {how_to_sync(self.run_dir)}")
                self.mode = "offline"
                self.send_lock = None  # closes the file, so that `sync --live` may upload
        if self.mode == "offline":
            self.uploaded = recorded(self.run_dir, self.id)
            self.run = self.start("offline")
        self.offset = 0
        self.send_once()

    def connect_online(self) -> None:
        """Start or resume the run on the server, after the mirror of a killed earlier attempt has finished."""
        if self.pid and not self.send_lock:
            self.send_lock = send_lock(self.run_dir)
            until = time.monotonic() + 2 * self.tracking.finish_timeout + MARGIN
            while files.lock(self.send_lock) is False and time.monotonic() < until:
                time.sleep(0.5)
        if not os.environ.get("WANDB_SWEEP_ID"):  # an agent gives each id to one folder
            # Before wandb.init, which would rename another folder's run.
            there = on_server(self.entity, self.project, self.id, rows=False, timeout=min(ANSWER, init_timeout()))
            there.check_owner(self.run_dir, self.id)
        self.run = self.start("online")
        self.uploaded = on_server(self.run.entity, self.run.project, self.id) if self.run.resumed else Uploaded()

    def join(self) -> None:
        """Join the run that the main process creates.

        Raises:
            RuntimeError: the main process is not online yet.
        """
        wandb_run = read_object(self.run_dir / "wandb_run.json")
        if "url" not in wandb_run:
            raise RuntimeError("the main process is not online")
        self.id = wandb_run["id"]
        self.run = self.start("online")

    def start(self, mode: str) -> Any:
        """Call wandb.init; on rank 0, also send the configuration and write wandb_run.json."""
        shared = self.tracking.per_rank and mode == "online"
        settings: dict[str, Any] = {
            "init_timeout": init_timeout(),
            "finish_timeout": self.tracking.finish_timeout,
            "finish_timeout_raises": True,
            "x_transaction_log_flush_interval": 2.0,
            "x_stats_pid": self.pid or os.getpid(),
            "x_disable_stats": not self.pid,
            "stop_fn": (self.run_dir / "STOP").touch,  # stop button; the training checks for STOP every second
            "console": "off",
            "disable_git": True,  # the URL of a remote can contain a token; run_info.json has the commit
            "silent": True,
        }
        if shared:
            # Only the main process sets the final state of the run.
            first = self.rank == 0
            settings |= {"x_label": f"rank_{self.rank}", "x_primary": first, "x_update_finish_state": first}
        run = wandb.init(
            entity=self.entity, project=self.project, id=self.id, dir=self.run_dir,
            name=os.environ.get("WANDB_NAME") or self.run_dir.name,
            resume=None if shared and self.rank else "allow", mode="shared" if shared else mode,  # type: ignore[arg-type]
            group=os.environ.get("WANDB_RUN_GROUP") or group_name(self.run_dir.name),
            settings=wandb.Settings(**settings),
        )  # fmt: skip
        if self.rank:
            return run
        sent = {**self.config, **read_object(self.run_dir / "run_info.json"), FOLDER: str(self.run_dir.resolve())}
        run.config.update(sent, allow_val_change=True)
        run.define_metric(STEP, hidden=True)
        for names in AXES:
            run.define_metric(names, step_metric=STEP)
        wandb_run = {**read_object(self.run_dir / "wandb_run.json"), "id": self.id}
        if mode == "online":  # for `tinyimnet status`, and because a sweep sets its own project
            wandb_run |= {"url": run.url, "entity": run.entity, "project": run.project}
            say(str(run.url))
        if self.pid:  # `sync` refuses a run whose training uploads its own rows
            wandb_run["mode"] = mode
        write_atomically(self.run_dir / "wandb_run.json", json.dumps(wandb_run).encode())
        return run

    def send_once(self) -> None:
        """Upload what stays the same during an attempt."""
        if self.tracking.log_code:
            artifacts.send_code(self.run)
        if (self.run_dir / "augmented.png").exists() and artifacts.INPUT not in self.uploaded.keys:
            artifacts.send_input(self.run, self.run_dir)

    def send_rows(self) -> None:
        """Log the lines of metrics.jsonl that W&B is missing, with the global step as a separate axis.

        W&B's own step counts rows and is not the global step: W&B drops a row whose step is below the last one, which
        would drop every replayed row.
        """
        if self.rank:
            return
        for row in self.new_rows():
            if row[STEP] not in self.uploaded.steps:
                self.run.log(row)
                self.uploaded.steps.add(row[STEP])

    def new_rows(self) -> list[dict[str, float]]:
        """Lines added since the last call; an incomplete line is left for the next call."""
        try:
            with (self.run_dir / "metrics.jsonl").open("rb") as file:
                file.seek(self.offset)
                added = file.read()
        except FileNotFoundError:
            return []
        whole = added[: added.rfind(b"\n") + 1]
        self.offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]

    def alert(self, **alert: Any) -> None:
        """Send an alert."""
        self.run.alert(**alert)

    def finish(self, exit_code: int, preempted: bool) -> None:
        """Upload the last rows and end the run as finished, failed, or preempted if it will be resumed."""
        self.send_rows()
        done = read_object(self.run_dir / "DONE")
        if self.rank == 0 and done and self.uploaded.final != done["steps"]:
            artifacts.send_results(self.run, self.run_dir, done)
        # A sweep would give a preempted trial to another agent, although the requeued job resumes it anyway.
        comes_back = preempted and not os.environ.get("WANDB_SWEEP_ID")
        if comes_back and self.rank == 0:
            self.run.mark_preempting()
        try:
            self.run.finish(exit_code=exit_code or int(comes_back))  # 0 would show as finished
        except TimeoutError:
            limit = self.tracking.finish_timeout
            say(f"upload not complete within {limit} s; upload the rest with: {how_to_sync(self.run_dir)}")

    def disconnect(self) -> None:
        """Drop a broken run; otherwise the next wandb.init fails because the id is in use."""
        self.run = None
        kill = threading.Timer(TEARDOWN, kill_service)
        kill.start()
        with suppress(Exception):
            wandb.teardown()
        kill.cancel()


def kill_service() -> None:
    """Kill the wandb-core of this process, whose end wandb.teardown awaits.

    After a request without an answer it did not end by itself in 4 of 60 attempts (wandb 0.31).
    """
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            name, _, fields = stat.read_bytes().rpartition(b") ")  # PID (NAME) STATE PARENT
            if name.endswith(b"(wandb-core") and int(fields.split()[1]) == os.getpid():
                os.kill(int(stat.parent.name), signal.SIGKILL)


def say(sentence: str) -> None:
    """Print a message for the user; the training that reads it may be gone."""
    with suppress(OSError):
        print(f"W&B: {sentence}", flush=True)


def listen(orders: "queue.Queue[dict]") -> None:
    """Queue the orders of the training until it ends."""
    for line in sys.stdin:
        with suppress(ValueError):
            orders.put(json.loads(line))
    orders.put({"end": {"exit_code": KILLED, "preempted": False}})


def main() -> None:
    """Follow a run folder until its training ends."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--mode", choices=("online", "offline"), default="online")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--pid", type=int, default=os.getppid())
    args = parser.parse_args()
    streams.prepare()
    # Slurm sends these signals to every process of a step, but only the training acts on them.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    orders: queue.Queue[dict] = queue.Queue()
    threading.Thread(target=listen, args=(orders,), daemon=True).start()
    Mirror(args.run, args.mode, rank=args.rank, pid=args.pid).follow(orders)
    sys.stdout.flush()
    os._exit(0)  # skips wandb's exit hooks, which hung in 1 of 16 runs


if __name__ == "__main__":
    main()
