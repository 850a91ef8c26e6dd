"""Predict the classes of images and write them as CSV, or as JSON lines.

tinyimnet predict runs/tiny1m                                   # the test images of its data set
tinyimnet predict results/tiny1m_cpu.safetensors --images photo.jpg --label name --top 5 --out /dev/stdout
tinyimnet predict results/tiny1m_cpu.safetensors --images FOLDER --out labels.jsonl

CSV has the columns filename,label; with --top K they are filename,label_1,probability_1,... to K. A line of a .jsonl
file is {"filename": ..., "labels": [...], "probabilities": [...]}, the most probable first.
"""

import argparse
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor

from tinyimnet.commands.trained_run import dataset_of, load_network
from tinyimnet.console import counted
from tinyimnet.data.images import FITS
from tinyimnet.data.prepare import read_images
from tinyimnet.errors import UserError, writing
from tinyimnet.evaluation import analysis
from tinyimnet.files import write_atomically, write_csv


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder or .safetensors file")
    parser.add_argument(
        "--split", choices=("train", "val", "test"), default="test", help="of the data set (default: test)"
    )
    parser.add_argument(
        "--images",
        type=Path,
        help="instead of a split: an image file, a folder of them at any depth, or a .npy file; of any size, scaled as "
        "the training images were, else cropped to a square",
    )
    parser.add_argument("--strict", action="store_true", help="refuse --images with files that cannot be used")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("submission.csv"),
        help="CSV, or JSON lines if it ends in .jsonl (default: submission.csv)",
    )
    parser.add_argument("--top", type=int, metavar="K", help="the K most probable classes and their probabilities")
    parser.add_argument("--tta", choices=("none", "flip"), default="none", help="flip: average with the mirrored image")
    parser.add_argument("--label", choices=("wnid", "index", "name"), default="wnid", help="(default: wnid)")
    parser.add_argument("--data", type=Path, help="prepared folder (default: the run's data.root)")


def main(args: argparse.Namespace) -> int:
    """Write one row per image, in file order."""
    trained = load_network(args.run)
    fit, size = trained.fit or "crop", trained.image_size
    if args.top is not None and not 1 <= args.top <= len(trained.classes):
        raise UserError(f"--top {args.top} is not from 1 to {len(trained.classes)}, the classes; give such a number.")
    if args.images:
        files, images = read_images(args.images, fit, size, strict=args.strict)
    else:
        dataset = dataset_of(trained, args.run, args.data)
        if args.split not in dataset.images:
            raise UserError(f"--split {args.split}: {dataset.root} has no {args.split} images; use --images.")
        images = dataset.images[args.split]
        numbered = [f"{args.split}_{i}" for i in range(len(images))]
        files = list(dataset.test_files) if args.split == "test" and dataset.test_files else numbered
    log_probabilities = analysis.log_probabilities(trained, images, flip=args.tta == "flip")
    label = {"wnid": trained.classes, "index": range(len(trained.classes)), "name": trained.names}[args.label]
    rows = [
        {"filename": name, "labels": [label[index] for index in indices], "probabilities": probabilities}
        for name, indices, probabilities in zip(files, *_most_probable(log_probabilities, args.top or 1), strict=True)
    ]
    with writing(args.out):
        args.out.parent.mkdir(parents=True, exist_ok=True)
        if args.out.suffix == ".jsonl":
            write_atomically(args.out, "".join(json.dumps(row) + "\n" for row in rows))
        else:
            write_csv(args.out, _table(rows, args.top))
    print(f"{counted(len(files), 'prediction')} of {trained.origin} (step {trained.step:,}): {args.out}")
    if args.images:
        print(f"images of other sizes: scaled to {size}x{size} pixels ({fit}: {FITS[fit]})")
    return 0


def _most_probable(log_probabilities: Tensor, count: int) -> tuple[list[list[int]], list[list[float]]]:
    """Indices and probabilities of the first `count` classes of each row; of equal ones the first class comes first."""
    values, indices = log_probabilities.sort(dim=1, descending=True, stable=True)
    return indices[:, :count].tolist(), values[:, :count].double().exp().tolist()


def _table(rows: list[dict[str, Any]], top: int | None) -> Iterator[list[Any]]:
    """The rows of a CSV file, with a header; without `top` only the labels."""
    if top is None:
        yield ["filename", "label"]
        yield from ([row["filename"], *row["labels"]] for row in rows)
        return
    yield ["filename", *(f"{column}_{k}" for k in range(1, top + 1) for column in ("label", "probability"))]
    for row in rows:
        yield [row["filename"], *chain.from_iterable(zip(row["labels"], row["probabilities"], strict=True))]
