"""The parts of a step add up to the step, and the rest is waiting time."""

import itertools
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.clock import Clock
from helpers.here import train_here
from tinyimnet import console
from tinyimnet.config import ModelConfig
from tinyimnet.data.resolution import work_left
from tinyimnet.files import read_lines
from tinyimnet.model.network import build_model, count_macs
from tinyimnet.run.record import read_object
from tinyimnet.training import trainer
from tinyimnet.training.timing import StepClock
from tinyimnet.training.utilisation import Utilisation, peak_flops


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


def test_the_utilisation_is_the_share_of_the_peak_at_the_resolution() -> None:
    network = build_model(ModelConfig(widths=(16,), depths=(1,)), 10)
    macs = count_macs(network, 64)
    all_of_it = Utilisation(network, 64, peak=6 * macs * 1000.0)
    assert all_of_it.of(1000, 64) == pytest.approx({"perf/mfu": 100})
    assert all_of_it.of(1000, 32) == pytest.approx({"perf/mfu": 25})


def test_a_run_logs_the_utilisation_of_a_device_with_a_known_peak(tiny_data: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(trainer, "peak_flops", lambda device, precision: 1e12)
    run = train_here(tiny_data, tmp_path / "run")
    macs = read_object(run / "run_info.json")["macs"]
    for line in (line for line in read_lines(run / "metrics.jsonl") if "perf/mfu" in line):
        share = (line["train/resolution"] / 64) ** 2
        assert line["perf/mfu"] == pytest.approx(100 * 6 * macs * share * line["perf/images_per_s"] / 1e12)
    assert line["perf/mfu"] > 0


def test_the_utilisation_is_not_guessed() -> None:
    assert peak_flops(torch.device("cpu"), "bf16") == 0
    assert Utilisation(build_model(ModelConfig(widths=(16,), depths=(1,)), 10), 64, peak=0).of(1000, 64) == {}
