"""What a run folder says: the one reader of run folders, for reports, dashboards, status and tables. No torch here.

Nothing is written. Any file may be missing, of a run that has not begun, and any may be damaged, after a crash: then it
says nothing, what is left decides, and `Record.damaged` says so.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tinyimnet.config import NO_RECIPE, flatten
from tinyimnet.errors import UserError, one_line
from tinyimnet.files import read_lines
from tinyimnet.run import lock
from tinyimnet.run.folder import Attempt, newest_step, read_attempts, read_config
from tinyimnet.run.metrics import STEP

T = TypeVar("T")


@dataclass(frozen=True)
class Record:
    """A run.

    Attributes:
        path: the folder.
        config: the configuration, as {"optim.lr": 0.5}; empty where it is missing or damaged.
        lines: of metrics.jsonl, those with a step.
        attempts: the starts of the run.
        info: run_info.json.
        results: DONE.
        finished: whether DONE is there.
        job: job.json, the last submission by launch.submit.
        wandb: wandb_run.json.
        damaged: a sentence for each file that could not be read.
    """

    path: Path
    config: dict[str, Any]
    lines: list[dict[str, float]]
    attempts: list[Attempt]
    info: dict[str, Any]
    results: dict[str, Any]
    finished: bool
    job: dict[str, Any]
    wandb: dict[str, Any]
    damaged: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.path.name

    @property
    def url(self) -> str:
        """Of the W&B run, or empty."""
        return str(self.wandb.get("url") or "")

    @property
    def wandb_id(self) -> str:
        """Of the W&B run, or empty."""
        return str(self.wandb.get("id") or "")

    @property
    def step(self) -> int | None:
        """The last step that is logged, else the one at which the last attempt began; None before the first attempt."""
        if self.lines:
            return int(self.lines[-1][STEP])
        return self.attempts[-1].step if self.attempts else None

    @property
    def total_steps(self) -> int:
        """Of the whole run; 0: not known."""
        return self.attempts[-1].total_steps if self.attempts else self.info.get("total_steps") or 0

    @property
    def steps_per_epoch(self) -> float:
        """As the lines have it; 0: they do not."""
        line = self.lines[-1]
        return round(line[STEP] / line["epoch"], 6) if line.get("epoch") else 0

    @property
    def parameters(self) -> int:
        """Of the network; 0: not known."""
        return self.info.get("parameters") or self.results.get("parameters") or 0

    @property
    def recipe(self) -> tuple[tuple[str, str], ...]:
        """The configuration without what runs of one recipe may differ in, such as the seed."""
        kept = {key: str(value) for key, value in self.config.items() if not key.startswith(NO_RECIPE)}
        return tuple(sorted(kept.items()))

    @property
    def training_seconds(self) -> float:
        """Time in steps and evaluations that became part of the result; a replay counts once."""
        seconds, before = 0.0, 0.0
        for line in self.lines:
            seconds += line.get("perf/step_ms", 0) / 1000 * (line[STEP] - before) + line.get("perf/eval_s", 0)
            before = line[STEP]
        return seconds

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and values of a metric, the oldest first."""
        lines = [line for line in self.lines if key in line]
        return [line[STEP] for line in lines], [line[key] for line in lines]

    def last(self, key: str) -> float | None:
        """The newest value of a metric; None: it was never logged."""
        return next((line[key] for line in reversed(self.lines) if key in line), None)

    def starts(self) -> list[tuple[int, int]]:
        """Step and number of each attempt but the first; of attempts that began at one step, the last."""
        begun = {attempt.step: i for i, attempt in enumerate(self.attempts, 1)}
        return [(step, number) for step, number in begun.items() if step]

    def state(self) -> str:
        """finished, running, killed, failed, stopped, or new: not begun."""
        if self.finished:
            return "finished"
        if lock.is_held(self.path):
            return "running"
        if os.path.exists(self.path / "LOCK"):
            return "killed"
        if os.path.exists(self.path / "ERROR") or _failed(self.path / "logs" / "rank_0.log"):
            return "failed"
        asked = any(os.path.exists(self.path / marker) for marker in ("REQUEUE", "STOP"))
        return "stopped" if self.attempts or self.lines or asked else "new"

    def state_in_words(self) -> str:
        """A few words on the state: up to which step, and what comes next."""
        step, saved = self.step or 0, newest_step(self.path)
        of = f" of {self.total_steps:,}" if self.total_steps else ""
        goes_on = f"the same command goes on from step {saved:,}" if saved else "it has no checkpoint"
        words = {
            "finished": f"{step:,} steps",
            "running": f"at step {step:,}{of}",
            "killed": f"after step {step:,}{of}; {goes_on}",
            "failed": f"after step {step:,}{of}; logs/rank_0.log says why; {goes_on}",
            "stopped": f"at step {max(step, saved):,}{of}; {goes_on}",
            "new": "no attempt has begun",
        }
        if os.path.exists(self.path / "REQUEUE"):
            words["stopped"] = f"by its scheduler {words['stopped']}"
        return words[self.state()]


def read_record(path: Path) -> Record:
    """Read a run folder as it is now."""
    damaged: list[str] = []

    def tolerant(read: Callable[[Path], T], name: str, nothing: T) -> T:
        try:
            return read(path / name)
        except UserError as error:
            damaged.append(str(error))
        except OSError as error:
            damaged.append(f"{path / name} cannot be read ({error.strerror}); mend its permissions.")
        return nothing

    def json_object(name: str) -> dict[str, Any]:
        return tolerant(read_object, name, {})

    no_lines: list[dict[str, Any]] = []
    lines = [_numbers(line) for line in tolerant(read_lines, "metrics.jsonl", no_lines)]
    return Record(
        path=path,
        config=flatten(tolerant(read_config, "", {})),
        lines=[line for line in lines if isinstance(line.get(STEP), int)],
        attempts=tolerant(read_attempts, "", []),
        info=json_object("run_info.json"),
        results=json_object("DONE"),
        finished=os.path.exists(path / "DONE"),
        job=json_object("job.json"),
        wandb=json_object("wandb_run.json"),
        damaged=tuple(damaged),
    )


def with_metrics(path: Path) -> Record:
    """Read a run folder that has something to show.

    Raises:
        UserError: it is none, has no metrics yet, or a file in it is damaged.
    """
    record = read_record(path)
    if record.damaged:
        raise UserError(record.damaged[0])
    if not record.lines:
        raise UserError(
            f"{path} has no line in metrics.jsonl yet; the first one comes after run.log_every "
            f"({record.config.get('run.log_every')}) steps: wait for it, or start the run."
        )
    return record


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no file.

    Raises:
        UserError: it is something else.
    """
    try:
        found = json.loads(file.read_text())
        if not isinstance(found, dict):
            raise ValueError("not a JSON object")
        return found
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is damaged ({one_line(error)}); restore it or delete it.") from None


def _numbers(line: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in line.items() if isinstance(value, int | float)}


def _failed(log: Path) -> bool:
    """Whether the last attempt ended by an error: errors.run writes one of two sentences."""
    if not os.path.exists(log):
        return False
    last_attempt = log.read_text(errors="replace").rpartition(" INFO rank 0 of ")[2]
    return "ended by an error: " in last_attempt or " ERROR rank 0" in last_attempt
