"""What W&B has of a run: on the server, and in local records of its attempts, read with wandb's own reader.

RUN/wandb/run-<time>-<id>           record of an online attempt
RUN/wandb/offline-run-<time>-<id>   record of an offline attempt
"""

import json
import subprocess
from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from tinyimnet.files import read_lines, read_text
from tinyimnet.run.metrics import STEP
from tinyimnet.tracking import isolate
from tinyimnet.tracking.identity import FOLDER, belongs_to, folders, read_note

ANSWER = 20  # seconds that the server has to answer
KILLED = 137  # exit code for an attempt that did not report one; the shell's code for SIGKILL


@dataclass
class Uploaded:
    """What W&B has of a run.

    Attributes:
        steps: global steps of its rows.
        keys: names in its summary.
        final: optimizer steps of the final weights that it has; 0 if it has none.
        url: URL of the run.
        folder: run folder whose rows these are, if the run says so.
    """

    steps: set[float] = field(default_factory=set)
    keys: Set[str] = frozenset()
    final: int = 0
    url: str = ""
    folder: str | None = None

    def is_complete(self, run_dir: Path) -> bool:
        """Whether W&B has every row of the run folder and, for a finished run, the final weights."""
        rows = steps_of(read_lines(run_dir / "metrics.jsonl"))
        return rows <= self.steps and final_step(run_dir) in (0, self.final)

    def check_owner(self, run_dir: Path, id: str) -> None:
        """Raise a UserError if W&B run `id`, of which this is what the server has, belongs to another folder."""
        note = read_note(run_dir)
        if self.folder and self.folder not in {*folders(note), str(run_dir.resolve())}:
            raise belongs_to(id, self.folder)
        # "url": this folder has been connected to the run, by a version that did not send the folder.
        logged = any(not key.startswith("_") for key in self.keys)  # "_runtime" is there from the start
        if logged and not self.folder and not (note.get("id") == id and "url" in note):
            raise belongs_to(id, "another program")


def final_step(run_dir: Path) -> int:
    """Optimizer steps of final.safetensors; 0 until the run is finished."""
    done = run_dir / "DONE"
    return json.loads(read_text(done))["steps"] if done.exists() else 0


def send_lock(run_dir: Path) -> TextIO:
    """Open the file to lock (files.lock) while uploading, so that rows are not uploaded twice; not the run's LOCK."""
    (run_dir / "wandb").mkdir(exist_ok=True)
    return (run_dir / "wandb" / "turn").open("a", encoding="utf-8")


def on_server(entity: str | None, project: str, id: str, *, rows: bool = True, timeout: float = ANSWER) -> Uploaded:
    """What the server has of a run; empty if it has no such run.

    Args:
        entity: user or team; None for the one that wandb.init would choose.
        project: project.
        id: id of the run.
        rows: whether to ask for rows and weights too, which takes more than one request.
        timeout: seconds that the server has for each answer.

    Raises:
        wandb.errors.Error: the server does not answer.
    """
    import wandb

    api = wandb.Api(timeout=max(1, round(timeout)))
    try:
        run = api.run(f"{entity or api.settings['entity'] or api.default_entity}/{project}/{id}")
    except wandb.errors.CommError as error:
        if "not find run" in str(error):
            return Uploaded()
        raise
    has = Uploaded(keys=set(run.summary.keys()), url=run.url, folder=run.config.get(FOLDER))
    if rows:
        models = [model for model in run.logged_artifacts() if model.type == "model" and "final" in model.aliases]
        has.steps = steps_of(run.scan_history(keys=[STEP]))
        has.final = max((model.metadata.get("steps", 0) for model in models), default=0)
    return has


def recorded(run_dir: Path, run: str) -> Uploaded:
    """What the local records contain of the W&B run with this id."""
    uploaded = Uploaded()
    for line in (line for record in records(run_dir, run) for line in inspect(record)):
        if line["type"] == "history":
            uploaded.steps |= steps_of([line["history"]["item"]])
            uploaded.keys |= {name.partition(".")[0] for name in line["history"]["item"]}
        elif line["type"] == "artifact" and "final" in line["artifact"]["aliases"]:
            uploaded.final = json.loads(line["artifact"]["metadata"]).get("steps", 0)
    return uploaded


def records(run_dir: Path, run: str, *, offline: bool = False) -> list[Path]:
    """Record folders of the W&B run with this id, oldest first; with `offline`, only those of offline attempts."""
    found = (run_dir / "wandb").glob(f"{'offline-' if offline else '*'}run-*-{run}")
    return sorted(found, key=lambda folder: folder.name.removeprefix("offline-"))


def rows_of(record: Path) -> list[dict[str, Any]]:
    """Rows in a record, even of a killed attempt; nested keys are joined with dots."""
    return [line["history"]["item"] for line in inspect(record) if line["type"] == "history"]


def steps_of(rows: Iterable[dict[str, Any]]) -> set[float]:
    """Global steps of rows; rows of images and tables have none."""
    return {row[STEP] for row in rows if STEP in row}


def exit_code_of(record: Path) -> int:
    """Exit code of the training in a record; KILLED if it has none."""
    codes = [line["exit"].get("exit_code", 0) for line in inspect(record) if line["type"] == "exit"]
    return codes[-1] if codes else KILLED


def inspect(record: Path) -> list[dict[str, Any]]:
    """Lines of a record."""
    command = isolate.command("wandb", "leet", "inspect", "--json", str(record))
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, stdin=subprocess.DEVNULL)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
