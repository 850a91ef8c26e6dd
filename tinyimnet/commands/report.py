"""Write a run, or several side by side, as one HTML page: curves, evaluation, configuration.

tinyimnet report runs/tiny1m                        # runs/tiny1m/report.html
tinyimnet report runs/tiny1m-seed* --out seeds.html

The page needs no server and no network. A run that is still training is shown up to its last checkpoint or log line.
"""

import argparse
import os
from pathlib import Path

from tinyimnet.errors import writing
from tinyimnet.files import write_atomically
from tinyimnet.report import one_run, several_runs
from tinyimnet.run.record import with_metrics


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder; several are compared")
    where = "file to write (default: RUN/report.html; for several runs: report.html)"
    parser.add_argument("--out", type=Path, metavar="FILE", help=where)


def main(args: argparse.Namespace) -> int:
    """Write the page and print its path."""
    paths = dict.fromkeys(Path(os.path.abspath(path)) for path in args.runs)
    runs = [with_metrics(path) for path in paths]
    page = one_run.page(runs[0]) if len(runs) == 1 else several_runs.page(runs)
    out = args.out or (args.runs[0] if len(runs) == 1 else Path()) / one_run.PAGE
    with writing(out):
        write_atomically(out, page)
    print(f"{out}: {len(page) / 1e6:.1f} MB; open it in a browser.")
    return 0
