#!/usr/bin/env python3
"""Images/s of the training loop in one process with all cores against one process for each core.

    python benchmarks/processes.py                                       # configs/tiny1m_cpu.yaml on drawn images
    python benchmarks/processes.py --config configs/smoke.yaml

Both run the same global batch through `accelerate launch`, in turns; several processes average their gradients over
gloo and each normalises with its own share of the batch.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO), str(REPO / "benchmarks")]

from throughput import make_trainer, rate

from tinyimnet import commandline, console, distributed, errors
from tinyimnet.meeting import Meeting

ROUNDS, WARM_UP, STEPS, WORKER = 3, 2, 8, "BENCHMARK_WORKER"
CORES = len(os.sched_getaffinity(0))


def main(argv: list[str]) -> int:
    """Measure and print both rates and their ratio; or, in a process that it started, measure one."""
    if not any(arg.startswith("--config") for arg in argv):
        argv = ["--config", str(commandline.CONFIGS / "tiny1m_cpu.yaml"), *argv]
    if os.environ.get(WORKER):
        return _worker(argv)
    found: dict[int, list[tuple[float, float]]] = {1: [], CORES: []}
    for _ in range(ROUNDS):
        for count, measured in found.items():
            measured.append(_measure(count, argv))
    rates = {count: [images for images, _ in measured] for count, measured in found.items()}
    rows = [
        (
            f"{count} x {CORES // count} threads",
            f"{statistics.median(rates[count]):,.0f} images/s, peak memory {count} x {measured[0][1]:,.0f} MiB",
        )
        for count, measured in found.items()
    ]
    ratios = [many / one for one, many in zip(rates[1], rates[CORES], strict=True)]
    rows.append(
        (
            "ratio, median of pairs",
            f"{statistics.median(ratios):.3f}  ({min(ratios):.3f} to {max(ratios):.3f})",
        )
    )
    console.table(f"{CORES} cores", rows)
    return 0


def _measure(processes: int, argv: list[str]) -> tuple[float, float]:
    """Images/s of all processes together, and the peak memory of rank 0 in MiB."""
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--quiet"]
    command += ["--multi_gpu"] * (processes > 1) + ["--num_processes", str(processes), __file__, *argv]
    done = subprocess.run(command, env={**os.environ, WORKER: "1"}, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise errors.UserError(f"{processes} processes ended with exit code {done.returncode}; see above.")
    images, memory = done.stdout.split()[-2:]
    return float(images), float(memory)


def _worker(argv: list[str]) -> int:
    settings = commandline.load(argv, prog="benchmarks/processes.py")
    settings = replace(settings, augment=replace(settings.augment, start_size=64))
    distributed.map_environment()
    accelerator = distributed.start(settings.train, Meeting())
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(settings, accelerator, Path(folder))
        batch, device = settings.train.global_batch_size, accelerator.device
        rate(trainer.train_step, batch, device, WARM_UP)
        images = rate(trainer.train_step, batch, device, STEPS)
    if accelerator.is_main_process:
        print(images, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, flush=True)
    del trainer
    distributed.close(accelerator)
    return 0


if __name__ == "__main__":
    distributed.leave(errors.run(main, sys.argv[1:]))
