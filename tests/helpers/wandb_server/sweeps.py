"""Sweeps of the W&B test server: choice of the next trial, and early stopping by hyperband."""

import itertools
import math
import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from helpers.wandb_server.records import StoredRun


@dataclass(eq=False)
class Sweep:
    """A sweep: chooses its next trial and stops trials early."""

    name: str
    entity: str
    project: str
    config: dict[str, Any]
    issued: dict[str, dict[str, Any]] = field(default_factory=dict)  # run id: its parameters
    finished: bool = False

    def __post_init__(self) -> None:
        """Prepare the list of trials."""
        self._trials = itertools.islice(trials(self.config), self.config.get("run_cap"))

    def next_trial(self, run_id: str) -> bool:
        """Choose the parameters of a new run; return False if all were tried."""
        parameters = next(self._trials, None)
        if parameters is not None:
            self.issued[run_id] = parameters
        return parameters is not None

    def command(self, kind: str, run_id: str) -> dict[str, Any]:
        """The command that tells an agent to run or resume a trial."""
        parameters = {name: {"value": value} for name, value in self.issued[run_id].items()}
        return {"type": kind, "run_id": run_id, "args": parameters, "program": self.config.get("program")}

    def falls_behind(self, run: StoredRun, runs: Iterable[StoredRun]) -> bool:
        """Whether hyperband stops a trial, by the rule of W&B's own package (wandb/sweeps, hyperband_stopping.py).

        At the last bracket that a trial has passed, its value must have been among the best 1/eta of all trials that
        passed that bracket. Brackets count logged rows with the metric, not epochs or steps.
        """
        rule = self.config.get("early_terminate")
        if not rule:
            return False
        sign = -1 if self.config["metric"].get("goal") == "maximize" else 1
        key = self.config["metric"]["name"]
        values = {r.id: [sign * row[key] for row in r.history if key in row] for r in runs}
        passed = [bracket for bracket in brackets(rule) if bracket < len(values[run.id])]
        if not passed:
            return False
        there = sorted(trial[passed[-1]] for trial in values.values() if len(trial) > passed[-1])
        return values[run.id][passed[-1]] > there[int(len(there) / rule.get("eta", 3))]


@dataclass(eq=False)
class Agent:
    """A process that runs trials of a sweep."""

    sweep: Sweep
    trials: list[str] = field(default_factory=list)  # run ids it last reported, plus those assigned since
    heard: float = 0.0

    def hear(self, trials: list[str]) -> None:
        """Record which trials the agent reports as running."""
        self.trials, self.heard = trials, time.monotonic()


def brackets(rule: dict[str, Any]) -> list[int]:
    """Row counts at which hyperband evaluates a trial, ascending.

    min_iter 3, eta 3: 3, 9, 27, ...; max_iter 27, eta 3, s 2: 3, 9.
    """
    eta = rule.get("eta", 3)
    if "min_iter" in rule:
        return [int(rule["min_iter"] * eta**i) for i in range(20)]
    return sorted(n for i in range(1, rule["s"] + 1) if (n := int(rule["max_iter"] / eta**i)) >= 1)


def trials(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the parameters of each trial: all combinations for grid, an endless sequence for random.

    Raises:
        ValueError: the server does not support the method or a distribution.
    """
    parameters = config["parameters"]
    if config["method"] == "grid":
        choices = [p["values"] if "values" in p else [p["value"]] for p in parameters.values()]
        yield from (dict(zip(parameters, values, strict=True)) for values in itertools.product(*choices))
        return
    if config["method"] != "random":
        raise ValueError(f"the test server supports the methods grid and random, not {config['method']!r}")
    chance = random.Random(0)
    while True:
        yield {name: draw(parameter, chance) for name, parameter in parameters.items()}


def draw(parameter: dict[str, Any], chance: random.Random) -> Any:
    """Draw a value of a parameter for random search."""
    if "value" in parameter:
        return parameter["value"]
    if "values" in parameter:
        return chance.choice(parameter["values"])
    low, high = parameter["min"], parameter["max"]
    match parameter.get("distribution", "uniform"):
        case "int_uniform":
            return chance.randint(low, high)
        case "uniform":
            return chance.uniform(low, high)
        case "log_uniform_values":
            return math.exp(chance.uniform(math.log(low), math.log(high)))
        case other:
            raise ValueError(f"the test server does not support the distribution {other!r}")
