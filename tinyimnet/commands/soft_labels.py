"""Save the logits of teachers for the training set, for distillation with data.soft_labels.

tinyimnet soft-labels runs/teacher --out data/soft_labels.safetensors
tinyimnet soft-labels runs/a runs/b --out data/soft_labels.safetensors        # the mean of both
"""

import argparse
import math
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from tinyimnet.commands.trained_run import dataset_of, load_network
from tinyimnet.data.soft_labels import write
from tinyimnet.distributed.cpu import quicker_precision
from tinyimnet.errors import writing
from tinyimnet.evaluation import analysis
from tinyimnet.evaluation.weights import Trained


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    several = "run folder or .safetensors file of a teacher; several are averaged"
    parser.add_argument("runs", type=Path, metavar="RUN", nargs="+", help=several)
    parser.add_argument("--data", type=Path, help="prepared folder (default: the first run's data.root)")
    both = "flip (default): average with the mirrored image, in twice the time"
    parser.add_argument("--tta", choices=("none", "flip"), default="flip", help=both)
    parser.add_argument("--out", type=Path, required=True, help=".safetensors file to write")


def main(args: argparse.Namespace) -> int:
    """Write the logarithm of the mean probabilities of the teachers for each training image."""
    with writing(args.out):
        args.out.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=args.out.parent).close()  # fail before minutes of computing
    teachers = [_quick(load_network(run)) for run in args.runs]
    datasets = [dataset_of(teacher, args.runs[0], args.data) for teacher in teachers]
    images, labels = datasets[0].images["train"], datasets[0].labels["train"]
    each = []
    for teacher in teachers:  # minutes on a CPU
        print(f"{teacher.origin}: {len(images):,} training images", file=sys.stderr, flush=True)
        each.append(analysis.log_probabilities(teacher, images, flip=args.tta == "flip"))
    logits = (torch.stack(each).logsumexp(0) - math.log(len(each))).numpy()
    with writing(args.out):
        write(args.out, logits, datasets[0], [str(teacher.origin) for teacher in teachers])
    top1 = (logits.argmax(1) == labels).mean()
    print(f"{len(labels):,} soft labels of {len(each)} teacher(s), training top-1 {top1:.1%}: {args.out}")
    return 0


def _quick(teacher: Trained) -> Trained:
    """The teacher in the precision that is quicker on this CPU; on a GPU, in that of its training."""
    if torch.cuda.is_available():
        return teacher
    return replace(teacher, precision=quicker_precision())
