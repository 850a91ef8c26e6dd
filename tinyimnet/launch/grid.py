"""The points of a submission: combinations of grid values and seeds, and the names of their run folders."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence

from tinyimnet.errors import UserError

MOST = 10_000  # runs of a submission; as many jobs as Slurm keeps by default (MaxJobCount)
Point = tuple[tuple[str, str], ...]


def points(grid: Sequence[str], seeds: str | None) -> list[Point]:
    """The (key, value) pairs of each run, every combination once.

    Args:
        grid: axes such as 'optim.lr=0.1,0.2'.
        seeds: '0-4' or '0,7,9'; None for the configuration's own.

    Raises:
        UserError: an axis is malformed, two runs would share a folder, or there are too many runs.
    """
    axes = [_axis(text) for text in grid]
    if seeds is not None:
        axes.append([("run.seed", seed) for seed in _seeds(seeds)])
    keys = [axis[0][0] for axis in axes]
    if twice := next((key for key in keys if keys.count(key) > 1), ""):
        raise UserError(f"{twice} has its values from two of --grid and --seeds; give all of them in one.")
    if (count := math.prod(map(len, axes))) > MOST:
        raise UserError(f"--grid and --seeds give {count:,} runs and must give at most {MOST:,}; submit in parts.")
    return list(itertools.product(*axes))


def suffix(point: Point) -> str:
    """What the name of a run folder ends in: (('optim.lr', '0.1'), ('run.seed', '3')) -> '-lr0.1-seed3'."""
    return "".join(f"-{key.rpartition('.')[2]}{re.sub(r'[^0-9A-Za-z.]+', '_', value)}" for key, value in point)


def _axis(text: str) -> list[tuple[str, str]]:
    """'optim.lr=0.1,0.2' -> [('optim.lr', '0.1'), ('optim.lr', '0.2')]; commas in brackets do not separate values."""
    key, _, values = text.partition("=")
    pairs = [(key, value) for value in re.split(r",(?![^\[]*\])", values)]
    if not key or not all(value for _, value in pairs):
        raise UserError(f"--grid {text} is not of the form KEY=VALUE,VALUE.")
    first: dict[str, str] = {}
    for pair in pairs:
        name, value = suffix((pair,)), pair[1]
        if name in first:
            raise UserError(
                f"--grid {text}: the runs of {first[name]} and {value} would share the folder RUN{name}; "
                "write each value once, and so that letters, digits and dots tell it from the others."
            )
        first[name] = value
    return pairs


def _seeds(text: str) -> list[str]:
    """'0-2,7' -> ['0', '1', '2', '7']."""
    ranges = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", part)
        ranges.append(range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0))
    if not all(ranges):
        raise UserError(f"--seeds is {text!r} and must be of the form 0-4 or 0,7,9, with ranges from low to high.")
    if (count := sum(map(len, ranges))) > MOST:
        raise UserError(f"--seeds is {text!r}, which are {count:,} runs, and must be at most {MOST:,}.")
    seeds = list(itertools.chain(*ranges))
    if twice := next((seed for seed, times in Counter(seeds).items() if times > 1), None):
        raise UserError(f"--seeds is {text!r} and has seed {twice} twice; give each seed once.")
    return list(map(str, seeds))
