#!/usr/bin/env python3
"""Estimate the gradient noise scale of a trained network: the batch size beyond which more images hardly help.

    python benchmarks/noise_scale.py runs/tiny1m_sprint/final.safetensors --config configs/tiny1m_sprint.yaml

B_simple = tr(covariance of per-image gradients) / |gradient|^2 (McCandlish et al., arXiv 1812.06162), estimated from
the gradients of 32 batches of 128 augmented training images and of all of them together (appendix A.1). At a batch size
of B_simple a step is half as good as one with the exact gradient. Beyond it, doubling the batch saves less than a third
of the steps.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tinyimnet import config_cli, errors
from tinyimnet.console import print_table
from tinyimnet.data import loading
from tinyimnet.data.batches import TrainBatches
from tinyimnet.distributed import rendezvous
from tinyimnet.evaluation.weights import load_trained

SMALL, BATCHES = 128, 32


def main(argv: list[str]) -> int:
    """Measure and print the noise scale of the weights in argv[0]."""
    trained = load_trained(Path(argv[0]))
    settings = config_cli.load(argv[1:], prog="benchmarks/noise_scale.py")
    dataset = loading.ready_dataset(settings.data, rendezvous.Rendezvous())
    source = TrainBatches(
        torch.from_numpy(dataset.images["train"]), torch.from_numpy(dataset.labels["train"]), len(dataset.classes),
        mean=dataset.mean, std=dataset.std, config=settings.augment, seed=settings.run.seed, epochs=1,
        global_batch_size=SMALL,
    )  # fmt: skip
    model = trained.model.train().requires_grad_()
    model.get_parameter("stem.0.weight").requires_grad_(not settings.model.whiten_stem)
    total, squares = torch.zeros(()), 0.0
    for step in range(source.total_steps - BATCHES, source.total_steps):  # the last steps have the largest resolution
        images, targets = source.load(source.draw(step), slice(0, SMALL), step)
        model.zero_grad()
        F.cross_entropy(model(images), targets.labels).backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        total, squares = total + gradient / BATCHES, squares + gradient.square().sum().item() / BATCHES
    large, exact = SMALL * BATCHES, total.square().sum().item()
    signal = (large * exact - SMALL * squares) / (large - SMALL)
    noise = (squares - exact) / (1 / SMALL - 1 / large)
    rows = [
        ("|gradient|^2", f"{signal:.3g}"),
        ("gradient noise per image", f"{noise:.3g}"),
        ("B_simple", f"{noise / signal:,.0f} images"),
    ]
    print_table(f"{argv[0]}, {large:,} images of {source.image_size} px", rows)
    return 0


if __name__ == "__main__":
    sys.exit(errors.run(main, sys.argv[1:]))
