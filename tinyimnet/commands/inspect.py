"""Write a PNG grid of images with their classes, raw or as the network sees them.

tinyimnet inspect
tinyimnet inspect --split val --count 100 --out val.png
tinyimnet inspect --augmented --step 5 --config tiny1m --augment.cutmix_probability 1

Takes train.py's options too.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from tinyimnet import config_cli
from tinyimnet.data import soft_labels
from tinyimnet.data.batches import TrainBatches
from tinyimnet.data.dataset import open_dataset
from tinyimnet.errors import UserError, writing
from tinyimnet.evaluation import pictures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--split", choices=("train", "val", "test"), default="train")
    parser.add_argument("--count", type=int, default=48, help="images (default: 48)")
    parser.add_argument("--out", type=Path, default=Path("inspect.png"), help="PNG to write (default: inspect.png)")
    parser.add_argument("--augmented", action="store_true", help="show an augmented training batch")
    parser.add_argument("--step", type=int, default=0, help="with --augmented: the optimizer step (default: 0)")


def main(args: argparse.Namespace) -> int:
    """Write the grid."""
    config = config_cli.load(args.options, prog="tinyimnet inspect")
    dataset = open_dataset(Path(config.data.root))
    if args.split not in dataset.images:
        raise UserError(f"--split {args.split}: {config.data.root} has no {args.split} images.")
    if args.count < 1 or args.step < 0:
        raise UserError(f"--count is {args.count} and --step is {args.step}; they must be at least 1 and 0.")
    if args.augmented:
        if file := config.data.soft_labels:
            dataset = soft_labels.add(dataset, Path(file))
        source = TrainBatches.of_run(config, dataset, torch.device("cpu"))
        images, titles = pictures.augmented(source, dataset.names, args.step, args.count)
    else:
        n = len(dataset.images[args.split])
        rows = np.random.default_rng(config.run.seed).permutation(n)[: args.count]
        images = dataset.images[args.split][rows]
        labels = dataset.labels.get(args.split)
        titles = [dataset.names[labels[row]] if labels is not None else dataset.test_files[row] for row in rows]
    with writing(args.out):
        pictures.image_grid(images, titles, args.out)
    print(f"{len(images)} images of {config.data.root} ({args.split}): {args.out}")
    return 0
