"""python -m tinyimnet sync [RUN ...] [--live]: send to W&B what it does not have yet of runs."""

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
        help="run folders (default: all in $RUNS_ROOT or runs/ that are tracked on W&B and not training)",
    )
    parser.add_argument(
        "--timeout",
        type=int,
        default=600,
        metavar="SECONDS",
        help="limit for each run (default: 600); none with --live",
    )
    parser.add_argument(
        "--live",
        action="store_true",
        help="follow one run that is training on a node without a network, until it ends",
    )


def main(args: argparse.Namespace) -> int:
    """Send each run and print what became of it.

    Raises:
        UserError: there is nothing to send, a named run is being trained, or W&B does not have every row afterwards.
    """
    runs = args.runs or sync.at_rest()
    if args.live and len(runs) > 1:
        raise UserError("--live follows one run; name its folder.")
    if args.live:
        sync.check(runs[0], live=True)
        sync.bounded(sync.follow, runs[0], None)
    failed = [str(error) for error in (sync.try_send(run, args.timeout) for run in runs) if error]
    if failed:
        raise UserError(" ".join(failed))
    return 0
