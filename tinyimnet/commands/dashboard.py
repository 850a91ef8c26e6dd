"""Create or update a W&B dashboard of the project and, with runs, a report that compares them.

tinyimnet dashboard
tinyimnet dashboard runs/tiny1m-seed* --entity my-team

Rerunning overwrites manual changes: make those in a copy. Needs pip install 'wandb-workspaces>=0.4.13,<0.5'.
"""

import argparse
import multiprocessing
from importlib.util import find_spec
from pathlib import Path

from tinyimnet.config import TrackingConfig
from tinyimnet.errors import UserError
from tinyimnet.tracking import isolate
from tinyimnet.tracking.dashboard import ANSWER, publish, read_run
from tinyimnet.tracking.mode import wandb_mode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folders to compare in a report")
    parser.add_argument("--project", help="W&B project (default: tracking.project of the first RUN)")
    parser.add_argument("--entity", help="W&B user or team (default: WANDB_ENTITY, else the API key's)")


def main(args: argparse.Namespace) -> int:
    """Create or update both and print their addresses.

    Raises:
        UserError: the package is missing, W&B lacks a run, refuses or does not answer.
    """
    if not find_spec("wandb_workspaces"):
        raise UserError(
            "the dashboard needs wandb-workspaces; install it: pip install 'wandb-workspaces>=0.4.13,<0.5'."
        )
    if (mode := wandb_mode(TrackingConfig())).name == "disabled":
        raise UserError(f"W&B is disabled ({mode.source}), so there is no dashboard to make.")
    runs = [read_run(path) for path in args.runs]
    project = args.project or (runs[0].config["tracking.project"] if runs else TrackingConfig().project)
    # In a child process: wandb's exit hook waits over 80 s for a request that hangs, and on a terminal wandb prompts
    # for a key. A multiprocessing child runs no exit hooks and has no stdin. Leaving the block kills it.
    with multiprocessing.get_context("spawn").Pool(1, isolate.libraries_first) as pool:
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
