"""Print a completion script for your shell.

tinyimnet completion bash > ~/.local/share/bash-completion/completions/tinyimnet
tinyimnet completion zsh > ~/.zfunc/_tinyimnet               # with ~/.zfunc in fpath
"""

import argparse

import shtab

from tinyimnet import cli
from tinyimnet.config import KEYS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)


def main(args: argparse.Namespace) -> int:
    """Print the script."""
    print(shtab.complete(cli.make_parser(cli.COMMANDS, train_options()), shell=args.shell))
    return 0


def train_options() -> list[str]:
    """The options of train.py."""
    return ["--config", *(f"--{key}" for key in KEYS)]
