#!/usr/bin/env python3
"""Compare images/s of the training loop with bare forward, backward and optimizer steps on one resident batch.

    python benchmarks/throughput.py                                   # configs/tiny1m_cpu.yaml on synthetic images
    python benchmarks/throughput.py --config configs/tiny1m.yaml --train.global_batch_size 1024

All variants run the same network in the same process, alternating, so that changes in machine speed affect all of them.
The result is the median ratio of neighbouring turns. The training loop includes everything that a step does: draw,
gather, crop, flip, mix, resize, clip, EMA, counters. It runs as configured, and with Mixup and CutMix on every image.
The script also measures how long a save blocks the loop and how long an evaluation takes.
"""

import resource
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tinyimnet import config, config_cli, errors
from tinyimnet.console import print_table
from tinyimnet.data import synthetic
from tinyimnet.data.dataset import IMAGE_SIZE, Dataset
from tinyimnet.distributed import process_group
from tinyimnet.distributed.preemption import StopRequest
from tinyimnet.distributed.rendezvous import Rendezvous
from tinyimnet.model.network import build_model
from tinyimnet.run.checkpoint import Saver
from tinyimnet.tracking.tracker import Tracker
from tinyimnet.training import optim
from tinyimnet.training.trainer import Trainer

ROUNDS, SECONDS = 31, 3.0
EPOCH, VAL = 100_000, 10_000  # images of the official Tiny ImageNet
ENDLESS = 100_000  # epochs of four steps; after the last one nothing is mixed and the learning rate is negative


