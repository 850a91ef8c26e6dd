"""python -m tinyimnet report RUN [RUN ...]: a run, or several side by side, as one HTML page.

It shows what the W&B dashboard shows, from the run folder alone. It needs no server and no network: open it in a browser,
send it, or attach it. One that is made while the run goes on shows the run as far as it is.
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
    where = "page (default: RUN/report.html; of several runs: report.html)"
    parser.add_argument("--out", type=Path, metavar="FILE", help=where)


def main(args: argparse.Namespace) -> int:
    """Write the page and print where it is."""
    paths = dict.fromkeys(Path(os.path.abspath(path)) for path in args.runs)
    runs = [with_metrics(path) for path in paths]
    page = (one_run.page(runs[0]) if len(runs) == 1 else several_runs.page(runs)).encode()
    out = args.out or (args.runs[0] if len(runs) == 1 else Path()) / "report.html"
    with writing(out):
        write_atomically(out, page)
    print(f"{out}: {len(page) / 1e6:.1f} MB; open it in a browser.")
    return 0
