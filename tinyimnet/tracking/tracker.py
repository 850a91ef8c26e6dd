"""Log the metrics of a run to metrics.jsonl in the run folder and, through a mirror process, to Weights & Biases.

The mirror, wandb_mirror.py, follows the run folder and talks to W&B, so that the training never does. A hung server, a
crashed service process or a slow import therefore does not delay a training step.
"""

import json
import logging
import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

from tinyimnet.config import TrackingConfig
from tinyimnet.console import command, console
from tinyimnet.distributed import slurm
from tinyimnet.errors import USER_ERROR, UserError
from tinyimnet.files import read_lines, write_atomically
from tinyimnet.run.metrics import STEP
from tinyimnet.tracking import isolate
from tinyimnet.tracking.identity import identify, run_id
from tinyimnet.tracking.mode import settings_files, wandb_mode

logger = logging.getLogger(__name__)
RESTARTS = 3  # restarts of a mirror that exits by itself
LEAVE = 15  # seconds that a job needs at its end to be requeued
CHECK = 60.0  # seconds for `check_start`, of which the server may take 20
MARGIN = 45  # seconds in addition to tracking.finish_timeout; a mirror that is still starting needs up to 36


class Tracker:
    """Log one line per logged step on the main process; on other ranks, logging is a no-op.

    Args:
        run_dir: run folder.
        config: tracking section of the configuration.
        rank: rank of this process.
        attempt: number of this attempt, counted from 1.
    """

    def __init__(self, run_dir: Path, config: TrackingConfig, *, rank: int = 0, attempt: int = 1):
        self.file = run_dir / "metrics.jsonl"
        self.run_dir, self.config, self.rank, self.attempt = run_dir, config, rank, attempt
        self._mirror: MirrorProcess | None = None
        self._lines: FileIO | None = None
        self._unwritten = b""
        self._writing = threading.Lock()  # the checkpoint thread calls `flush`

    def start(self, step: int, mode: str = "") -> None:
        """Open metrics.jsonl, drop its lines after `step`, and start the mirror.

        The dropped lines are logged again with the same values when their steps are replayed.

        Args:
            step: optimizer steps done before this attempt.
            mode: W&B mode of rank 0, whose node may have other settings; empty for the one of this process.

        Raises:
            OSError: the file cannot be written.
        """
        if self.rank == 0:
            kept = [json.dumps(line) + "\n" for line in read_lines(self.file) if line[STEP] <= step]
            write_atomically(self.file, "".join(kept).encode())
            self._lines = self.file.open("ab", buffering=0)
        mode = mode or wandb_mode(self.config).name
        if mode != "disabled" and (self.rank == 0 or (mode == "online" and self.config.per_rank)):
            self._mirror = MirrorProcess(self.run_dir, mode, self.rank)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Log values under a global step; steps must be in ascending order.

        A line that a full disk does not accept is kept and written with a later line.
        """
        if not self._lines:
            return
        line = {STEP: step, **values, "perf/attempt": self.attempt}
        with self._writing:
            self._unwritten += json.dumps(line).encode() + b"\n"
        with suppress(OSError):  # the next checkpoint fails too, and that is reported
            self._write()

    def flush(self) -> None:
        """Flush the lines to disk before the checkpoint that they belong to; thread-safe.

        Raises:
            OSError: the lines are not on disk.
        """
        if self._lines:
            self._write()
            os.fsync(self._lines.fileno())

    def alert(self, title: str, text: str, *, level: int = logging.WARNING) -> None:
        """Log a message and send it as a W&B alert, at most one per title in five minutes."""
        logger.log(level, "%s: %s", title, text)
        if self._mirror and self.rank == 0:
            name = "INFO" if level == logging.INFO else "WARN"
            self._mirror.tell(alert={"title": title, "text": text, "level": name, "wait_duration": 300})

    def close(self, exit_code: int, *, preempted: bool = False) -> None:
        """Close the file and end the mirror, which has tracking.finish_timeout seconds to upload the rest.

        It has less if the Slurm job ends sooner, because the batch script still has to requeue the job.
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
    """The mirror process that follows the run folder; it is restarted if it exits by itself.

    Args:
        run_dir: run folder with config.yaml.
        mode: online or offline.
        rank: rank of this process; ranks above 0 upload only system metrics.
    """

    def __init__(self, run_dir: Path, mode: str, rank: int):
        if rank == 0:
            run_id(run_dir)  # on disk before anything is uploaded
        self.run_dir = run_dir
        self.command = isolate.command(
            "tinyimnet.tracking.wandb_mirror", str(run_dir),
            f"--mode={mode}", f"--rank={rank}", f"--pid={os.getpid()}",
        )  # fmt: skip
        self._closing = False
        self._start()
        threading.Thread(target=self._listen, name="W&B mirror", daemon=True).start()

    def tell(self, **order: Any) -> None:
        """Send an order to the mirror without waiting; the order is lost if the mirror is gone."""
        with suppress(OSError, ValueError):
            self.process.stdin.write(json.dumps(order).encode() + b"\n")  # type: ignore[union-attr]

    def close(self, timeout: float, **end: Any) -> None:
        """Tell the mirror to upload the rest and exit; kill it after `timeout` seconds."""
        self._closing = True
        self.tell(end=end)
        try:
            if code := self.process.wait(timeout):
                logger.warning("the W&B mirror exited early (exit code %d); upload the missing rows with: %s",
                               code, how_to_sync(self.run_dir))  # fmt: skip
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            logger.warning(
                "the W&B mirror did not finish within %.0f s; upload the missing rows with: %s",
                timeout,
                how_to_sync(self.run_dir),
            )

    def _start(self) -> None:
        # A new session, so that Ctrl-C and the signals a launcher sends to the process group reach only the training.
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
        )
        os.set_blocking(self.process.stdin.fileno(), False)  # type: ignore[union-attr]

    def _listen(self) -> None:
        """Print the lines of the mirror, which are messages for the user, and restart it when it exits."""
        for restarts_left in reversed(range(1 + RESTARTS)):
            for line in self.process.stdout:  # type: ignore[union-attr]
                console.print(line.decode(errors="replace").rstrip())
            if self._closing:
                return
            logger.warning("the W&B mirror exited (exit code %d)", self.process.wait())
            time.sleep(1)
            if self._closing or not restarts_left:
                return
            self._start()


def check_start(config: TrackingConfig, run_dir: Path) -> None:
    """Check, without writing anything, that W&B will record the run and not as another one; call on rank 0.

    Raises:
        UserError: wandb would refuse its settings, or WANDB_RUN_ID belongs to another run folder.
    """
    mode = wandb_mode(config).name
    if mode == "disabled":
        return
    identify(run_dir)
    variables = {name for name in os.environ if name.startswith("WANDB_")} - {"WANDB_MODE"}
    if not variables and not any(file.exists() for file in settings_files()):
        return  # spares the import of wandb, 1 s
    command = isolate.command("tinyimnet.tracking.start_check", str(run_dir), mode, config.project)
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", stdin=subprocess.DEVNULL, timeout=CHECK)
    except subprocess.TimeoutExpired:  # the mirror checks the id again when it connects
        return
    if done.returncode == USER_ERROR:
        raise UserError(done.stderr.strip().splitlines()[-1].removeprefix("error: "))


def how_to_sync(run_dir: Path) -> str:
    """The command that uploads the rows that W&B lacks."""
    return command("sync", run_dir)
