"""What W&B has of a run: its server, and the records of its attempts on this disk, read with the client's own reader.

RUN/wandb/run-<time>-<id>           of an attempt that was connected
RUN/wandb/offline-run-<time>-<id>   of one that was not
"""

import json
import subprocess
import sys
from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from tinyimnet.files import read_lines
from tinyimnet.run.metrics import STEP

ANSWER = 20  # seconds that the server has for an answer
KILLED = 137  # exit code of what ended without a word, as a shell counts SIGKILL


@dataclass
class Uploaded:
    """What W&B has of a run.

    Attributes:
        steps: global steps of its rows.
        keys: names in its summary.
        final: optimizer steps behind the final weights that it has, 0 where it has none.
        url: of the run.
    """

    steps: set[float] = field(default_factory=set)
    keys: Set[str] = frozenset()
    final: int = 0
    url: str = ""

    def is_complete(self, run_dir: Path) -> bool:
        """Whether it has every row of the run folder, and of a finished run the results."""
        rows = steps_of(read_lines(run_dir / "metrics.jsonl"))
        return rows <= self.steps and final_step(run_dir) in (0, self.final)


def final_step(run_dir: Path) -> int:
    """Optimizer steps behind final.safetensors; 0 before the run is finished."""
    done = run_dir / "DONE"
    return json.loads(done.read_text())["steps"] if done.exists() else 0


def send_lock(run_dir: Path) -> TextIO:
    """The file that whoever sends a run locks (files.lock): two would send the same rows. Not the training's LOCK."""
    (run_dir / "wandb").mkdir(exist_ok=True)
    return (run_dir / "wandb" / "turn").open("a")


def on_server(path: str) -> Uploaded:
    """What the server has of the run entity/project/id.

    Raises:
        wandb.errors.CommError: it does not answer.
    """
    import wandb

    try:
        run = wandb.Api(timeout=ANSWER).run(path)
    except wandb.errors.CommError as error:
        if "not find run" in str(error):
            return Uploaded()
        raise
    models = [model for model in run.logged_artifacts() if model.type == "model" and "final" in model.aliases]
    return Uploaded(
        steps=steps_of(run.scan_history(keys=[STEP])),
        keys=set(run.summary.keys()),
        final=max((model.metadata.get("steps", 0) for model in models), default=0),
        url=run.url,
    )


def recorded(run_dir: Path, run: str) -> Uploaded:
    """What the records on this disk hold of the W&B run with this id."""
    uploaded = Uploaded()
    for line in (line for record in records(run_dir, run) for line in inspect(record)):
        if line["type"] == "history":
            uploaded.steps |= steps_of([line["history"]["item"]])
            uploaded.keys |= {name.partition(".")[0] for name in line["history"]["item"]}
        elif line["type"] == "artifact" and "final" in line["artifact"]["aliases"]:
            uploaded.final = json.loads(line["artifact"]["metadata"]).get("steps", 0)
    return uploaded


def records(run_dir: Path, run: str, *, offline: bool = False) -> list[Path]:
    """Folders of the records of the W&B run with this id, the oldest first; or of its offline attempts alone."""
    found = (run_dir / "wandb").glob(f"{'offline-' if offline else '*'}run-*-{run}")
    return sorted(found, key=lambda folder: folder.name.removeprefix("offline-"))


def rows_of(record: Path) -> list[dict[str, Any]]:
    """The rows in a record, also of an attempt that was killed; names of nested values have dots."""
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
