"""Check the nodes of a job: code, versions, devices, clocks, disks, data, network. A run does the same at its start.

srun -N 2 --gpus-per-node=8 --ntasks-per-node=8 --cpus-per-task=4 tinyimnet preflight
accelerate launch --config_file configs/accelerate/node.yaml -m tinyimnet preflight

Takes train.py's options. It does not prepare or read the data.
"""

import argparse
import time
from pathlib import Path

from tinyimnet import config_cli
from tinyimnet.config import DataConfig
from tinyimnet.console import console, print_table
from tinyimnet.data import soft_labels
from tinyimnet.data.dataset import is_prepared, not_prepared
from tinyimnet.distributed import launcher, preflight, process_group
from tinyimnet.distributed.rendezvous import Rendezvous


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """None beyond train.py's."""


def main(args: argparse.Namespace) -> int:
    """Check and print a table of the ranks."""
    with launcher.errors_of_every_node():
        config = config_cli.load(args.options, prog="tinyimnet preflight")
        launcher.map_environment()
    started = time.monotonic()
    rendezvous = Rendezvous(config.train.timeout)
    with process_group.lost_processes_named():
        ranks = preflight.check(rendezvous, config, Path(config.run.dir).absolute())
        rendezvous.on_all_ranks("data", lambda: _see_data(config.data))
        accelerator = process_group.start(config.train, rendezvous)
        preflight.measure(accelerator, ranks)
    if rendezvous.is_main:
        print_table("preflight", preflight.rows(ranks), preflight.HEADER)
        console.print(f"passed in {time.monotonic() - started:.1f} s")
    process_group.close(accelerator)
    return 0


def _see_data(config: DataConfig) -> None:
    if not is_prepared(root := Path(config.root)):
        raise not_prepared(root)
    if config.soft_labels:
        soft_labels.read(Path(config.soft_labels))
