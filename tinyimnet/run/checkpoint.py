"""Checkpoints: written atomically and beside the training, verified when read, with a fall-back to the newest good one.

<run>/checkpoints/step_00001234.pt     torch.save of what training/state.py collects: step, weights, their average, optimizer,
                                       fp16 scaler, best accuracy, metadata, micro-batch size, and what each rank has of
                                       its own
<run>/checkpoints/step_00001234.json   step, sha256
<run>/checkpoints/best.pt, best.json   the best one so far by val/ema_top1

The .json is renamed into place first and removed last, so that a .pt is a checkpoint from the moment it is there, and
one without its .json is damaged.
"""

import hashlib
import io
import json
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from tinyimnet.errors import UserError, one_line
from tinyimnet.files import write_atomically
from tinyimnet.run.folder import checkpoint_path, checkpoint_steps

logger = logging.getLogger(__name__)


def save(folder: Path, state: dict[str, Any], *, step: int, keep: int, best: bool) -> Path:
    """Write the checkpoint of `step` and remove all but the newest `keep`; call it on one process.

    Args:
        folder: <run>/checkpoints.
        state: tensors, numbers, strings and containers of them (`torch.load(weights_only=True)` must take it).
        step: optimizer steps done.
        keep: checkpoints kept, best.pt not counted.
        best: this one is also the best.

    Raises:
        OSError: it was not written; the earlier ones are as they were.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    note = json.dumps({"step": step, "sha256": hashlib.sha256(content).hexdigest()})
    # The best first: killed in between, the run goes on from before this step, evaluates again and repeats both.
    for path in ([folder / "best.pt"] if best else []) + [checkpoint_path(folder, step)]:
        write_atomically(path.with_suffix(".json"), note.encode())
        write_atomically(path, content)
    for old in checkpoint_steps(folder)[:-keep]:
        checkpoint_path(folder, old).unlink()
        checkpoint_path(folder, old).with_suffix(".json").unlink(missing_ok=True)
    return checkpoint_path(folder, step)


class Saver:
    """Writes checkpoints in a thread beside the training, one at a time; a save that fails does not end the run.

    Args:
        folder: <run>/checkpoints.
        keep: run.keep_checkpoints.
        before: called in the thread ahead of each write; what it raises fails the save.

    Attributes:
        failed: saves that failed in this attempt of the run.
    """

    def __init__(self, folder: Path, *, keep: int, before: Callable[[], None]):
        self.folder, self.keep, self.before = folder, keep, before
        self.failed = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._in_flight: Future[None] | None = None
        # Where writing them failed: the newest one, and the best one.
        self._unwritten: dict[str, Any] = {}
        self._unwritten_best: dict[str, Any] = {}

    def submit(self, state: dict[str, Any], copied: Callable[[], None], *, step: int, best: bool) -> None:
        """Start to write `state`, which is whole when `copied` returns; see `save`. The one before it was `collect`ed."""
        if self._in_flight:
            raise RuntimeError("a checkpoint is still being written")
        job = {"state": state, "step": step, "best": best}
        self._in_flight = self._thread.submit(self._write, job, copied)

    def retry(self) -> None:
        """Start to write the last one again, which failed."""
        self._in_flight = self._thread.submit(self._write, self._unwritten, lambda: None)

    def collect(self, *, wait: bool) -> str:
        """Why the save in flight failed, if it did; with `wait` after waiting for its end.

        Raises:
            UserError: the run folder belongs to another process by now.
        """
        if not self._in_flight or not (wait or self._in_flight.done()):
            return ""
        in_flight, self._in_flight = self._in_flight, None
        try:
            in_flight.result()
        except OSError as error:
            self.failed += 1
            return error.strerror or str(error)
        return ""

    def close(self) -> None:
        """Wait for the save in flight, whatever comes of it."""
        self._thread.shutdown(wait=True)

    def _write(self, job: dict[str, Any], copied: Callable[[], None]) -> None:
        copied()
        self._unwritten = job
        if job["best"]:
            self._unwritten_best = job
        self.before()
        if self._unwritten_best:
            save(self.folder, **self._unwritten_best, keep=self.keep)
        if self._unwritten_best is not job:
            save(self.folder, **job, keep=self.keep)
        self._unwritten, self._unwritten_best = {}, {}


def exists(folder: Path) -> bool:
    """Whether there is any checkpoint, good or damaged."""
    return any(folder.glob("*.pt"))


def remove_leftovers(folder: Path, step: int) -> None:
    """Remove what a save or a removal that was killed left behind, ahead of an attempt that goes on from `step`.

    Checkpoints of later steps were passed over as damaged. They become *.damaged: as the newest ones they would stay, and
    each new one be removed as soon as it is written.
    """
    for later in checkpoint_steps(folder):
        if later > step:
            path = checkpoint_path(folder, later)
            path.rename(path.with_suffix(".pt.damaged"))
    for partial in folder.glob(".*.partial"):
        partial.unlink()
    for note in folder.glob("*.json"):
        if not note.with_suffix(".pt").exists():
            note.unlink()


def load_newest(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that is whole, on the CPU; None where there never was one.

    A damaged one is named in a warning and passed over.

    Raises:
        UserError: there are checkpoints and all of them are damaged.
    """
    paths = [checkpoint_path(folder, step) for step in reversed(checkpoint_steps(folder))]
    if (folder / "best.pt").exists():
        paths.append(folder / "best.pt")
    for path in paths:
        try:
            return load(path)
        except UserError as error:
            logger.warning("%s", error)
    if paths:
        raise UserError(
            f"all {len(paths)} checkpoints in {folder} are damaged; restore one from a backup, "
            "or start in another --run.dir."
        )
    return None


def load(path: Path) -> dict[str, Any]:
    """Read one checkpoint after a check of its sha256; no code in it is run.

    Raises:
        UserError: missing, truncated or altered.
    """
    try:
        note = json.loads(path.with_suffix(".json").read_text())
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != note["sha256"]:
            raise ValueError("its sha256 is not that of its .json")
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError("it does not hold a dictionary")
        return state
    except Exception as error:  # whatever a damaged file makes json, pickle or torch raise
        raise UserError(f"checkpoint {path} is damaged ({one_line(error)}); an earlier one is needed.") from error
