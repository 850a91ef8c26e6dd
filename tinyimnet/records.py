"""What W&B recorded of a run on this disk, one record for each life, read with the client's own reader.

RUN/wandb/run-<time>-<id>           of a life that was connected
RUN/wandb/offline-run-<time>-<id>   of one that was not
"""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tinyimnet.tracking import STEP

KILLED = 137  # exit code of what ended without a word, as a shell counts SIGKILL


def records(run_dir: Path, run: str, *, offline: bool = False) -> list[Path]:
    """Folders of the records of the W&B run with this id, the oldest first; or of its offline lives alone."""
    found = (run_dir / "wandb").glob(f"{'offline-' if offline else '*'}run-*-{run}")
    return sorted(found, key=lambda folder: folder.name.removeprefix("offline-"))


def rows_of(record: Path) -> list[dict[str, Any]]:
    """The rows in a record, also of a life that was killed; names of nested values have dots."""
    return [line["history"]["item"] for line in inspect(record) if line["type"] == "history"]


def steps_of(rows: Iterable[dict[str, Any]]) -> set[float]:
    """Global steps of rows; pictures and tables have none."""
    return {row[STEP] for row in rows if STEP in row}


def exit_code_of(record: Path) -> int:
    """Exit code of the training whose record it is."""
    codes = [line["exit"].get("exit_code", 0) for line in inspect(record) if line["type"] == "exit"]
    return codes[-1] if codes else KILLED


def inspect(record: Path) -> list[dict[str, Any]]:
    """The lines of a record."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(record)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
