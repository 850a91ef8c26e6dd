"""Checkpoints: written atomically, verified when read, with a fall-back to the newest good one.

<run>/checkpoints/step_00001234.pt     torch.save of a dictionary of tensors and numbers
<run>/checkpoints/step_00001234.json   step, epoch, sha256: written last, so a .pt without it is no checkpoint
<run>/checkpoints/best.pt, best.json   the best one so far by val/ema_top1
"""

import hashlib
import io
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from tinyimnet.errors import UserError
from tinyimnet.files import sync, write_atomically

logger = logging.getLogger(__name__)


def save(folder: Path, state: dict[str, Any], *, step: int, epoch: int, keep: int, best: bool) -> Path:
    """Write the checkpoint of `step` and remove all but the newest `keep`; call it on one process.

    Args:
        folder: <run>/checkpoints.
        state: tensors, numbers, strings and containers of them (`torch.load(weights_only=True)` must take it).
        step: optimizer steps done.
        epoch: whole epochs done.
        keep: checkpoints kept, best.pt not counted.
        best: this one is also the best.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    path = folder / f"step_{step:08d}.pt"
    note = {"step": step, "epoch": epoch, "sha256": hashlib.sha256(content).hexdigest()}
    write_atomically(path, content)
    write_atomically(path.with_suffix(".json"), json.dumps(note).encode())
    if best:
        for suffix in (".pt", ".json"):
            _copy(path.with_suffix(suffix), folder / f"best{suffix}")
        sync(folder)
    for old in sorted(folder.glob("step_*.json"))[:-keep]:
        old.unlink()  # the note first: what remains after a crash is no checkpoint
        old.with_suffix(".pt").unlink(missing_ok=True)
    return path


def _copy(source: Path, target: Path) -> None:
    partial = target.with_name(f".{target.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:  # no hard links on this file system
        shutil.copy(source, partial)
    os.replace(partial, target)


def load_newest(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that is whole, on the CPU; None where there never was one.

    A damaged one is named in a warning and passed over.

    Raises:
        UserError: there are checkpoints and all of them are damaged.
    """
    notes = sorted(folder.glob("step_*.json"), reverse=True)
    if (folder / "best.json").exists():
        notes.append(folder / "best.json")
    for note in notes:
        try:
            return load(note.with_suffix(".pt"))
        except UserError as error:
            logger.warning("%s", error)
    if notes:
        raise UserError(
            f"all {len(notes)} checkpoints in {folder} are damaged; restore one from a backup, "
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
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes json, pickle or torch raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"checkpoint {path} is damaged ({reason}); an earlier one is needed.") from error
