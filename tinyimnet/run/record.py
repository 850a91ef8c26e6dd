"""Read-only view of a run folder for reports, dashboards, status and tables. No torch import.

A file may be missing because the run has not started, or damaged after a crash. Either way it counts as empty, and
`Record.damaged` names the damaged ones.
"""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tinyimnet.config import NO_RECIPE, flatten
from tinyimnet.console import counted
from tinyimnet.errors import UserError, one_line, paths_named
from tinyimnet.files import as_utf8, read_lines, read_text
from tinyimnet.run import lock, states
from tinyimnet.run.folder import Attempt, newest_step, read_attempts, read_config
from tinyimnet.run.metrics import STEP

T = TypeVar("T")
LOG_END = 1 << 16  # bytes at the end of a log that have its last error, traceback included


@dataclass(frozen=True)
class Record:
    """A run as its folder describes it.

    Attributes:
        path: run folder.
        config: flat configuration such as {"optim.lr": 0.5}; empty if it is missing or damaged.
        lines: lines of metrics.jsonl that have a step.
        attempts: attempts, oldest first.
        info: contents of run_info.json.
        results: contents of DONE.
        finished: whether DONE exists.
        job: contents of job.json, the last submission by `tinyimnet submit`.
        wandb: contents of wandb_run.json.
        damaged: one sentence for each file that could not be read.
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
        """Name of the folder."""
        return as_utf8(self.path.name)

    @property
    def url(self) -> str:
        """URL of the W&B run, or empty."""
        return str(self.wandb.get("url") or "")

    @property
    def wandb_id(self) -> str:
        """Id of the W&B run, or empty."""
        return str(self.wandb.get("id") or "")

    @property
    def step(self) -> int | None:
        """Last logged step, else the first step of the last attempt; None before the first attempt."""
        if self.lines:
            return int(self.lines[-1][STEP])
        return self.attempts[-1].step if self.attempts else None

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run; 0 if unknown."""
        return self.attempts[-1].total_steps if self.attempts else self.info.get("total_steps") or 0

    @property
    def steps_per_epoch(self) -> float:
        """Optimizer steps per epoch, from the last logged line; 0 if unknown."""
        line = self.lines[-1]
        return round(line[STEP] / line["epoch"], 6) if line.get("epoch") else 0

    @property
    def parameters(self) -> int:
        """Parameters of the network; 0 if unknown."""
        return self.info.get("parameters") or self.results.get("parameters") or 0

    @property
    def recipe(self) -> tuple[tuple[str, str], ...]:
        """The configuration without the keys that may differ within a recipe, such as the seed, and the data set.

        The data set is that of `dataset`: data.root may differ between machines, and two roots can hold other images.
        """
        kept = {key: str(value) for key, value in self.config.items() if not key.startswith(NO_RECIPE)}
        return tuple(sorted({**kept, "data": self.dataset}.items()))

    @property
    def dataset(self) -> str:
        """Digest of the images and labels that the run trained on, or else the name of their folder; "" if unknown."""
        return str(self.info.get("dataset_digest", ""))[:12] or str(self.info.get("dataset", ""))

    @property
    def training_seconds(self) -> float:
        """Time spent on the steps and evaluations that led to the result; replayed steps count once."""
        return (self.seconds() or [0.0])[-1]

    def seconds(self) -> list[float]:
        """Training time up to each line."""
        seconds, total, before = [], 0.0, 0.0
        for line in self.lines:
            total += line.get("perf/step_ms", 0) / 1000 * (line[STEP] - before) + line.get("perf/eval_s", 0)
            before = line[STEP]
            seconds.append(total)
        return seconds

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and values of a metric, oldest first."""
        lines = [line for line in self.lines if key in line]
        return [line[STEP] for line in lines], [line[key] for line in lines]

    def last(self, key: str) -> float | None:
        """Newest value of a metric; None if it was never logged."""
        return next((line[key] for line in reversed(self.lines) if key in line), None)

    def starts(self) -> list[tuple[int, int]]:
        """Start step and number of each attempt that resumed; of several with the same start step, the last."""
        begun = {attempt.step: i for i, attempt in enumerate(self.attempts, 1)}
        return [(step, number) for step, number in begun.items() if step]

    def state(self) -> str:
        """State of the run according to its folder, a word of tinyimnet/run/states.py."""
        if self.finished:
            return states.FINISHED
        if lock.is_held(self.path):
            return states.RUNNING
        if os.path.exists(self.path / "LOCK"):
            return states.KILLED
        if os.path.exists(self.path / "ERROR") or _failed(self.path / "logs" / "rank_0.log"):
            return states.FAILED
        asked = any(os.path.exists(self.path / marker) for marker in ("REQUEUE", "STOP"))
        return states.STOPPED if self.attempts or self.lines or asked else states.NEW

    def state_in_words(self, state: str = "") -> str:
        """Text to follow the state, that of the folder if not given: who stopped it, the step, how to resume."""
        step, saved = self.step or 0, newest_step(self.path)
        of = f" of {self.total_steps:,}" if self.total_steps else ""
        goes_on = f"rerun the same command to resume from step {saved:,}" if saved else "no checkpoint"
        words = {
            states.FINISHED: counted(step, "step"),
            states.RUNNING: f"at step {step:,}{of}",
            states.KILLED: f"after step {step:,}{of}; {goes_on}",
            states.FAILED: f"after step {step:,}{of}, see logs/rank_0.log; {goes_on}",
            states.STOPPED: f"{self._stopped_by()}at step {max(step, saved):,}{of}; {goes_on}",
            states.NEW: "not started",
        }
        return words[state or self.state()]

    def _stopped_by(self) -> str:
        """The request as the run printed it, with "by " before it; "" for Ctrl-C, which leaves no marker."""
        with suppress(UserError):
            if reason := read_object(self.path / "REQUEUE").get("reason"):
                return f"by {reason} "
        return f"by {states.STOP_FILE} " if os.path.exists(self.path / "STOP") else ""


def read_record(path: Path, read_metrics: Callable[[Path], list[dict[str, Any]]] = read_lines) -> Record:
    """Read the current state of a run folder; `read_metrics` may leave out lines that the caller does not need."""
    damaged: list[str] = []

    def tolerant(read: Callable[[Path], T], name: str, nothing: T) -> T:
        try:
            with paths_named():
                return read(path / name)
        except UserError as error:
            damaged.append(str(error))
        return nothing

    def json_object(name: str) -> dict[str, Any]:
        return tolerant(read_object, name, {})

    no_lines: list[dict[str, Any]] = []
    lines = [_numbers(line) for line in tolerant(read_metrics, "metrics.jsonl", no_lines)]
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
    """Read a run folder that has metrics.

    Raises:
        UserError: it is not a run folder, has no metrics yet, or has a damaged file.
    """
    record = read_record(path)
    if record.damaged:
        raise UserError(record.damaged[0])
    if not record.lines:
        raise UserError(
            f"{path} has no line in metrics.jsonl yet; wait for the first one, which is written after run.log_every "
            f"({record.config.get('run.log_every')}) steps, or start the run."
        )
    return record


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if the file is missing.

    Raises:
        UserError: the file is not a JSON object.
    """
    try:
        found = json.loads(read_text(file))
        if not isinstance(found, dict):
            raise ValueError("not a JSON object")
        return found
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{file} is damaged ({one_line(error)}); restore it or delete it.") from None


def _numbers(line: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in line.items() if isinstance(value, int | float)}


def _failed(log: Path) -> bool:
    """Whether the last attempt ended with an error, which errors.run logs last, in one of two forms."""
    try:
        with log.open("rb") as file:  # a long run has a log of megabytes
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_END))
            last_attempt = file.read().decode("utf-8", "replace").rpartition(" INFO rank 0 of ")[2]
    except OSError:  # missing, or not for this user to read
        return False
    return "ended by an error: " in last_attempt or " ERROR rank 0" in last_attempt