def main(argv: list[str]) -> int:
    """Measure and print all rates and their ratios."""
    if not any(arg.startswith("--config") for arg in argv):
        argv = ["--config", str(config_cli.CONFIGS / "tiny1m_cpu.yaml"), *argv]
    settings = config_cli.load(argv, prog="benchmarks/throughput.py")
    # One resolution throughout: with progressive resizing the variants would differ in their arithmetic.
    settings = replace(settings, augment=replace(settings.augment, start_resolution=64, end_resolution=64))
    accelerator = process_group.start(settings.train, Rendezvous())
    batch, device = settings.train.global_batch_size, accelerator.device
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(settings, accelerator, Path(folder))
        steps = {
            "loop": trainer.train_step,
            "mixing": make_trainer(_mixing(settings), accelerator, Path(folder)).train_step,
            "bare": _bare_step(settings, accelerator),
        }
        for step in steps.values():
            rate(step, batch, device, 3)  # warm-up
        n_steps = max(1, round(SECONDS * rate(steps["bare"], batch, device, 3) / batch))
        rates: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(ROUNDS):
            for name, step in steps.items():
                rates[name].append(rate(step, batch, device, n_steps))
        stall, evaluation = _save_stall(trainer), _evaluation(trainer)
    images_per_s = statistics.median(rates["loop"])
    epoch = EPOCH / images_per_s
    rows = [
        ("bare forward + backward + optimizer", f"{statistics.median(rates['bare']):,.0f} images/s"),
        ("training loop", f"{images_per_s:,.0f} images/s, {_ratio(rates['loop'], rates['bare'])} of bare"),
        ("with Mixup and CutMix", f"{_ratio(rates['mixing'], rates['bare'])} of bare"),
        (
            "a save blocks the loop for",
            f"{1000 * stall:.1f} ms, {stall * images_per_s / batch / settings.run.save_every:.3%} with one every "
            f"{settings.run.save_every} steps",
        ),
        (
            f"evaluation of {VAL:,} images, raw and EMA",
            f"{evaluation:.1f} s, {evaluation / (evaluation + epoch):.1%} with one per epoch of {EPOCH:,} images",
        ),
        ("peak memory", f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB on the host"),
    ]
    print_table(f"{device}, {torch.get_num_threads()} threads, {settings.train.precision}", rows)
    return 0


def _ratio(rates: list[float], others: list[float]) -> str:
    """Median and quartiles of the ratios of neighbouring turns."""
    low, middle, high = statistics.quantiles((a / b for a, b in zip(rates, others, strict=True)), n=4)
    return f"{middle:.1%} ({low:.1%} to {high:.1%})"


def _mixing(settings: config.Config) -> config.Config:
    mixing = replace(settings.augment, mixup_probability=0.5, cutmix_probability=0.5, mix_until=1.0)
    return replace(settings, augment=mixing)


def make_trainer(settings: config.Config, accelerator, folder: Path) -> Trainer:
    """Build the real trainer on synthetic images, with a schedule that outlasts the measurement."""
    settings = replace(settings, train=replace(settings.train, epochs=ENDLESS))
    dataset = make_dataset(folder, 4 * settings.train.global_batch_size)
    if settings.data.soft_labels:
        uniform = np.zeros((len(dataset.labels["train"]), len(dataset.classes)), np.float16)
        dataset = replace(dataset, soft_labels=uniform)
    (folder / "checkpoints").mkdir(exist_ok=True)
    tracker = Tracker(folder, settings.tracking)
    saver = Saver(folder / "checkpoints", keep=1, before=lambda: None)
    return Trainer(settings, accelerator, dataset, saved=None, tracker=tracker, saver=saver, stop=StopRequest(folder))


@lru_cache(maxsize=1)  # drawing 4,096 images takes 3 s
def make_dataset(folder: Path, n: int) -> Dataset:
    """Draw `n` synthetic training images; the first ones are the validation images too."""
    labels = np.arange(n) % len(synthetic.CLASSES)
    images = synthetic.draw(labels, seed=0)
    return Dataset(
        root=folder,
        classes=tuple(wnid for wnid, _ in synthetic.CLASSES),
        names=tuple(name for _, name in synthetic.CLASSES),
        images={"train": images, "val": images[:500]},
        labels={"train": labels, "val": labels[:500]},
        test_files=(),
        mean=(0.48, 0.45, 0.40),
        std=(0.27, 0.26, 0.27),
        digest="",
    )


def _bare_step(settings: config.Config, accelerator):
    """Return a function that trains the same network on one resident batch and does nothing else."""
    torch.manual_seed(0)
    batch, classes = settings.train.global_batch_size, len(synthetic.CLASSES)
    images = torch.randn(batch, 3, IMAGE_SIZE, IMAGE_SIZE, device=accelerator.device)
    images = images.to(memory_format=torch.channels_last)
    targets = torch.randn(batch, classes, device=accelerator.device).softmax(1)
    model = build_model(settings.model, classes).to(accelerator.device).train()
    model.get_parameter("stem.0.weight").requires_grad_(not settings.model.whiten_stem)
    if settings.train.compile:
        model.compile(dynamic=False)
    optimizer = optim.build_optimizer(model, settings.optim)

    def step() -> None:
        with accelerator.autocast():
            output = model(images)
        F.cross_entropy(output.float(), targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def rate(step, batch: int, device: torch.device, n_steps: int) -> float:
    """Images/s over n_steps steps, with the device synchronised only before the first and after the last."""
    _drain(device)
    start = time.perf_counter()
    for _ in range(n_steps):
        step()
    _drain(device)
    return n_steps * batch / (time.perf_counter() - start)


def _save_stall(trainer: Trainer) -> float:
    """Seconds that a save blocks the loop, median of ROUNDS; the disk write overlaps with the next step."""
    stalls = []
    for _ in range(ROUNDS):
        trainer.train_step()
        _drain(trainer.accelerator.device)
        start = time.perf_counter()
        trainer.save(best=False)
        stalls.append(time.perf_counter() - start)
    trainer.saver.close()
    return statistics.median(stalls)


def _evaluation(trainer: Trainer) -> float:
    """Seconds to evaluate VAL images with both the raw and the averaged weights."""
    trainer.validate()
    started = time.perf_counter()
    trainer.validate()
    return (time.perf_counter() - started) * VAL / len(trainer.evaluator.images)


def _drain(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(errors.run(main, sys.argv[1:]))
