"""Mirror a run folder to one Weights & Biases run, online or offline: a process of its own beside the training.

python -m tinyimnet.mirror RUN [--mode offline] [--rank N]

The run folder is the truth: rows come from metrics.jsonl, and only those are sent that the W&B run does not have yet,
whatever was lost or sent in an earlier life. The training says on standard input what happens, a JSON object a line:
{"alert": {...}} or {"end": {"exit_code": 0, "preempted": false}}. Its end without a word means that it was killed.
What is printed here is a sentence for the person and goes to the console of the training.
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
from typing import Any

import wandb
import yaml

from tinyimnet import artifacts, records
from tinyimnet.config import TrackingConfig
from tinyimnet.files import write_atomically
from tinyimnet.records import KILLED, rows_of, steps_of
from tinyimnet.tracking import STEP, how_to_sync, run_id

INIT_TIMEOUT = 20  # seconds; a server that refuses or hangs costs 10 more (wandb 0.31)
POLL = 1.0  # seconds between two looks at metrics.jsonl
AGAIN = 10.0  # seconds between two tries to connect
AXES = (
    "train/*",
    "val/*",
    "perf/*",
    "epoch",
)  # what is drawn over the global step; the client adds it to no other row


class Mirror:
    """One W&B run that follows one run folder.

    Args:
        run_dir: the run folder, with config.yaml.
        mode: online or offline.
        rank: of the training process; beyond 0 only its system metrics are sent.
        pid: of the training process, whose system metrics are sent; 0 where there is none.
        fallback: record offline where the server does not answer.
    """

    def __init__(self, run_dir: Path, mode: str, *, rank: int = 0, pid: int = 0, fallback: bool = True):
        self.run_dir, self.mode, self.rank, self.pid, self.fallback = run_dir, mode, rank, pid, fallback
        self.settings: dict[str, Any] = yaml.safe_load((run_dir / "config.yaml").read_text())
        self.tracking = TrackingConfig(**self.settings["tracking"])
        self.id = run_id(run_dir)
        self.run: Any = None
        self.sent: set[float] = set()  # steps that W&B has
        self.keys: set[str] = set()  # and what else
        self.offset = 0  # bytes of metrics.jsonl read
        self.tried = -AGAIN

    def follow(self, orders: "queue.Queue[dict]") -> None:
        """Send what comes until the training ends."""
        while True:
            order: dict = {}
            with suppress(queue.Empty):
                order = orders.get(timeout=POLL)
            if "end" in order:
                # A connection may turn out to be dead in the last call only: then once more, with a new one.
                end = partial(self.finish, **order["end"])
                self.attempt(end, wait=False) or self.attempt(end, wait=False)
                return
            self.attempt(self.send_rows)
            if "alert" in order:
                self.attempt(partial(self.alert, **order["alert"]))

    def attempt(self, call: Callable[[], None], *, wait: bool = True) -> bool:
        """Do something with the W&B run; whether it was done.

        Where it fails, a later attempt begins with a new connection, which finds out what arrived: wandb-core dies of the
        SIGTERM that scancel sends to every process, and then all calls raise.
        """
        try:
            if self.run is None:
                if wait and time.monotonic() - self.tried < AGAIN:
                    return False
                self.tried = time.monotonic()
                self.connect()
            call()
            return True
        except Exception as error:  # OSError of a dead wandb-core, wandb.Error and more
            say(
                f"interrupted ({short(error)}); it connects again, {self.run_dir / 'metrics.jsonl'} has everything"
            )
            self.disconnect()
            return False

    def connect(self) -> None:
        """Start or resume the run in the wanted mode, else offline.

        Raises:
            Exception: neither works.
        """
        if self.mode == "online":
            try:
                self.connect_online()
            except Exception as error:
                self.disconnect()
                if not self.fallback:
                    raise
                say(f"{short(error)} Recording offline; send it later with: {how_to_sync(self.run_dir)}")
                self.mode = "offline"
        if self.mode == "offline":
            rows = [row for record in records.records(self.run_dir, self.id) for row in rows_of(record)]
            self.sent, self.keys = steps_of(rows), {key.partition(".")[0] for row in rows for key in row}
            self.run = self.start("offline")
        self.offset = 0
        if self.rank == 0:
            self.send_once()

    def connect_online(self) -> None:
        """Start or resume the run on the server."""
        self.run = self.start("online")
        if self.run.resumed:
            self.sent, self.keys = steps_on_server(self.run), set(self.run.summary.keys())

    def start(self, mode: str) -> Any:
        """wandb.init."""
        shared = self.tracking.per_rank and mode == "online"
        settings: dict[str, Any] = {
            "init_timeout": float(os.environ.get("WANDB_INIT_TIMEOUT", INIT_TIMEOUT)),
            "finish_timeout": self.tracking.finish_timeout,
            "finish_timeout_raises": True,
            "x_transaction_log_flush_interval": 2.0,
            "x_stats_pid": self.pid or os.getpid(),
            "x_disable_stats": not self.pid,
            "stop_fn": (
                self.run_dir / "STOP"
            ).touch,  # the stop button; the training looks for it every second
            "console": "off",
            "disable_git": True,  # the address of a remote can hold a token; facts.json has the commit
            "silent": True,
        }
        if shared:
            # Only the main process says when the run has ended.
            first = self.rank == 0
            settings |= {"x_label": f"rank_{self.rank}", "x_primary": first, "x_update_finish_state": first}
        seeds, _, _seed = self.run_dir.name.rpartition("-seed")
        run = wandb.init(
            project=self.tracking.project, name=self.run_dir.name, id=self.id, dir=self.run_dir,
            resume=None if shared and self.rank else "allow", mode="shared" if shared else mode,  # type: ignore[arg-type]
            group=os.environ.get("WANDB_RUN_GROUP") or seeds or None, settings=wandb.Settings(**settings),
        )  # fmt: skip
        if self.rank:
            return run
        run.config.update({**self.settings, **read_json(self.run_dir / "facts.json")}, allow_val_change=True)
        run.define_metric(STEP, hidden=True)
        for names in AXES:
            run.define_metric(names, step_metric=STEP)
        if mode == "online" and run.url:  # launch.status shows it
            write_atomically(
                self.run_dir / "wandb_run.json", json.dumps({"id": self.id, "url": run.url}).encode()
            )
            say(run.url)
        return run

    def send_once(self) -> None:
        """Send what does not change in the life of a run."""
        if self.tracking.log_code:
            artifacts.send_code(self.run)
        if (self.run_dir / "augmented.png").exists() and artifacts.INPUT not in self.keys:
            artifacts.send_input(self.run, self.run_dir)

    def send_rows(self) -> None:
        """Log the lines of metrics.jsonl that W&B does not have, under the global step as an axis of its own.

        W&B's own step counts rows: it drops a row whose step is below the last one, as those of a replay are.
        """
        if self.rank:
            return
        for row in self.new_rows():
            if row[STEP] not in self.sent:
                self.run.log(row)
                self.sent.add(row[STEP])

    def new_rows(self) -> list[dict[str, float]]:
        """Lines that were added since the last call; half a line waits for its end."""
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
        """Send the last rows and end the run: finished, failed, or preempted, which is a state to come back from."""
        self.send_rows()
        results = read_json(self.run_dir / "DONE")
        if results and self.rank == 0 and artifacts.RESULTS not in self.keys:
            artifacts.send_results(self.run, self.run_dir, results)
        if preempted and self.rank == 0:
            self.run.mark_preempting()
        # W&B takes exit code 0 for finished even then. A sweep would hand a preempted trial to another agent, while the
        # job that has it comes back to it by itself.
        comes_back = preempted and not os.environ.get("WANDB_SWEEP_ID")
        try:
            self.run.finish(exit_code=exit_code or int(comes_back))
        except TimeoutError:
            say(
                f"not all was sent within {self.tracking.finish_timeout} s; send it later with: {how_to_sync(self.run_dir)}"
            )

    def disconnect(self) -> None:
        """Forget a run that does not work; else the next wandb.init says that its id is in use."""
        self.run = None
        with suppress(Exception):
            wandb.teardown()


def steps_on_server(run: Any) -> set[float]:
    """Global steps of the rows that the server has of a run that was resumed."""
    stored = wandb.Api(timeout=INIT_TIMEOUT).run(f"{run.entity}/{run.project}/{run.id}")
    return steps_of(stored.scan_history(keys=[STEP]))


def read_json(file: Path) -> dict[str, Any]:
    """The object in a file; empty where there is none."""
    return json.loads(file.read_text()) if file.exists() else {}


def short(error: Exception) -> str:
    """The first sentence of an error, on one line."""
    return " ".join((str(error) or type(error).__name__).split())[:200]


def say(sentence: str) -> None:
    """Tell the person; the training may be gone."""
    with suppress(OSError):
        print(f"W&B: {sentence}", flush=True)


def listen(orders: "queue.Queue[dict]") -> None:
    """Hand on what the training says, until it ends."""
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
    # Slurm sends these to every process of a step; the training decides what they mean.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    orders: queue.Queue[dict] = queue.Queue()
    threading.Thread(target=listen, args=(orders,), daemon=True).start()
    Mirror(args.run, args.mode, rank=args.rank, pid=args.pid).follow(orders)
    sys.stdout.flush()
    os._exit(0)  # wandb's own exit hooks have waited for ever (1 of 16)


if __name__ == "__main__":
    main()
