"""The commands besides the training: python -m tinyimnet COMMAND, each a module of tinyimnet/commands."""

from importlib import import_module

from tinyimnet.errors import Parser, UserError

COMMANDS = {
    "prepare": "turn a source into arrays",
    "inspect": "write a PNG grid of images with their classes",
    "summary": "parameters, multiply-accumulates and shapes by stage; takes train.py's options",
    "preflight": "check the nodes of a job: under srun or accelerate launch; takes train.py's options",
    "evaluate": "accuracy, calibration and confused classes of a run",
    "predict": "write filename,label for images without labels",
    "soft-labels": "write what a network says of the training images, for data.soft_labels of another run",
    "report": "a run, or several side by side, as one HTML page",
    "sync": "send to W&B what it does not have yet of runs",
    "dashboard": "a view of the project on W&B, a report of runs",
}
TAKE_OPTIONS = ("inspect", "summary", "preflight")  # those of train.py too


def main(argv: list[str]) -> int:
    """Dispatch to a command; returns the exit code."""
    text = "Everything besides the training: data, evaluation, watching."
    parser = Parser(prog="python -m tinyimnet", description=text, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        if argv[:1] == [name]:  # the others are not imported: the decoding processes of `prepare` need no torch
            module = import_module(f"tinyimnet.commands.{name.replace('-', '_')}")
            module.add_arguments(command)
    args, options = parser.parse_known_args(argv)
    args.options = options
    if args.options and args.command not in TAKE_OPTIONS:
        raise UserError(
            f"unrecognized arguments: {' '.join(args.options)}; see `python -m tinyimnet {args.command} --help`."
        )
    return module.main(args)
