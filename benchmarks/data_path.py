#!/usr/bin/env python3
"""Compare augmented images/s from the in-memory array with JPEG files read by DataLoader workers.

    python benchmarks/data_path.py                   # 4,096 synthetic images, batches of 256

Both deliver shuffled batches of 256 x 3 x 64 x 64 float32, cropped after 4 px of padding, flipped and normalised. The
DataLoader works as in most training scripts: its dataset opens one file at a time with Pillow, and there is one
single-threaded worker per core. The two sources alternate; the result is the median ratio of neighbouring turns.
"""

import itertools
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tinyimnet import config
from tinyimnet.console import print_table
from tinyimnet.data import batches, synthetic
from tinyimnet.data.dataset import IMAGE_SIZE
from tinyimnet.distributed import cpu

N, BATCH, PADDING, ROUNDS, SECONDS = 4096, 256, 4, 5, 4.0
MEAN, STD = (0.48, 0.45, 0.40), (0.27, 0.26, 0.27)
CORES = len(os.sched_getaffinity(0))


class Files(Dataset):
    """JPEG files, decoded and augmented one at a time."""

    def __init__(self, paths: list[Path], labels: np.ndarray):
        self.paths, self.labels = paths, labels
        self.mean, self.std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        with Image.open(self.paths[i]) as file:
            image = file.convert("RGB")
        down, right, mirror = torch.randint(0, 2 * PADDING + 1, (3,)).tolist()
        pixels = np.pad(np.asarray(image), ((PADDING, PADDING), (PADDING, PADDING), (0, 0)), mode="reflect")
        pixels = pixels[down : down + IMAGE_SIZE, right : right + IMAGE_SIZE]
        if mirror % 2:
            pixels = pixels[:, ::-1]
        image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float().div(255)
        return (image - self.mean) / self.std, int(self.labels[i])


def main() -> int:
    """Measure and print both rates and their ratio."""
    torch.set_num_threads(CORES)
    cpu.keep_freed_memory()  # as in training on CPUs
    labels = np.arange(N) % len(synthetic.CLASSES)
    images = synthetic.draw(labels, seed=0)
    rates: dict[str, list[float]] = {"array": [], "files": []}
    with tempfile.TemporaryDirectory() as folder:
        streams = {"array": _from_array(images, labels), "files": _from_files(images, labels, Path(folder))}
        for stream in streams.values():
            for _ in range(4):
                next(stream)  # starts the workers and touches the pages
        for _ in range(ROUNDS):
            for name, stream in streams.items():
                rates[name].append(_rate(stream))
        del stream
        streams.clear()  # ends the workers, so that their memory use is known
    array, files = (statistics.median(rates[name]) for name in ("array", "files"))
    ratios = [a / b for a, b in zip(rates["array"], rates["files"], strict=True)]
    worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    rows = [
        ("in-memory array", f"{array:,.0f} images/s"),
        (f"DataLoader, {CORES} workers, Pillow", f"{files:,.0f} images/s"),
        (
            "ratio, median of pairs",
            f"{statistics.median(ratios):.1f}  ({min(ratios):.1f} to {max(ratios):.1f})",
        ),
        ("memory of the array", f"{images.nbytes / 2**20:.0f} MiB for {N:,} images, shared by all processes"),
        ("peak memory of a worker", f"{worker / 2**10:.0f} MiB"),
    ]
    print_table(f"{CORES} cores, batches of {BATCH}", rows)
    return 0


def _from_array(images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
    source = batches.TrainBatches(
        torch.from_numpy(images), torch.from_numpy(labels), len(synthetic.CLASSES), mean=MEAN, std=STD,
        config=config.AugmentConfig(crop_padding=PADDING), seed=0, epochs=1, global_batch_size=BATCH,
    )  # fmt: skip
    for step in itertools.count():
        pixels, targets = source.load(source.draw(step), slice(0, BATCH), step)
        yield pixels, targets.labels


def _from_files(images: np.ndarray, labels: np.ndarray, folder: Path) -> Iterator[tuple[Tensor, Tensor]]:
    paths = [folder / f"{i}.jpg" for i in range(len(images))]
    for path, pixels in zip(paths, images, strict=True):
        Image.fromarray(pixels).save(path, quality=90)
    loader = DataLoader(
        Files(paths, labels), BATCH, shuffle=True, drop_last=True, num_workers=CORES, persistent_workers=True
    )
    while True:
        yield from loader


def _rate(stream: Iterator) -> float:
    """Images/s over SECONDS, after discarding the batches that workers have prefetched."""
    for _ in range(2 * CORES):
        next(stream)
    count, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < SECONDS:
        next(stream)
        count += BATCH
    return count / passed


if __name__ == "__main__":
    sys.exit(main())
