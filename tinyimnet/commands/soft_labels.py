"""python -m tinyimnet soft-labels RUN [RUN ...] --out FILE: what networks say of the training images, for data.soft_labels."""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

from tinyimnet.commands.trained_run import dataset_of, load_network
from tinyimnet.data.soft_labels import write
from tinyimnet.errors import writing
from tinyimnet.evaluation import analysis


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    several = "run folder or .safetensors file of a teacher; of several, the mean counts"
    parser.add_argument("runs", type=Path, metavar="RUN", nargs="+", help=several)
    parser.add_argument("--data", type=Path, help="prepared folder (default: the first run's data.root)")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")


def main(args: argparse.Namespace) -> int:
    """Write the teachers' mean probabilities for all training images, averaged with those of the mirror images."""
    with writing(args.out):
        args.out.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=args.out.parent).close()  # before the minutes of computing, not after them
    teachers = [load_network(run) for run in args.runs]
    datasets = [dataset_of(teacher, args.runs[0], args.data) for teacher in teachers]
    images, labels = datasets[0].images["train"], datasets[0].labels["train"]
    said = []
    for teacher in teachers:  # minutes on a CPU
        print(f"{teacher.origin} looks at {len(images):,} training images", file=sys.stderr, flush=True)
        said.append(analysis.log_probabilities(teacher, images, flip=True).exp().numpy())
    probabilities = np.mean(said, axis=0)
    with writing(args.out):
        write(args.out, probabilities, datasets[0], [str(teacher.origin) for teacher in teachers])
    top1 = (probabilities.argmax(1) == labels).mean()
    print(f"{len(labels):,} soft labels of {len(said)} network(s), which have {top1:.1%} of them right: {args.out}")
    return 0
