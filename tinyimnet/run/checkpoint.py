"""Checkpoints: written atomically in the background, verified on load, with fallback to the newest intact one.

<run>/checkpoints/step_00001234.pt     torch.save of the state from training/state.py: step, weights, EMA, optimizer,
                                       fp16 scaler, best accuracy, metadata, micro-batch size, per-rank state
<run>/checkpoints/step_00001234.json   step, sha256
<run>/checkpoints/best.pt, best.json   the best checkpoint so far by val/ema_top1

The .json is renamed into place before the .pt and removed after it. A .pt is therefore valid as soon as it exists, and
a .pt without its .json is damaged.
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
from tinyimnet.files import matching, read_bytes, read_text, write_atomically
from tinyimnet.run.folder import SAVED, checkpoint_path, checkpoint_steps, mark

logger = logging.getLogger(__name__)


def save(folder: Path, state: dict[str, Any], *, step: int, keep: int, best: bool) -> Path:
    """Write the checkpoint of `step` and remove all but the newest `keep`; call on one process.

    Args:
        folder: <run>/checkpoints.
        state: tensors, numbers, strings and containers of them, which `torch.load(weights_only=True)` must accept.
        step: optimizer steps done.
        keep: number of checkpoints to keep, not counting best.pt.
        best: also write it as best.pt.

    Raises:
        OSError: the write failed; the earlier checkpoints are intact.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    note = json.dumps({"step": step, "sha256": hashlib.sha256(content).hexdigest()})
    # best.pt first: if the process is killed in between, the run resumes before this step and writes both again.
    for path in ([folder / "best.pt"] if best else []) + [checkpoint_path(folder, step)]:
        write_atomically(path.with_suffix(".json"), note.encode())
        write_atomically(path, content)
    for old in checkpoint_steps(folder)[:-keep]:
        checkpoint_path(folder, old).unlink()
        checkpoint_path(folder, old).with_suffix(".json").unlink(missing_ok=True)
    return checkpoint_path(folder, step)


class Saver:
    """Write checkpoints in a background thread, one at a time; a failed save does not end the run.

    Args:
        folder: <run>/checkpoints.
        keep: run.keep_checkpoints.
        before: called in the thread before each write; an exception in it fails the save.

    Attributes:
        failed: number of failed saves in this attempt.
    """

    def __init__(self, folder: Path, *, keep: int, before: Callable[[], None]):
        self.folder, self.keep, self.before = folder, keep, before
        self.failed = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._in_flight: Future[None] | None = None
        # Kept until they are on disk: the newest checkpoint and the best one.
        self._unwritten: dict[str, Any] = {}
        self._unwritten_best: dict[str, Any] = {}

    def submit(self, state: dict[str, Any], copied: Callable[[], None], *, step: int, best: bool) -> None:
        """Start writing `state`, which is complete once `copied` returns; the other arguments are those of `save`.

        Raises:
            RuntimeError: the previous save was not collected with `collect`.
        """
        if self._in_flight:
            raise RuntimeError("a checkpoint is still being written")
        job = {"state": state, "step": step, "best": best}
        self._in_flight = self._thread.submit(self._write, job, copied)

    def retry(self) -> None:
        """Start writing the last checkpoint again after its save failed."""
        self._in_flight = self._thread.submit(self._write, self._unwritten, lambda: None)

    def collect(self, *, wait: bool) -> str:
        """Return why the save in flight failed, or "" if it did not; `wait` blocks until that save ends.

        Raises:
            UserError: another process has taken over the run folder.
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
        """Wait for the save in flight, whether or not it succeeds."""
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
        if not (self.folder.parent / SAVED).exists():
            mark(self.folder.parent, SAVED, json.dumps({"step": job["step"]}))
        self._unwritten, self._unwritten_best = {}, {}


def exists(folder: Path) -> bool:
    """Whether the folder has any checkpoint, intact or damaged."""
    return bool(matching(folder, "*.pt"))


def remove_leftovers(folder: Path, step: int) -> None:
    """Clean up after a killed save or removal, before an attempt that resumes from `step`.

    Checkpoints of later steps were skipped as damaged and are renamed to *.damaged. Otherwise they would count as the
    newest ones, and each new checkpoint would be removed as soon as it is written.
    """
    for later in checkpoint_steps(folder):
        if later > step:
            path = checkpoint_path(folder, later)
            path.rename(path.with_suffix(".pt.damaged"))
    for partial in matching(folder, ".*.partial"):
        partial.unlink()
    for note in matching(folder, "*.json"):
        if not note.with_suffix(".pt").exists():
            note.unlink()


def load_newest(folder: Path) -> dict[str, Any] | None:
    """Load the newest intact checkpoint to the CPU; None if the folder has no checkpoints.

    Damaged checkpoints are skipped with a warning.

    Raises:
        UserError: all checkpoints are damaged.
    """
    paths = [checkpoint_path(folder, step) for step in reversed(checkpoint_steps(folder))]
    paths += matching(folder, "best.pt")
    for path in paths:
        try:
            return load(path)
        except UserError as error:
            logger.warning("%s", error)
    if paths:
        raise UserError(
            f"all {len(paths)} checkpoints in {folder} are damaged; restore one from a backup, "
            "or start over in another --run.dir."
        )
    return None


def load(path: Path) -> dict[str, Any]:
    """Load one checkpoint to the CPU after verifying its sha256; no code in the file is executed.

    Raises:
        UserError: the checkpoint is missing, truncated or altered.
        PermissionError: it is not for this user to read.
    """
    try:
        note = json.loads(read_text(path.with_suffix(".json")))
        content = read_bytes(path)
        if hashlib.sha256(content).hexdigest() != note["sha256"]:
            raise ValueError("its sha256 does not match its .json")
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError("it does not contain a dictionary")
        return state
    except PermissionError:  # not damaged: an earlier checkpoint would cost the work since then
        raise
    except Exception as error:  # on a damaged file json, pickle and torch can raise almost anything
        raise UserError(f"checkpoint {path} is damaged ({one_line(error)}); an earlier one is needed.") from error
