"""What a run folder says, for its report: no torch, and nothing is written.

Every file but config.yaml and metrics.jsonl may be missing: of an unfinished run, or one without an evaluation.
"""

import csv
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from tinyimnet import lock
from tinyimnet.config import flatten
from tinyimnet.errors import UserError, one_line
from tinyimnet.files import read_lines
from tinyimnet.tracking import STEP


@dataclass(frozen=True)
class Record:
    """A run.

    Attributes:
        path: the folder.
        settings: the configuration, as {"optim.lr": 0.5}.
        lines: of metrics.jsonl, at least one.
        lives: of lives.jsonl, one for each start.
        facts: of facts.json.
        results: of DONE; empty while the run is not finished.
        url: of the W&B run, or empty.
        wandb_id: of the W&B run, or empty.
    """

    path: Path
    settings: dict[str, Any]
    lines: list[dict[str, float]]
    lives: list[dict[str, Any]]
    facts: dict[str, Any]
    results: dict[str, Any]
    url: str
    wandb_id: str

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.path.name

    @property
    def steps_per_epoch(self) -> float:
        """As the lines have it; 0: they do not."""
        line = self.lines[-1]
        return round(line[STEP] / line["epoch"], 6) if line.get("epoch") else 0

    @property
    def parameters(self) -> int:
        """Of the network; 0: not known."""
        return self.facts.get("parameters") or self.results.get("parameters") or 0

    @property
    def training_seconds(self) -> float:
        """Time in steps and evaluations that became part of the result; a replay counts once."""
        seconds, before = 0.0, 0.0
        for line in self.lines:
            seconds += line.get("perf/step_ms", 0) / 1000 * (line[STEP] - before) + line.get("perf/eval_s", 0)
            before = line[STEP]
        return seconds

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and values of a metric."""
        lines = [line for line in self.lines if key in line]
        return [line[STEP] for line in lines], [line[key] for line in lines]

    def last(self, key: str) -> float | None:
        """The newest value of a metric; None: it was never logged."""
        return next((line[key] for line in reversed(self.lines) if key in line), None)

    def starts(self) -> list[tuple[float, int]]:
        """Step and number of each life but the first; of lives that began at one step, the last."""
        begun = {life["step"]: i for i, life in enumerate(self.lives, 1)}
        return [(step, life) for step, life in begun.items() if step]

    def state(self) -> tuple[str, str]:
        """One word, and a few on it."""
        logged, saved = int(self.lines[-1][STEP]), self._saved()
        total = self.lives[-1]["total_steps"] if self.lives else self.facts.get("total_steps")
        of = f" of {total:,}" if total else ""
        goes_on = f"the same command goes on from step {saved:,}" if saved else "it has no checkpoint"
        step = max(logged, saved)
        if self.results:
            return "finished", f"{logged:,} steps"
        if lock.is_held(self.path):
            return "running", f"at step {logged:,}{of}"
        if (self.path / "LOCK").exists():
            return "killed", f"after step {logged:,}{of}; {goes_on}"
        if _failed(self.path / "logs" / "rank_0.log"):
            return "failed", f"after step {logged:,}{of}; logs/rank_0.log says why; {goes_on}"
        if (self.path / "REQUEUE").exists():
            return "stopped", f"by its scheduler at step {step:,}{of}, to be started again; {goes_on}"
        return "stopped", f"at step {step:,}{of}; {goes_on}"

    def _saved(self) -> int:
        """Step of the newest checkpoint; 0: there is none."""
        found = sorted((self.path / "checkpoints").glob("step_*.pt"))
        return int(found[-1].stem.removeprefix("step_")) if found else 0


def read_record(path: Path) -> Record:
    """Read a run folder.

    Raises:
        UserError: it is none, has no metrics yet, or a file in it is damaged.
    """
    file = path / "config.yaml"
    if not file.is_file():
        raise UserError(f"{path} is not a run folder: it has no config.yaml; name one, such as runs/smoke.")
    try:
        settings = flatten(yaml.safe_load(file.read_text()))
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"{file} is damaged ({one_line(error)}); restore it.") from None
    lines = [line for line in read_lines(path / "metrics.jsonl") if STEP in line]
    if not lines:
        raise UserError(
            f"{path} has no line in metrics.jsonl yet; the first one comes after run.log_every "
            f"({settings.get('run.log_every')}) steps: wait for it, or start the run."
        )
    wandb = read_object(path / "wandb_run.json")
    return Record(
        path=path,
        settings=settings,
        lines=lines,
        lives=read_lines(path / "lives.jsonl"),
        facts=read_object(path / "facts.json"),
        results=read_object(path / "DONE"),
        url=str(wandb.get("url") or ""),
        wandb_id=str(wandb.get("id") or ""),
    )


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no file.

    Raises:
        UserError: it is something else.
    """
    if not file.exists():
        return {}
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{file} is damaged ({error}); restore it or delete it.") from None


def read_table(file: Path, *columns: str) -> list[dict[str, str]]:
    """The rows of a CSV file; none where there is no file.

    Raises:
        UserError: it lacks a column.
    """
    if not file.exists():
        return []
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    for column in columns:
        if any(not row.get(column) for row in rows):
            raise UserError(
                f"{file} is damaged (column {column}); write it again: python -m tinyimnet evaluate "
                f"{file.parent.parent}."
            )
    return rows


def clock(seconds: float) -> str:
    """Seconds as 1:02:03."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def moment(seconds: float) -> str:
    """A unix time in the zone of this machine."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def _failed(log: Path) -> bool:
    """Whether the last life ended by an error: errors.run writes one of two sentences."""
    if not log.exists():
        return False
    last_life = log.read_text(errors="replace").rpartition(" INFO rank 0 of ")[2]
    return "ended by an error: " in last_life or " ERROR rank 0" in last_life
