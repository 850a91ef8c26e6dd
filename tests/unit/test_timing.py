"""The parts of a step add up to the step, and the rest is waiting time."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch

from helpers.clock import Clock
from tinyimnet import console
from tinyimnet.data.resolution import work_left
from tinyimnet.training.timing import StepClock


def test_parts_and_waiting_are_means_over_steps(clock: Clock) -> None:
    steps = StepClock(torch.device("cpu"))
    for data, forward, wait in ((0.02, 0.04, 0.03), (0.04, 0.06, 0.05)):
        with steps.part("data"):
            clock.passes(data)
        with steps.part("forward_backward"):
            clock.passes(forward)
        clock.passes(wait)
        steps.steps += 1
    values = steps.read(global_batch_size=64)
    assert values == pytest.approx({
        "perf/data_ms": 30, "perf/forward_backward_ms": 50, "perf/optimizer_ms": 0, "perf/wait_ms": 40,
        "perf/step_ms": 120, "perf/images_per_s": 64 / 0.12,
    })  # fmt: skip


def test_a_part_measured_in_pieces_is_their_sum(clock: Clock) -> None:
    steps = StepClock(torch.device("cpu"))
    for _ in range(3):  # micro-batches
        with steps.part("data"):
            clock.passes(0.01)
    steps.steps += 1
    assert steps.read(global_batch_size=1)["perf/data_ms"] == pytest.approx(30)


def test_a_restart_discards_earlier_measurements(clock: Clock) -> None:
    steps = StepClock(torch.device("cpu"))
    with steps.part("optimizer"):
        clock.passes(0.05)
    steps.steps += 1
    steps.restart()
    clock.passes(0.2)
    steps.steps += 1
    values = steps.read(global_batch_size=1)
    assert (values["perf/optimizer_ms"], values["perf/step_ms"]) == pytest.approx((0, 200))


def test_the_time_left_counts_pixels_since_the_start_of_this_attempt(monkeypatch, capsys) -> None:
    now = itertools.chain([100.0, 100.0], itertools.repeat(130.0))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(now))
    shown = console.Progress(5, 5, partial(work_left, np.array([64, 32, 32, 64, 64])), enabled=True)
    with shown:
        shown.resumed(1)
        shown.update(3, {"train/loss": 1.0, "train/lr": 0.1, "perf/images_per_s": 10})
    assert "step 3/5" in (output := capsys.readouterr().out)
    assert output.rstrip().endswith("ETA 0:02:00")  # 30 s for two steps at 32 px, four times that at 64
