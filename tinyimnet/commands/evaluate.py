"""Measure a trained network: top-1, top-5, loss, calibration, accuracy by class, confusion matrix.

tinyimnet evaluate runs/tiny1m
tinyimnet evaluate results/tiny1m_cpu.safetensors --data data/tiny-imagenet-200 --tta flip --out evaluation
"""

import argparse
from pathlib import Path

from tinyimnet.commands.trained_run import data_config_of, dataset_of, load_network
from tinyimnet.console import print_table
from tinyimnet.data.dataset import tuning_split
from tinyimnet.errors import writing
from tinyimnet.evaluation import analysis


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder or .safetensors file")
    parser.add_argument("--split", choices=("train", "val"), default="val")
    parser.add_argument("--tta", choices=("none", "flip"), default="none", help="flip: average with the mirrored image")
    whose = "prepared folder (default: the run's data.root, with its data.tune_split)"
    parser.add_argument("--data", type=Path, help=whose)
    parser.add_argument("--out", type=Path, help="folder for tables and figures (default: RUN/evaluation)")


def main(args: argparse.Namespace) -> int:
    """Print the results; write tables and figures."""
    trained = load_network(args.run)
    dataset, split = dataset_of(trained, args.run, args.data), args.split
    if not args.data and data_config_of(args.run).get("tune_split"):
        dataset, split = tuning_split(dataset), split.replace("val", "held-out train")
    images, labels = dataset.images[args.split], dataset.labels[args.split]
    out = args.out or (args.run.parent if args.run.is_file() else args.run) / "evaluation"
    log_probabilities = analysis.log_probabilities(trained, images, flip=args.tta == "flip")
    with writing(out, "folder"):
        results = analysis.write(out, trained, images, labels, log_probabilities, split=split, tta=args.tta)
    rows = [
        ("top-1", f"{results['top1']:.2f} %"),
        ("top-5", f"{results['top5']:.2f} %"),
        ("loss", f"{results['loss']:.4f}"),
        ("calibration error (ECE)", f"{results['ece']:.2f} %"),
        ("images", f"{results['images']:,} ({split}, {trained.resolution} px, tta {args.tta})"),
        ("weights", f"{trained.origin}, step {trained.step:,}"),
        ("written", f"{out}: {', '.join(sorted(file.name for file in out.iterdir()))}"),
    ]
    print_table(f"evaluation of {args.run}", rows)
    return 0
