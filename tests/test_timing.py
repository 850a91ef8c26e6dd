"""The parts of a step add up to the step, and what is in none of them is waiting."""

import time
from functools import partial

import numpy as np
import pytest
import torch

from tinyimnet import console
from tinyimnet.resizing import work_left
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
    # A sleep is never shorter; on a machine that is busy it may be much longer.
    assert 20 <= values["perf/data_ms"] < 200
    assert 40 <= values["perf/forward_backward_ms"] < 200
    assert 30 <= values["perf/wait_ms"] < 200
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


def test_the_time_left_on_the_console_counts_pixels_since_the_start_of_this_life(monkeypatch, capsys) -> None:
    now = iter([100.0, 100.0, 130.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(now))
    shown = console.Progress(5, 5, partial(work_left, np.array([64, 32, 32, 64, 64])), enabled=True)
    with shown:
        shown.resumed(1)
        shown.update(3, {"train/loss": 1.0, "train/lr": 0.1, "perf/images_per_s": 10})
    assert "step 3/5" in (output := capsys.readouterr().out)
    assert output.rstrip().endswith("ETA 0:02:00")  # 30 s for two steps at 32 px, four times that at 64
