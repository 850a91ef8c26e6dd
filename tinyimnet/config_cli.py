"""Read a configuration: a YAML of differences and dotted overrides; each user error is one sentence.

Precedence: the defaults in config.py < the paths of slurm/site.env < `--config FILE` < `--section.key value`.
`python train.py --help` lists every key and `--print_config` prints the resolved configuration.
"""

import argparse
import difflib
import os
import re
from argparse import ArgumentError
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

from tinyimnet.config import KEYS, Config, check, flatten, runs_root
from tinyimnet.errors import UserError
from tinyimnet.files import ROOT, from_utf8, read_text

set_parsing_settings(docstring_parse_attribute_docstrings=True)

# Inside the package in a wheel, at the top of a checkout.
CONFIGS = next(folder for folder in (ROOT / "tinyimnet" / "configs", ROOT / "configs") if folder.is_dir())
DEFAULT_CONFIG = CONFIGS / "tiny1m.yaml"
# Variables of slurm/site.env that replace defaults; a configuration that sets the key, as smoke.yaml does, wins.
PLACES = {"data.root": "DATA_ROOT", "data.stage": "STAGE_TO"}
HELP = """\
Start a run, or resume the one in the run folder.

  accelerate launch {program}                                   # configs/tiny1m.yaml
  accelerate launch {program} --config smoke                    # no data needed
  python {program} --config my.yaml --optim.lr 0.3 --run.dir runs/lr03
  python {program} --config smoke --print_config                # the resolved configuration

Precedence: defaults < --config FILE (a YAML of differences) < --section.key VALUE.
"""


def load(argv: list[str], prog: str = "train.py") -> Config:
    """The configuration that `argv` asks for; `--help` and `--print_config` print and exit.

    Raises:
        UserError: unknown key, wrong type or value, missing or malformed file; names the key and the value.
    """
    parser = make_parser(prog)
    parser.set_defaults({key: os.environ[name] for key, name in PLACES.items() if os.environ.get(name)})
    try:
        file, tree, overrides = _split_config(argv)
        # The content, because jsonargparse would read the file in the encoding of the locale.
        parsed = parser.parse_args(["--config", yaml.safe_dump(tree), *overrides])
        values = parser.instantiate(parsed)
    except (ArgumentError, TypeError, ValueError) as error:
        raise UserError(_sentence(str(error))) from None
    config = Config(**{name: getattr(values, name) for name in Config.__dataclass_fields__})
    if not config.run.dir:
        config = replace(config, run=replace(config.run, dir=f"{runs_root()}/{file.stem}"))
    check(config)
    return config


def make_parser(prog: str) -> ArgumentParser:
    """The parser of all keys."""
    parser = ArgumentParser(
        prog=prog,
        usage=f"{prog} [--config FILE] [--section.key VALUE ...]",
        description=HELP.format(program="train.py" if prog == "train.py" else "-m tinyimnet train"),
        formatter_class=_Help,
        exit_on_error=False,
    )
    parser.add_argument(
        "--config", action="config", metavar="FILE", help="file, or the name of one in configs/ (default: tiny1m)"
    )
    parser.add_class_arguments(Config)
    return parser


class _Help(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Prints the examples verbatim."""


def find_config(name: Path) -> Path:
    """The file of that path, or for a bare name such as `smoke` the one in configs/.

    Raises:
        UserError: a bare name that is neither.
    """
    if name.is_file() or str(name) != name.stem:
        return name
    shipped = {file.stem: file for file in sorted(CONFIGS.glob("*.yaml"))}
    if str(name) not in shipped:
        raise UserError(f"--config {name} is neither a file nor one of {', '.join(shipped)}.")
    return shipped[str(name)]


def _split_config(argv: list[str]) -> tuple[Path, dict[str, Any], list[str]]:
    """The file after --config (else the default), its content, and the other arguments, which override it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG)
    known, overrides = parser.parse_known_args(argv)
    file = find_config(known.config)
    return file, _read_checked(file), overrides


def _read_checked(file: Path) -> dict[str, Any]:
    """Read a mapping of known keys, which is checked here because jsonargparse's own message is hard to read."""
    try:
        tree = yaml.safe_load(read_text(file))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"--config {file} cannot be read: {reason}.") from None
    if not isinstance(tree, dict) or not all(isinstance(section, dict) for section in tree.values()):
        raise UserError(f"--config {file} must hold sections of keys, such as 'optim: {{lr: 0.1}}'.")
    for key, value in flatten(tree).items():
        if key not in KEYS:
            raise UserError(f"{file}: {_unknown(key)}")
        if value is None:  # jsonargparse takes null for any type
            raise UserError(f"{key} has no value in {file}; give it one, or remove the line to keep the default.")
    return {section: {key: _as_path(value) for key, value in keys.items()} for section, keys in tree.items()}


def _as_path(value: Any) -> Any:
    """Text as the command line gives it, by which a file can be opened in any locale."""
    return from_utf8(value) if isinstance(value, str) else value


def _unknown(key: str) -> str:
    near = difflib.get_close_matches(key, KEYS, 1)
    return f"{key} is not a known key" + (f"; did you mean {near[0]}?" if near else "; `--help` lists them.")


def _sentence(message: str) -> str:
    """jsonargparse's message as one sentence that starts with the key."""
    message = " ".join(message.split())
    if file := re.match(r"unrecognized arguments: (\S+\.ya?ml)", message):
        return f"{file[1]} is not an option; give it as --config {file[1]}."
    if unknown := re.match(r"(?:unrecognized arguments:|Option) '?-*([\w.]+)", message):
        return _unknown(unknown[1])
    message = re.sub(r"<class '(\w+)'>", r"\1", message).replace("typing.", "")
    if union := re.match(r'Parser key "(.+?)": Does not validate.*Subtypes: (\[.*?\]+) Errors:.* value: (.*)', message):
        return f"{union[1]} is {union[3]!r} and must be one of {union[2]}."
    if wrong := re.match(r'Parser key "(.+?)": Expected an? (.*)\. Got value: (.*)', message):
        return f"{wrong[1]} is {wrong[3]!r} and must be of type {wrong[2]}."
    return message if message.endswith(".") else message + "."
