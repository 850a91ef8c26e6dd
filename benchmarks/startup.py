#!/usr/bin/env python3
"""Time `accelerate launch train.py` from the launch to the end of the first step, broken down into parts.

    python benchmarks/startup.py                     # configs/smoke.yaml on its synthetic images

The baseline is a process that imports torch and builds the network; the two alternate. The parts are timed inside the
program, which exits after its first step.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

ROUNDS, STARTED = 5, "BENCHMARK_STARTED"
YARDSTICK = (
    "import torch; from tinyimnet import config; from tinyimnet.model.network import build_model; "
    "build_model(config.ModelConfig(), 200)"
)


def main() -> int:
    """Measure and print the parts; in the process started by accelerate, time them."""
    if os.environ.get(STARTED):
        return _stamped(float(os.environ[STARTED]))
    from tinyimnet.console import print_table

    yardstick, runs = [], []
    with tempfile.TemporaryDirectory() as folder:
        draw = [sys.executable, "-m", "tinyimnet", "prepare", "--synthetic", "--out", f"{folder}/data"]
        subprocess.run(draw, cwd=REPO, check=True)
        _launch(Path(folder))  # fills the disk cache
        for _ in range(ROUNDS):
            started = time.time()
            subprocess.run([sys.executable, "-c", YARDSTICK], cwd=REPO, check=True)
            yardstick.append(time.time() - started)
            runs.append(_launch(Path(folder)))
    totals = [sum(run.values()) for run in runs]
    ratios = [total / bare for total, bare in zip(totals, yardstick, strict=True)]
    rows = [(part, f"{statistics.median(run[part] for run in runs):.2f} s") for part in runs[0]]
    rows += [
        ("total, to the end of the first step", f"{statistics.median(totals):.2f} s"),
        ("baseline: import torch and build the network", f"{statistics.median(yardstick):.2f} s"),
        (
            "ratio, median of pairs",
            f"{statistics.median(ratios):.2f}  ({min(ratios):.2f} to {max(ratios):.2f})",
        ),
    ]
    print_table("accelerate launch train.py", rows)
    return 0


def _launch(folder: Path) -> dict[str, float]:
    """Launch the program once and return the seconds of each part."""
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.accelerate_cli",
        "launch",
        "--quiet",
        "--num_processes",
        "1",
    ]
    settings = [
        f"--data.root={folder / 'data'}", f"--run.dir={folder / str(time.time_ns())}", "--tracking.wandb=disabled",
    ]  # fmt: skip
    command += [__file__, f"--config={REPO / 'configs' / 'smoke.yaml'}", *settings]
    environment = {**os.environ, STARTED: str(time.time())}
    done = subprocess.run(command, cwd=REPO, env=environment, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _stamped(last: float) -> int:
    """Run train.py up to its first step and print the seconds of each part as JSON."""
    parts: dict[str, float] = {}

    def stamp(part: str) -> None:
        nonlocal last
        now = time.time()
        parts[part], last = now - last, now

    def stamped(function: Callable, part: str) -> Callable:
        def call(*arguments: Any, **options: Any) -> Any:
            result = function(*arguments, **options)
            stamp(part)
            return result

        return call

    stamp("accelerate launch and second interpreter")
    from tinyimnet import train

    stamp("imports")
    train.config_cli.load = stamped(train.config_cli.load, "configuration")
    train.preflight.check = stamped(train.preflight.check, "run folder and preflight")
    train.ready_dataset = stamped(train.ready_dataset, "data, with verification")
    train.process_group.start = stamped(train.process_group.start, "Accelerator")
    train.Trainer.__init__ = stamped(train.Trainer.__init__, "network, optimizer, EMA")
    train.Tracker.start = stamped(train.Tracker.start, "files in the run folder")
    train.Trainer.train_step = stamped(train.Trainer.train_step, "first step")

    def stop(*_: object) -> None:
        print("\n" + json.dumps(parts), flush=True)
        os._exit(0)

    train.Trainer.at_boundary = stop
    return train.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
