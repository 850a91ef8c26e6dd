"""Write a run, or several side by side, as one HTML page: curves, evaluation, configuration.

tinyimnet report runs/tiny1m                        # runs/tiny1m/report.html
tinyimnet report runs/tiny1m --baseline 53.34       # with a line at an accuracy, or at that of another run
tinyimnet report runs/tiny1m-seed* --out seeds.html
tinyimnet report runs                               # runs/index.html: all runs, with links to their pages

The page needs no server and no network. A run that is still training is shown up to its last checkpoint or log line.
"""

import argparse
import os
from pathlib import Path

from tinyimnet.errors import UserError, writing
from tinyimnet.files import write_atomically
from tinyimnet.report import index, one_run, several_runs
from tinyimnet.report.baseline import read_baseline
from tinyimnet.run.record import with_metrics


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    what = "run folder, or a folder of them; several runs are compared"
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help=what)
    where = "file to write (default: RUN/report.html; for several runs: report.html; for a folder: FOLDER/index.html)"
    parser.add_argument("--out", type=Path, metavar="FILE", help=where)
    line = "top-1 in percent, or a run whose EMA top-1 it is: a line in the diagram of the accuracy"
    parser.add_argument("--baseline", metavar="RUN_OR_NUMBER", help=line)


def main(args: argparse.Namespace) -> int:
    """Write the page and print its path."""
    baseline = read_baseline(args.baseline) if args.baseline else None
    paths = list(dict.fromkeys(Path(os.path.abspath(path)) for path in args.runs))
    inside = index.runs_inside(paths[0]) if len(paths) == 1 and paths[0].is_dir() else []
    if inside and baseline:
        raise UserError(f"--baseline is a line in the page of runs, and {args.runs[0]} holds runs; name some of them.")
    if inside:
        out = args.out or args.runs[0] / index.INDEX
        page = index.page(paths[0], inside, Path(os.path.abspath(out)))
    elif len(paths) == 1:
        out = args.out or args.runs[0] / one_run.PAGE
        page = one_run.page(with_metrics(paths[0]), baseline=baseline)
    else:
        out = args.out or Path(one_run.PAGE)
        page = several_runs.page([with_metrics(path) for path in paths], baseline)
    with writing(out):
        write_atomically(out, page)
    print(f"{out}: {len(page) / 1e6:.1f} MB; open it in a browser.")
    return 0
