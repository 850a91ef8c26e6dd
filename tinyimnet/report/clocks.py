"""Epochs and training time at each step, with which templates/page.js switches the horizontal axis of all charts."""

from collections.abc import Sequence
from dataclasses import dataclass

from tinyimnet.run.metrics import STEP
from tinyimnet.run.record import Record

TIMES = 400  # most times of a clock: more than a chart is wide in pixels
HOUR, MINUTE = 3600, 60


@dataclass(frozen=True)
class Clock:
    """When a run reached its steps; between two of them, time is linear.

    Attributes:
        epoch: steps per epoch; 0 if unknown.
        steps: some steps, ascending.
        seconds: training time up to each of them.
    """

    epoch: float
    steps: Sequence[float]
    seconds: Sequence[float]


@dataclass(frozen=True)
class Switch:
    """The choice of an axis.

    Attributes:
        axes: what is written under each axis that can be chosen: step, epoch, time.
        clocks: for each clock of the page its epoch, steps and times, in the unit of the axis.
    """

    axes: dict[str, str]
    clocks: list[dict[str, object]]


def of_run(run: Record) -> Clock:
    """The clock of a run that has metrics; of a long run it has every n-th line and the last."""
    n = len(run.lines)
    kept, seconds = sorted({*range(0, n, -(-n // TIMES)), n - 1}), run.seconds()
    return Clock(run.steps_per_epoch, [run.lines[i][STEP] for i in kept], [seconds[i] for i in kept])


def switch(clocks: Sequence[Clock]) -> Switch:
    """The axes that every clock of a page knows; time is in minutes if no run has taken an hour."""
    longest = max(seconds for clock in clocks for seconds in clock.seconds)
    unit, name = (HOUR, "hours") if longest >= HOUR else (MINUTE, "minutes")
    axes = {"step": "step"}
    if all(clock.epoch for clock in clocks):
        axes["epoch"] = "epoch"
    if all(clock.seconds[-1] for clock in clocks):
        axes["time"] = f"{name} of training"
    return Switch(
        axes,
        [
            {"epoch": each.epoch, "steps": each.steps, "times": [float(f"{s / unit:.5g}") for s in each.seconds]}
            for each in clocks
        ],
    )
