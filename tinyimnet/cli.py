"""The command tree: `tinyimnet COMMAND`, also `python -m tinyimnet COMMAND`.

Each command is a module with `add_arguments(parser)` and `main(args)`; its docstring is the command's help. Only the
module of the given command is imported: `tinyimnet status` starts without torch.
"""

import argparse
from collections.abc import Collection
from importlib import import_module
from pathlib import Path
from types import ModuleType

import tinyimnet
from tinyimnet.errors import Parser, UserError
from tinyimnet.files import expanded

EXAMPLES = """\
Train a CNN of at most 1,000,000 parameters on Tiny ImageNet.

  tinyimnet train --config smoke             # no data, no GPU: three minutes
  tinyimnet prepare --download               # Tiny ImageNet, 248 MB
  tinyimnet train                            # configs/tiny1m.yaml
  accelerate launch --multi_gpu -m tinyimnet train       # a process per GPU
  tinyimnet report runs/tiny1m               # the run as one HTML page
  tinyimnet submit --nodes 2 --gpus-per-node 8 --seeds 0-4      # with Slurm
"""
COMMANDS = {
    "train": "start or resume a run",
    "prepare": "turn images into the arrays that a run reads",
    "unpack": "write the prepared images as PNG files by class",
    "inspect": "write a PNG grid of images, raw or augmented",
    "summary": "parameters, multiply-accumulates and shapes of a network",
    "evaluate": "accuracy, calibration and confused classes of a run",
    "predict": "write labels for images as CSV or JSON lines",
    "export": "write a network as one ONNX or torch file",
    "soft-labels": "save teacher logits for distillation",
    "report": "write an HTML page of a run, of several, or of a folder",
    "seeds": "mean and standard deviation over seeds",
    "tensorboard": "write event files for TensorBoard",
    "sync": "upload what W&B is missing of finished or offline runs",
    "dashboard": "create a W&B dashboard and report",
    "preflight": "check the nodes of a job",
    "submit": "send runs to Slurm with submitit",
    "status": "show all runs: state, progress, accuracy, time left",
    "logs": "print or follow the logs of all ranks",
    "cancel": "ask runs to save and stop",
    "completion": "print a completion script for bash, zsh or tcsh",
}
LAUNCH = ("seeds", "submit", "status", "logs", "cancel", "tensorboard")  # modules of tinyimnet/launch
TAKE_OPTIONS = ("train", "inspect", "summary", "preflight", "submit")  # those of train.py


def main(argv: list[str]) -> int:
    """Run a command; returns its exit code."""
    argv = argv or ["--help"]
    parser = make_parser(argv[:1])
    args, options = parser.parse_known_args(argv)
    if options and args.command not in TAKE_OPTIONS:
        raise UserError(f"unrecognized arguments: {' '.join(options)}; see `tinyimnet {args.command} --help`.")
    args.options = options
    return command_module(args.command).main(args)


def make_parser(complete: Collection[str], train_options: Collection[str] = ()) -> argparse.ArgumentParser:
    """The parser of the tree, with the arguments of the commands in `complete`.

    `train_options` are added to the commands that take them, for shell completion; `main` hands them on unparsed.
    """
    parser = Parser(prog="tinyimnet", usage="tinyimnet COMMAND [options]", description=EXAMPLES)
    parser.add_argument("--version", action="version", version=f"tinyimnet {tinyimnet.__version__}")
    commands = parser.add_subparsers(
        title="commands",
        prog="tinyimnet",
        dest="command",
        required=True,
        metavar="COMMAND [options]",
        parser_class=Parser,
    )
    for name, text in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=text,
            usage=f"tinyimnet {name} [options] [arguments]",
            add_help=name != "train",  # its own help lists the keys of a configuration
        )
        if name in complete:
            module = command_module(name)
            command.register("type", Path, expanded)
            command.description = module.__doc__
            module.add_arguments(command)
        if name in TAKE_OPTIONS:
            for option in train_options:
                if option != "--config" or name != "submit":  # which has its own
                    command.add_argument(option)
    return parser


def command_module(name: str) -> ModuleType:
    """The module of a command."""
    return import_module(f"tinyimnet.{'launch' if name in LAUNCH else 'commands'}.{name.replace('-', '_')}")
