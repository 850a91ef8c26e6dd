"""The parts of a step add up to the step, and what is in none of them is waiting."""

import time

import pytest
import torch

from tinyimnet.timing import StepClock


def test_parts_and_waiting_are_those_of_a_mean_step() -> None:
    clock = StepClock(torch.device("cpu"))
    for _ in range(2):
        with clock.part("data"):
            time.sleep(0.02)
        with clock.part("forward_backward"):
            time.sleep(0.04)
        time.sleep(0.03)
        clock.steps += 1
    values = clock.read(global_batch_size=64)
    assert values["perf/data_ms"] == pytest.approx(20, abs=8)
    assert values["perf/forward_backward_ms"] == pytest.approx(40, abs=8)
    assert values["perf/wait_ms"] == pytest.approx(30, abs=8)
    assert values["perf/optimizer_ms"] == 0
    parts = ("data", "forward_backward", "optimizer", "wait")
    assert sum(values[f"perf/{part}_ms"] for part in parts) == pytest.approx(values["perf/step_ms"])
    assert values["perf/images_per_s"] == pytest.approx(1000 * 64 / values["perf/step_ms"])


def test_after_a_restart_nothing_of_before_counts() -> None:
    clock = StepClock(torch.device("cpu"))
    with clock.part("optimizer"):
        time.sleep(0.05)
    clock.restart()
    clock.steps += 1
    assert clock.read(global_batch_size=1)["perf/optimizer_ms"] == 0
