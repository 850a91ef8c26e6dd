#!/usr/bin/env python3
"""Compare images/s of the training loop with one process on all cores and with one process per core.

    python benchmarks/processes.py                                       # configs/tiny1m_cpu.yaml on synthetic images
    python benchmarks/processes.py --config configs/smoke.yaml

Both variants run the same global batch through `accelerate launch`, alternating. Several processes average their
gradients over gloo, and each one normalises with the batch statistics of its own images.
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

from tinyimnet import config_cli, errors
from tinyimnet.console import print_table
from tinyimnet.distributed import launcher, process_group
from tinyimnet.distributed.rendezvous import Rendezvous

ROUNDS, WARM_UP, STEPS, WORKER = 3, 2, 8, "BENCHMARK_WORKER"
CORES = len(os.sched_getaffinity(0))


def main(argv: list[str]) -> int:
    """Measure and print both rates and their ratio; in a worker process, measure one rate."""
    if not any(arg.startswith("--config") for arg in argv):
        argv = ["--config", str(config_cli.CONFIGS / "tiny1m_cpu.yaml"), *argv]
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
    print_table(f"{CORES} cores", rows)
    return 0


def _measure(processes: int, argv: list[str]) -> tuple[float, float]:
    """Images/s of all processes together, and the peak memory of rank 0 in MiB."""
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--quiet"]
    command += ["--multi_gpu"] * (processes > 1) + ["--num_processes", str(processes), __file__, *argv]
    done = subprocess.run(command, env={**os.environ, WORKER: "1"}, stdout=subprocess.PIPE, encoding="utf-8")
    if done.returncode:
        raise errors.UserError(f"{processes} processes failed with exit code {done.returncode}; see above.")
    images, memory = done.stdout.split()[-2:]
    return float(images), float(memory)


def _worker(argv: list[str]) -> int:
    settings = config_cli.load(argv, prog="benchmarks/processes.py")
    settings = replace(settings, augment=replace(settings.augment, start_resolution=64, end_resolution=64))
    launcher.map_environment()
    accelerator = process_group.start(settings.train, Rendezvous())
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(settings, accelerator, Path(folder))
        batch, device = settings.train.global_batch_size, accelerator.device
        rate(trainer.train_step, batch, device, WARM_UP)
        images = rate(trainer.train_step, batch, device, STEPS)
    if accelerator.is_main_process:
        print(images, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, flush=True)
    del trainer
    process_group.close(accelerator)
    return 0


if __name__ == "__main__":
    process_group.exit_process(errors.run(main, sys.argv[1:]))
