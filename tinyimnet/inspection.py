"""Look at the data: python -m tinyimnet inspect [--augmented].

Imports are made in the functions: the worker processes of `prepare` import this module and need no torch.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tinyimnet.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from tinyimnet.batches import TrainBatches


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `python -m tinyimnet inspect`."""
    parser.add_argument("--split", choices=("train", "val", "test"), default="train")
    parser.add_argument("--count", type=int, default=48, help="images (default: 48)")
    parser.add_argument(
        "--out", type=Path, default=Path("inspect.png"), help="PNG to write (default: inspect.png)"
    )
    parser.add_argument("--augmented", action="store_true", help="as the network sees a training batch")
    parser.add_argument(
        "--step", type=int, default=0, help="with --augmented: the optimizer step (default: 0)"
    )
    parser.epilog = "Takes train.py's options too: --config, --data.root, --augment.cutmix_probability 1 ..."


def main(args: argparse.Namespace) -> int:
    """Write a PNG grid of images, from the prepared arrays or as the network sees them."""
    import numpy as np
    import torch

    from tinyimnet import commandline, data, pictures, soft_labels
    from tinyimnet.batches import TrainBatches

    settings = commandline.load(args.options, prog="python -m tinyimnet inspect")
    dataset = data.open_dataset(Path(settings.data.root))
    if args.split not in dataset.images:
        raise UserError(f"--split {args.split}: {settings.data.root} has no {args.split} images.")
    if args.count < 1 or args.step < 0:
        raise UserError(f"--count is {args.count} and --step is {args.step}; they must be at least 1 and 0.")
    if args.augmented:
        if file := settings.data.soft_labels:
            dataset = soft_labels.add(dataset, Path(file))
        source = TrainBatches.of_run(settings, dataset, torch.device("cpu"))
        images, titles = augmented(source, dataset.names, args.step, args.count)
    else:
        n = len(dataset.images[args.split])
        rows = np.random.default_rng(settings.run.seed).permutation(n)[: args.count]
        images = dataset.images[args.split][rows]
        labels = dataset.labels.get(args.split)
        titles = [
            dataset.names[labels[row]] if labels is not None else dataset.test_files[row] for row in rows
        ]
    try:
        pictures.image_grid(images, titles, args.out)
    except OSError as error:
        raise UserError(
            f"--out {args.out} cannot be written ({error.strerror}); choose another file."
        ) from None
    print(f"{len(images)} images of {settings.data.root} ({args.split}): {args.out}")
    return 0


def augmented(
    batches: "TrainBatches", names: Sequence[str], step: int, count: int
) -> tuple["np.ndarray", list[str]]:
    """The first images of the global batch of a step as the network sees them.

    Args:
        batches: the training set.
        names: of the K classes.
        step: the optimizer step; S is its resolution.
        count: images, at most; a global batch may have fewer.

    Returns:
        (n, S, S, 3) uint8, and for each image the share of each of its classes, one or two lines.
    """
    images, targets = batches.load(batches.draw(step), slice(0, count), step)
    pixels = images.permute(0, 2, 3, 1) / batches.normalise.scale + batches.normalise.mean
    titles = []
    for target in targets.cpu():
        shares, classes = target.topk(2)
        parts = [f"{s:.2f} {names[c]}" for s, c in zip(shares, classes, strict=True) if s > 0.02]
        titles.append("\n".join(parts))
    return pixels.round().clamp(0, 255).byte().cpu().numpy(), titles
