"""Metrics: metrics.jsonl in the run folder, always, and Weights & Biases, which never asks and never stops a run.

The only file that imports wandb.
"""

import json
import logging
import netrc
import os
import secrets
import subprocess
import threading
from contextlib import suppress
from dataclasses import asdict
from io import FileIO
from pathlib import Path
from typing import Any

from tinyimnet.config import Config, TrackingConfig
from tinyimnet.files import write_atomically

logger = logging.getLogger(__name__)
STEP = "trainer/global_step"


class Tracker:
    """One line for each logged step, on the main process; on the others every method does nothing.

    Args:
        run_dir: the run folder.
        config: where W&B goes.
        facts: what W&B stores as the run's configuration.
        enabled: this process is the main one.
    """

    def __init__(self, run_dir: Path, config: TrackingConfig, facts: dict[str, Any], *, enabled: bool):
        self.file = run_dir / "metrics.jsonl"
        self.enabled = enabled
        self._wandb = _start_wandb(run_dir, config, facts) if enabled else None
        self._in_wandb = 0.0
        self._lines: FileIO | None = None
        self._unwritten = b""
        self._writing = threading.Lock()  # the thread that saves checkpoints calls `sync`

    def rewind(self, step: int) -> None:
        """Drop what was logged after `step`: a resumed run replays those steps, with the same values.

        Raises:
            OSError: the file cannot be written.
        """
        if not self.enabled:
            return
        lines = read_metrics(self.file)
        # Replayed steps are in W&B already; rows can be added there, not replaced.
        self._in_wandb = max((line[STEP] for line in lines), default=0)
        kept = [json.dumps(line) + "\n" for line in lines if line[STEP] <= step]
        write_atomically(self.file, "".join(kept).encode())
        self._lines = self.file.open("ab", buffering=0)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record values under a global step; calls come in the order of the steps.

        What a full disk does not take is kept and written with a later line.
        """
        if not self._lines:
            return
        line = {STEP: step, **values}
        with self._writing:
            self._unwritten += json.dumps(line).encode() + b"\n"
        with suppress(OSError):  # the next checkpoint fails on it too, which is reported
            self._write()
        if self._wandb and step > self._in_wandb:
            self._call_wandb("log", line)

    def sync(self) -> None:
        """Put the lines on disk, before a checkpoint that they belong to; safe in another thread.

        Raises:
            OSError: they are not on disk.
        """
        if self._lines:
            self._write()
            os.fsync(self._lines.fileno())

    def alert(self, title: str, text: str) -> None:
        """Send a W&B alert, at most one of a title in five minutes; the log has it in any case."""
        logger.warning("%s: %s", title, text)
        self._call_wandb("alert", title=title, text=text, level="WARN", wait_duration=300)

    def close(self, exit_code: int) -> None:
        """End the W&B run (it waits for the upload at most a minute) and close the file."""
        if self._lines:
            self._lines.close()
        self._call_wandb("finish", exit_code=exit_code)

    def _write(self) -> None:
        with self._writing:
            while self._unwritten and self._lines:
                written = self._lines.write(self._unwritten)
                self._unwritten = self._unwritten[written:]

    def _call_wandb(self, method: str, *arguments: Any, **options: Any) -> None:
        if not self._wandb:
            return
        try:
            getattr(self._wandb, method)(*arguments, **options)
        except Exception as error:  # OSError from a killed wandb-core, wandb.Error and more
            logger.warning("W&B stopped (%s); metrics go on in %s.", " ".join(str(error).split()), self.file)
            self._wandb = None


def read_metrics(file: Path) -> list[dict[str, float]]:
    """The whole lines of a metrics.jsonl; a crash may have left half a line at the end."""
    lines = []
    for text in file.read_text().splitlines() if file.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def facts(config: Config, processes: int, device: str) -> dict[str, Any]:
    """What is worth knowing about a run besides its metrics."""
    return {**asdict(config), "git_commit": git_commit(), "world_size": processes, "device": device}


def git_commit() -> str:
    """Commit of the code that runs: of the copy that launch.submit made, or of the checkout; else empty."""
    snapshot = Path(__file__).parent.parent / "COMMIT"
    if snapshot.exists():
        return snapshot.read_text().strip()
    try:
        command = ["git", "rev-parse", "HEAD"]
        return subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True
        ).stdout.strip()
    except OSError:
        return ""


def _start_wandb(run_dir: Path, config: TrackingConfig, facts: dict[str, Any]) -> Any:
    """A W&B run, or None. Tries the wanted mode, then offline, then goes without."""
    mode = os.environ.get("WANDB_MODE") or config.wandb
    if mode == "disabled":
        return None
    import wandb

    if mode in ("auto", "online") and not _has_key():
        if mode == "online":
            logger.warning(
                "tracking.wandb is online and there is no W&B key: going offline (`wandb login` sets one)."
            )
        mode = "offline"  # without a key wandb would ask on a terminal, and wait for ever
    identity = run_dir / "wandb_run.json"
    try:
        run_id = json.loads(identity.read_text())["id"]
    except (OSError, ValueError, KeyError):
        run_id = secrets.token_hex(4)
        write_atomically(identity, json.dumps({"id": run_id}).encode())
    settings = {
        "init_timeout": 20,
        "finish_timeout": 60,
        "x_transaction_log_flush_interval": 2.0,
        "silent": True,
    }
    attempts: Any = dict.fromkeys(["online" if mode == "auto" else mode, "offline"])
    for attempt in attempts:
        try:
            run = wandb.init(
                project=config.project, name=run_dir.name, id=run_id, resume="allow", dir=run_dir, config=facts,
                mode=attempt, settings=settings,
            )  # fmt: skip
            run.define_metric(STEP)
            run.define_metric("*", step_metric=STEP)
            if run.url:  # none offline; launch.status shows it
                write_atomically(identity, json.dumps({"id": run_id, "url": run.url}).encode())
            return run
        except Exception as error:
            logger.warning("W&B %s did not start: %s", attempt, " ".join(str(error).split()))
            try:
                wandb.teardown()  # else the next init says that the id is in use
            except Exception as teardown_error:
                logger.debug("wandb.teardown: %s", teardown_error)
    return None


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return any("wandb" in host or "coreweave" in host for host in netrc.netrc().hosts)
    except (OSError, netrc.NetrcParseError):
        return False
