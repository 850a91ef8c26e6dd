#!/usr/bin/env python3
"""Say how many epochs of a configuration fit into your minutes on this machine.

    python benchmarks/budget.py --minutes 150 --config configs/tiny1m_cpu.yaml
    python benchmarks/budget.py --minutes 30 --config configs/tiny1m_sprint.yaml --train.precision bf16

It trains for about a minute with one process, on synthetic images of 64 px. A round has steps at each resolution of the
schedule, in the schedule's proportions, and an evaluation at full resolution. The result is the median over the rounds,
so that changes in machine speed affect all resolutions. Run it when nothing else runs: it measures what the machine has
to spare now.

All options but --minutes, --images and --val are those of train.py.
"""

import argparse
import math
import statistics
import sys
import tempfile
import time
from bisect import bisect_right
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO), str(REPO / "benchmarks")]

from throughput import EPOCH, VAL, make_trainer, rate

from tinyimnet import config_cli, errors
from tinyimnet.config import Config
from tinyimnet.console import counted, print_table
from tinyimnet.distributed import process_group
from tinyimnet.distributed.rendezvous import Rendezvous
from tinyimnet.training.trainer import Trainer

SECONDS, ROUNDS = 60.0, 3  # rounds of a twelfth of this time until it is over, but at least three
START = 30.0  # seconds to the first step: imports, digests of 1.3 GB; 15 and 38 on two busy cores
AT_END = 1.5  # evaluations after the last one: three passes, for flip averaging and the confusion matrix
MOST = 100_000  # train.epochs


@dataclass(frozen=True)
class Cost:
    """What a run costs, in seconds.

    Attributes:
        start: until the first step, and for all compilations.
        epoch: an epoch, averaged over the schedule.
        evaluation: an evaluation of the raw and the averaged weights.
        eval_every: epochs between two evaluations.
    """

    start: float
    epoch: float
    evaluation: float
    eval_every: int

    def of(self, epochs: int) -> float:
        """Seconds of a run. The schedule stretches with the epochs, so an epoch costs the same on average."""
        return self.start + epochs * self.epoch + (self.evaluations(epochs) + AT_END) * self.evaluation

    def evaluations(self, epochs: int) -> int:
        """Evaluations in a run: every `eval_every` epochs and after the last one."""
        return math.ceil(epochs / self.eval_every)

    def epochs_within(self, seconds: float) -> int:
        """Epochs of the longest run that takes at most `seconds`; 0 if there is none."""
        return bisect_right(range(1, MOST + 1), seconds, key=self.of)


def main(argv: list[str]) -> int:
    """Measure, and print the costs and the number of epochs."""
    options, settings = read(argv)
    batch, accelerator = settings.train.global_batch_size, process_group.start(settings.train, Rendezvous())
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(settings, accelerator, Path(folder))
        resolutions, firsts, counts = np.unique(trainer.batches.resolutions, return_index=True, return_counts=True)
        shares = counts / counts.sum()
        first_steps, seconds, evaluation = measure(trainer, firsts, shares)
    epoch = options.images // batch * float(shares @ seconds)
    cost = Cost(START + first_steps, epoch, evaluation * options.val, settings.run.eval_every)
    show_steps(f"{accelerator.device}, {settings.train.precision}", batch, resolutions, shares, seconds)
    fitting, fewest = cost.epochs_within(60 * options.minutes), max(1, math.ceil(settings.optim.warmup_epochs))
    show_run(cost, options, sorted({settings.train.epochs, fitting} - {0}))
    if fitting < fewest:
        raise errors.UserError(
            f"--minutes is {options.minutes:g} and must be at least {math.ceil(cost.of(fewest) / 60)} for "
            f"{counted(fewest, 'epoch')}, the fewest with optim.warmup_epochs {settings.optim.warmup_epochs:g}."
        )
    print(f"--train.epochs {fitting}")
    return 0


