"""Metrics of a run: metrics.jsonl in the run folder, always, and its mirror on Weights & Biases.

Another process, wandb_mirror.py, talks to W&B: it follows the run folder. So nothing that happens there, a server
that hangs, a service process that dies, a slow import, reaches a training step.
"""

import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

from tinyimnet.config import TrackingConfig
from tinyimnet.console import console
from tinyimnet.distributed import slurm
from tinyimnet.errors import UserError
from tinyimnet.files import ROOT, read_lines, write_atomically
from tinyimnet.run.metrics import STEP

logger = logging.getLogger(__name__)
RESTARTS = 3  # of a mirror that ends by itself
LEAVE = 15  # seconds that a job needs at its end to be requeued
MARGIN = 45  # seconds on top of tracking.finish_timeout: a mirror that is still starting needs 31


class Tracker:
    """One line for each logged step, on the main process; on the others every method does nothing.

    Args:
        run_dir: the run folder.
        config: where W&B goes.
        rank: of this process.
        attempt: which start of the run this is, from 1.
    """

    def __init__(self, run_dir: Path, config: TrackingConfig, *, rank: int = 0, attempt: int = 1):
        self.file = run_dir / "metrics.jsonl"
        self.run_dir, self.config, self.rank, self.attempt = run_dir, config, rank, attempt
        self._mirror: MirrorProcess | None = None
        self._lines: FileIO | None = None
        self._unwritten = b""
        self._writing = threading.Lock()  # the thread that saves checkpoints calls `flush`

    def start(self, step: int) -> None:
        """Open metrics.jsonl, without what was logged after `step` and is replayed with the same values; start the mirror.

        Raises:
            OSError: the file cannot be written.
        """
        if self.rank == 0:
            kept = [json.dumps(line) + "\n" for line in read_lines(self.file) if line[STEP] <= step]
            write_atomically(self.file, "".join(kept).encode())
            self._lines = self.file.open("ab", buffering=0)
        mode = wandb_mode(self.config)
        if mode != "disabled" and (self.rank == 0 or (mode == "online" and self.config.per_rank)):
            self._mirror = MirrorProcess(self.run_dir, mode, self.rank)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record values under a global step; calls come in the order of the steps.

        What a full disk does not take is kept and written with a later line.
        """
        if not self._lines:
            return
        line = {STEP: step, **values, "perf/attempt": self.attempt}
        with self._writing:
            self._unwritten += json.dumps(line).encode() + b"\n"
        with suppress(OSError):  # the next checkpoint fails on it too, which is reported
            self._write()

    def flush(self) -> None:
        """Put the lines on disk, before a checkpoint that they belong to; safe in another thread.

        Raises:
            OSError: they are not on disk.
        """
        if self._lines:
            self._write()
            os.fsync(self._lines.fileno())

    def alert(self, title: str, text: str, *, level: int = logging.WARNING) -> None:
        """Send a W&B alert, at most one of a title in five minutes; the log has it in any case."""
        logger.log(level, "%s: %s", title, text)
        if self._mirror and self.rank == 0:
            name = "INFO" if level == logging.INFO else "WARN"
            self._mirror.tell(alert={"title": title, "text": text, "level": name, "wait_duration": 300})

    def close(self, exit_code: int, *, preempted: bool = False) -> None:
        """Close the file and end the mirror, which has tracking.finish_timeout seconds to send what it has.

        Less where the job ends before that: it is requeued by its batch script, behind this.
        """
        if self._lines:
            self._lines.close()
        if self._mirror:
            left = slurm.end_of_job() - time.time() - LEAVE
            timeout = max(0, min(self.config.finish_timeout + MARGIN, left))
            self._mirror.close(timeout, exit_code=exit_code, preempted=preempted)

    def _write(self) -> None:
        with self._writing:
            while self._unwritten and self._lines:
                written = self._lines.write(self._unwritten)
                self._unwritten = self._unwritten[written:]


class MirrorProcess:
    """The process that follows the run folder; it is started again when it ends by itself.

    Args:
        run_dir: the run folder, with config.yaml.
        mode: online or offline.
        rank: of this process; beyond 0 only system metrics are sent.
    """

    def __init__(self, run_dir: Path, mode: str, rank: int):
        if rank == 0:
            run_id(run_dir)  # on disk before anything of the run is anywhere else
        self.run_dir = run_dir
        self.command = [
            sys.executable, "-m", "tinyimnet.tracking.wandb_mirror", str(run_dir), f"--mode={mode}", f"--rank={rank}", f"--pid={os.getpid()}"
        ]  # fmt: skip
        self._closing = False
        self._start()
        threading.Thread(target=self._listen, name="W&B mirror", daemon=True).start()

    def tell(self, **order: Any) -> None:
        """Say something to it; not waited for, and lost where it is not there."""
        with suppress(OSError, ValueError):
            self.process.stdin.write(json.dumps(order).encode() + b"\n")  # type: ignore[union-attr]

    def close(self, timeout: float, **end: Any) -> None:
        """Have it send what it has, and end it after so many seconds."""
        self._closing = True
        self.tell(end=end)
        try:
            if code := self.process.wait(timeout):
                logger.warning("the W&B mirror ended too early (exit code %d); send what is missing: %s",
                               code, how_to_sync(self.run_dir))  # fmt: skip
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            logger.warning(
                "W&B did not end within %.0f s; send what is missing: %s",
                timeout,
                how_to_sync(self.run_dir),
            )

    def _start(self) -> None:
        # A session of its own: Ctrl-C and what a launcher sends to the group are for the training alone.
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))},
        )  # fmt: skip
        os.set_blocking(self.process.stdin.fileno(), False)  # type: ignore[union-attr]

    def _listen(self) -> None:
        """Print what it says; a line is a sentence for the person."""
        for _ in range(1 + RESTARTS):
            for line in self.process.stdout:  # type: ignore[union-attr]
                console.print(line.decode(errors="replace").rstrip(), markup=False)
            if self._closing:
                return
            logger.warning("the W&B mirror ended (exit code %d)", self.process.wait())
            time.sleep(1)
            if self._closing:
                return
            self._start()


def wandb_mode(config: TrackingConfig) -> str:
    """online, offline or disabled: WANDB_MODE, else tracking.wandb.

    Raises:
        UserError: WANDB_MODE is something else.
    """
    mode = os.environ.get("WANDB_MODE") or config.wandb
    mode = {"run": "online", "dryrun": "offline"}.get(mode, mode)  # wandb's older words
    if mode not in ("online", "offline", "disabled"):
        raise UserError(f"WANDB_MODE is {mode!r} and must be online, offline or disabled.")
    return mode


def run_id(run_dir: Path) -> str:
    """Id of the W&B run: WANDB_RUN_ID, else that of the run folder, else a new one; it is in wandb_run.json then."""
    file = run_dir / "wandb_run.json"
    try:
        kept = json.loads(file.read_text())["id"]
    except (OSError, ValueError, KeyError, TypeError):
        kept = ""
    wanted = os.environ.get("WANDB_RUN_ID") or kept or secrets.token_hex(4)
    if wanted != kept:
        write_atomically(file, json.dumps({"id": wanted}).encode())
    return wanted


def how_to_sync(run_dir: Path) -> str:
    """The command that sends what W&B does not have yet of a run."""
    place = run_dir.relative_to(Path.cwd()) if run_dir.is_relative_to(Path.cwd()) else run_dir
    return f"python -m tinyimnet sync {place}"
