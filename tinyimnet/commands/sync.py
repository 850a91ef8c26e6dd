"""Upload to W&B what it is missing of runs, then verify that it has every row and the final weights.

tinyimnet sync                              # every run in $RUNS_ROOT or runs/ that is not training
tinyimnet sync runs/tiny1m
tinyimnet sync --live runs/tiny1m           # follow a run on a node without internet, from one that has it
"""

import argparse
from pathlib import Path

from tinyimnet.errors import UserError
from tinyimnet.tracking import sync


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "runs",
        nargs="*",
        type=Path,
        metavar="RUN",
        help="run folders (default: all runs in $RUNS_ROOT or runs/ that use W&B and are not training)",
    )
    parser.add_argument(
        "--timeout",
        type=int,
        default=600,
        metavar="SECONDS",
        help="time limit per run (default: 600), no limit with --live",
    )
    parser.add_argument(
        "--live",
        action="store_true",
        help="follow one run until it ends",
    )


def main(args: argparse.Namespace) -> int:
    """Upload each run and print the outcome.

    Raises:
        UserError: nothing to upload, a given run is training, or W&B lacks rows afterwards.
    """
    runs = args.runs or sync.at_rest()
    if args.live and len(runs) > 1:
        raise UserError("--live follows one run; give its folder.")
    if args.live:
        sync.check(runs[0], live=True)
        sync.bounded(sync.follow, runs[0], None)
    failed = [str(error) for error in (sync.try_send(run, args.timeout) for run in runs) if error]
    if failed:
        raise UserError(" ".join(failed))
    return 0
