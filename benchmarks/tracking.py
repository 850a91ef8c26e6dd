#!/usr/bin/env python3
"""Measure what tracking costs per step: the training loop with W&B online and offline against the loop without it.

    python benchmarks/tracking.py                                    # configs/smoke.yaml, one metrics row per step
    python benchmarks/tracking.py --config configs/tiny1m_cpu.yaml

Online mode uses the W&B server of the tests, which needs the dev extra (pip install -e ".[dev]") and shares the cores
of this machine with the training. The process that uploads to it shares them too, as in any run. The three modes
alternate; the result is the median difference.
"""

import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO), str(REPO / "tests"), str(REPO / "benchmarks")]

from throughput import make_trainer

from helpers.wandb_server.server import WandbServer
from tinyimnet import config, config_cli, errors
from tinyimnet.console import print_table
from tinyimnet.distributed import process_group
from tinyimnet.distributed.rendezvous import Rendezvous
from tinyimnet.tracking.tracker import Tracker
from tinyimnet.training.trainer import Trainer

ROUNDS, SECONDS = 9, 5.0
MODES = ("disabled", "offline", "online")


def main(argv: list[str]) -> int:
    """Measure and print the time of a step in each mode."""
    if not any(arg.startswith("--config") for arg in argv):
        argv = ["--config", str(config_cli.CONFIGS / "smoke.yaml"), *argv]
    settings = config_cli.load(argv, prog="benchmarks/tracking.py")
    settings = replace(settings, augment=replace(settings.augment, start_resolution=64, end_resolution=64))
    accelerator = process_group.start(settings.train, Rendezvous())
    taken: dict[str, list[float]] = {mode: [] for mode in MODES}
    calls: list[float] = []
    with tempfile.TemporaryDirectory() as home, WandbServer() as server:
        os.environ.update(server.environment(Path(home)))
        trainer = make_trainer(settings, accelerator, Path(home))
        for _ in range(3):
            trainer.train_step()
        for round in range(ROUNDS):
            for mode in MODES:
                run = Path(home) / f"{mode}-{round}"
                run.mkdir()
                (run / "config.yaml").write_text(config.dump(settings), encoding="utf-8")
                taken[mode].append(_step_seconds(trainer, run, mode, calls))
    rows = [("without W&B", f"{1000 * statistics.median(taken['disabled']):.2f} ms per step")]
    for mode in MODES[1:]:
        pairs = list(zip(taken[mode], taken["disabled"], strict=True))
        more = [1000 * (tracked - bare) for tracked, bare in pairs]
        ratio = statistics.median(tracked / bare for tracked, bare in pairs)
        rows.append(
            (
                f"{mode}, overhead",
                f"{statistics.median(more):+.2f} ms ({min(more):+.2f} to {max(more):+.2f}), x {ratio:.4f}",
            )
        )
    calls.sort()
    rows.append(
        (
            "the log call alone",
            f"{1e6 * statistics.median(calls):.0f} us, 99th percentile {1e6 * calls[-len(calls) // 100]:.0f} us",
        )
    )
    print_table(f"{accelerator.device}, one row per step", rows)
    return 0


def _step_seconds(trainer: Trainer, run: Path, mode: str, calls: list[float]) -> float:
    """Seconds per step and row, measured once the process that follows the run is connected."""
    os.environ["WANDB_MODE"] = mode
    tracker = Tracker(run, trainer.config.tracking)
    tracker.start(0)
    deadline = time.monotonic() + 30
    while mode != "disabled" and not list(run.glob("wandb/*run-*/*.wandb")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(2)
    row = {f"train/{i}": 1 / (i + 1) for i in range(16)}  # as many numbers as a real row
    steps, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < SECONDS:
        trainer.train_step()
        called = time.perf_counter()
        tracker.log(steps, row)
        calls.append(time.perf_counter() - called)
        steps += 1
    tracker.close(0)
    return passed / steps


if __name__ == "__main__":
    sys.exit(errors.run(main, sys.argv[1:]))
