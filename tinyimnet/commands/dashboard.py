"""python -m tinyimnet dashboard [RUN ...] [--project P] [--entity E]: a view of the project on W&B, a report of runs.

Given again, the command renews both, so changes made in them by hand are lost: make those in a copy of the view. It needs
one package more: pip install -r requirements-dashboard.txt
"""

import argparse
import multiprocessing
from importlib.util import find_spec
from pathlib import Path

from tinyimnet.config import TrackingConfig
from tinyimnet.errors import UserError
from tinyimnet.tracking.dashboard import ANSWER, publish, read_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folders of a report")
    parser.add_argument("--project", help="W&B project (default: tracking.project of the first RUN)")
    parser.add_argument("--entity", help="W&B user or team (default: WANDB_ENTITY, else that of the API key)")


def main(args: argparse.Namespace) -> int:
    """Make or renew the view and the report and print where they are.

    Raises:
        UserError: the package is missing, W&B does not have a run, or W&B does not answer or refuses.
    """
    if not find_spec("wandb_workspaces"):
        raise UserError("the dashboard needs wandb-workspaces: pip install -r requirements-dashboard.txt.")
    runs = [read_run(path) for path in args.runs]
    project = args.project or (runs[0].config["tracking.project"] if runs else TrackingConfig().project)
    # In a process of its own: wandb's exit hook waits for a request that hangs (over 80 s), and on a terminal wandb asks
    # for a key; a child of multiprocessing runs no exit hooks and has no standard input. Leaving the block ends it.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        try:
            urls = pool.apply_async(publish, (args.entity, project, runs)).get(ANSWER)
        except multiprocessing.TimeoutError:
            raise UserError(
                f"W&B did not answer within {ANSWER} s; look at the network and WANDB_BASE_URL, then give the same "
                "command again."
            ) from None
    for what, url in urls.items():
        print(f"{what}: {url}")
    return 0
