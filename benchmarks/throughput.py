#!/usr/bin/env python3
"""Images/s of the training loop against bare arithmetic: forward, backward and optimizer on one resident batch.

    python benchmarks/throughput.py                                   configs/tiny1m_cpu.yaml on drawn images
    python benchmarks/throughput.py --config configs/tiny1m.yaml --train.global_batch_size 1024

Both run the same network in the same process, in turns, so that a machine that speeds up or slows down does so for
both; the ratio of the medians is what counts. The loop does everything a step does: draw, gather, crop, flip, mix,
resize, clip, EMA, tallies. Then the time for which a save holds the loop up.
"""

import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tinyimnet import commandline, config, console, data, distributed, errors, optim, synthetic
from tinyimnet.checkpoint import Saver
from tinyimnet.engine import Trainer
from tinyimnet.meeting import Meeting
from tinyimnet.model import build_model
from tinyimnet.preemption import StopRequest

ROUNDS, SECONDS = 7, 4.0


def main(argv: list[str]) -> int:
    """Measure and print both rates and their ratio."""
    if not any(arg.startswith("--config") for arg in argv):
        argv = ["--config", str(commandline.CONFIGS / "tiny1m_cpu.yaml"), *argv]
    settings = commandline.load(argv, prog="benchmarks/throughput.py")
    # One resolution throughout: with progressive resizing the two would not run the same arithmetic.
    settings = replace(settings, augment=replace(settings.augment, start_size=64))
    accelerator = distributed.start(settings.train, Meeting())
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(settings, accelerator, Path(folder))
        bare_step = _bare_step(settings, accelerator)
        steps = {"loop": trainer.train_step, "bare": bare_step}
        batch, device = settings.train.global_batch_size, accelerator.device
        for step in steps.values():
            _rate(step, batch, device, 3)  # warm-up
        n_steps = max(3, round(SECONDS * _rate(bare_step, batch, device, 3) / batch))
        rates: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(ROUNDS):
            for name, step in steps.items():
                rates[name].append(_rate(step, batch, device, n_steps))
        stall = _save_stall(trainer, Path(folder))
    loop, bare = (statistics.median(rates[name]) for name in ("loop", "bare"))
    ratios = [a / b for a, b in zip(rates["loop"], rates["bare"], strict=True)]
    rows = [
        ("training loop", f"{loop:,.0f} images/s"),
        ("bare forward + backward + optimizer", f"{bare:,.0f} images/s"),
        (
            "ratio, median of pairs",
            f"{statistics.median(ratios):.1%}  ({min(ratios):.1%} to {max(ratios):.1%})",
        ),
        (
            "a save holds the loop up by",
            f"{1000 * stall:.1f} ms, {stall * loop / batch / settings.run.save_every:.3%} with one in "
            f"{settings.run.save_every} steps",
        ),
    ]
    console.table(
        f"{accelerator.device}, {torch.get_num_threads()} threads, {settings.train.precision}", rows
    )
    return 0


def make_trainer(settings: config.Config, accelerator, folder: Path) -> Trainer:
    """The real trainer, on images that are drawn here."""
    n = 4 * settings.train.global_batch_size
    labels = np.arange(n) % len(synthetic.CLASSES)
    images = synthetic.draw(labels, seed=0)
    dataset = data.Dataset(
        root=folder,
        classes=tuple(wnid for wnid, _ in synthetic.CLASSES),
        names=tuple(name for _, name in synthetic.CLASSES),
        images={"train": images, "val": images[:500]},
        labels={"train": labels, "val": labels[:500]},
        test_files=(),
        mean=(0.48, 0.45, 0.40),
        std=(0.27, 0.26, 0.27),
    )
    return Trainer(settings, accelerator, dataset, folder, StopRequest(folder))


def _bare_step(settings: config.Config, accelerator):
    """A closure that trains the same network on one resident batch and does nothing else."""
    torch.manual_seed(0)
    batch, classes = settings.train.global_batch_size, len(synthetic.CLASSES)
    images = torch.randn(batch, 3, data.IMAGE_SIZE, data.IMAGE_SIZE, device=accelerator.device)
    images = images.to(memory_format=torch.channels_last)
    targets = torch.randn(batch, classes, device=accelerator.device).softmax(1)
    model = build_model(settings.model, classes).to(accelerator.device).train()
    if settings.train.compile:
        model.compile()
    optimizer = optim.build_optimizer(model, settings.optim)

    def step() -> None:
        with accelerator.autocast():
            output = model(images)
        F.cross_entropy(output.float(), targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _rate(step, batch: int, device: torch.device, n_steps: int) -> float:
    """Images/s over n_steps steps, the device drained at both ends and nowhere in between."""
    _drain(device)
    start = time.perf_counter()
    for _ in range(n_steps):
        step()
    _drain(device)
    return n_steps * batch / (time.perf_counter() - start)


def _save_stall(trainer: Trainer, folder: Path) -> float:
    """Seconds that the loop waits for a save, median of ROUNDS; it is written to disk beside the next step."""
    saver = trainer.saver = Saver(folder, keep=1, before=lambda: None)
    stalls = []
    for _ in range(ROUNDS):
        trainer.train_step()
        _drain(trainer.accelerator.device)
        start = time.perf_counter()
        trainer.save(best=False)
        stalls.append(time.perf_counter() - start)
    saver.close()
    return statistics.median(stalls)


def _drain(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(errors.run(main, sys.argv[1:]))
