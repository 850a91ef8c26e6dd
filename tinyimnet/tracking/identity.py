"""The W&B run of a run folder: its id, and the folders that it has had, in RUN/wandb_run.json.

The folders tell a moved run folder, which keeps its W&B run, from a copy, which needs one of its own.
"""

import json
import logging
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinyimnet.errors import UserError
from tinyimnet.files import write_atomically

logger = logging.getLogger(__name__)
NOTE = "wandb_run.json"
FOLDER = "run_folder"  # the key of the W&B run's configuration that has the folder
# wandb accepts more, but a slash or a space breaks requests, and "model-" + id has to be the name of an artifact, of at
# most 128 characters (wandb 0.31).
VALID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,121}")


def run_id(run_dir: Path) -> str:
    """Id of the W&B run, saved in wandb_run.json: WANDB_RUN_ID if it is set, else the saved id, else a new one.

    Raises:
        UserError: WANDB_RUN_ID is invalid or belongs to another run folder.
    """
    before, after = read_note(run_dir), identify(run_dir)
    if after != before:
        write_atomically(run_dir / NOTE, json.dumps(after).encode())
    if (original := copied_from(run_dir, before)) and after["id"] != before["id"]:
        logger.warning("%s is a copy of %s, which keeps W&B run %s; the copy is W&B run %s",
                       run_dir, original, before["id"], after["id"])  # fmt: skip
    return after["id"]


def identify(run_dir: Path) -> dict[str, Any]:
    """What wandb_run.json has to contain when an attempt starts; writes nothing.

    Raises:
        UserError: WANDB_RUN_ID is invalid or belongs to another run folder.
    """
    note, here = read_note(run_dir), str(run_dir.resolve())
    given, original = os.environ.get("WANDB_RUN_ID"), copied_from(run_dir, note)
    if given and not VALID.fullmatch(given):
        raise UserError(
            f"WANDB_RUN_ID is {given!r} and must be 1 to 122 letters, digits, dots, dashes and underscores, without a "
            "dot or a dash at the beginning."
        )
    if given and (original or given != note.get("id")):
        for other in filter(None, (original, *neighbours(run_dir))):
            if read_note(other).get("id") == given:
                raise belongs_to(given, str(other))
        return {"id": given, "folders": [here]}
    if original or not note.get("id"):
        return {"id": secrets.token_hex(4), "folders": [here]}
    return note | {"folders": [*(folder for folder in folders(note) if folder != here), here]}


def belongs_to(id: str, owner: str) -> UserError:
    """The error about a W&B run that is not of this folder."""
    return UserError(f"W&B run {id} belongs to {owner}; choose another id for this run folder with WANDB_RUN_ID.")


def copied_from(run_dir: Path, note: dict[str, Any]) -> Path | None:
    """The folder of which `run_dir` is a copy: its note names that folder, which still has the same id.

    If that folder is gone, `run_dir` was moved.
    """
    for folder in map(Path, folders(note)[-1:]):
        try:
            if folder.samefile(run_dir):  # through a link or a second mount point
                return None
            return folder if json.loads((folder / NOTE).read_text(encoding="utf-8"))["id"] == note["id"] else None
        except PermissionError:  # someone else's
            return folder
        except (OSError, ValueError, KeyError, TypeError):
            return None
    return None


def neighbours(run_dir: Path) -> Iterator[Path]:
    """The other run folders beside this one."""
    for file in sorted(run_dir.parent.glob(f"*/{NOTE}")):
        if file.parent.resolve() != run_dir.resolve():
            yield file.parent


def folders(note: dict[str, Any]) -> list[str]:
    """The folders that a run has had, the latest last."""
    return [folder for folder in note.get("folders") or [] if isinstance(folder, str)]


def read_note(run_dir: Path) -> dict[str, Any]:
    """The contents of wandb_run.json; empty if it is missing, damaged or without an id."""
    try:
        note = json.loads((run_dir / NOTE).read_text(encoding="utf-8"))
        return note if note["id"] else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
