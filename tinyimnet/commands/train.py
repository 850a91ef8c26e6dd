"""Start or resume a run; the options are train.py's."""

import argparse
from typing import NoReturn

from tinyimnet import errors, train
from tinyimnet.distributed.process_group import exit_process


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """None beyond train.py's."""


def main(args: argparse.Namespace) -> NoReturn:
    """Train, then end the process as train.py does."""

    def train_as_command(argv: list[str]) -> int:
        return train.main(argv, prog="tinyimnet train")

    exit_process(errors.run(train_as_command, args.options, may_lose_output=True))