def show_steps(title: str, batch: int, resolutions: np.ndarray, shares: np.ndarray, seconds: np.ndarray) -> None:
    """Print the speed at each resolution."""
    rows = [
        (f"{resolution} px", f"{share:.1%}", f"{1000 * each:,.1f}", f"{batch / each:,.0f}")
        for resolution, share, each in zip(resolutions, shares, seconds, strict=True)
    ]
    print_table(f"{title}, batches of {batch}", rows, ("resolution", "steps", "ms per step", "images/s"))


def show_run(cost: Cost, options: argparse.Namespace, epochs: list[int]) -> None:
    """Print what a run consists of, and the minutes of runs of so many epochs."""
    rows = [
        ("epoch, averaged over the schedule", f"{cost.epoch / 60:.2f} minutes"),
        (f"evaluation of {options.val:,} images, raw and EMA", f"{cost.evaluation:.1f} s"),
    ]
    for n in epochs:
        parts = f"{counted(n, 'epoch')}, {counted(cost.evaluations(n), 'evaluation')}, start and end"
        rows.append((parts, f"{cost.of(n) / 60:.1f} minutes"))
    print_table(f"{options.images:,} training images", rows)


def read(argv: list[str]) -> tuple[argparse.Namespace, Config]:
    """The options of this script, and the configuration."""
    parser = errors.Parser(prog="benchmarks/budget.py", description=__doc__)
    parser.add_argument("--minutes", type=float, required=True, help="how long the run may take")
    parser.add_argument("--images", type=int, default=EPOCH, help="training images (default: %(default)s)")
    parser.add_argument("--val", type=int, default=VAL, help="validation images (default: %(default)s)")
    options, others = parser.parse_known_args(argv)
    for name, value in vars(options).items():
        if not 0 < value < math.inf:
            raise errors.UserError(f"--{name} is {value:g} and must be a positive number.")
    if not any(arg.startswith("--config") for arg in others):
        others = ["--config", str(config_cli.CONFIGS / "tiny1m_cpu.yaml"), *others]
    settings = config_cli.load(others, prog="benchmarks/budget.py")
    if (batch := settings.train.global_batch_size) > options.images:
        raise errors.UserError(f"train.global_batch_size is {batch}, more than the {options.images} training images.")
    return options, replace(settings, train=replace(settings.train, init_from=""))


def measure(trainer: Trainer, firsts: np.ndarray, shares: np.ndarray) -> tuple[float, np.ndarray, float]:
    """Seconds of steps and evaluations, which alternate.

    Args:
        trainer: the real trainer.
        firsts: (R,) the first step of the schedule at each resolution.
        shares: (R,) share of the schedule's steps at each resolution.

    Returns:
        Seconds of the very first steps together, of a later step at each resolution (R,), of evaluating one image.
    """
    batch, device = trainer.config.train.global_batch_size, trainer.accelerator.device

    def steps(counts: np.ndarray) -> np.ndarray:
        """Seconds of a step at each resolution, from `counts` steps."""
        seconds = []
        for first, count in zip(firsts.tolist(), counts.tolist(), strict=True):
            trainer.state.step = first
            seconds.append(batch / rate(trainer.train_step, batch, device, count))
        return np.array(seconds)

    def evaluation() -> float:
        trainer.state.step = trainer.total_steps
        started = time.perf_counter()
        trainer.validate()
        return (time.perf_counter() - started) / len(trainer.evaluator.images)

    one = np.ones(len(firsts), int)
    first_steps = float(steps(one).sum())  # they allocate and compile
    evaluation()
    counts = np.maximum(one, (shares * SECONDS / 12 / (shares @ steps(one))).round().astype(int))
    rounds, end = [], time.perf_counter() + SECONDS
    while len(rounds) < ROUNDS or time.perf_counter() < end:
        rounds.append((steps(counts), evaluation()))
    return first_steps, np.median([each for each, _ in rounds], axis=0), statistics.median(each for _, each in rounds)


if __name__ == "__main__":
    sys.exit(errors.run(main, sys.argv[1:]))
