"""Read a configuration: a YAML of differences and dotted overrides, with one sentence for each mistake.

Precedence: the defaults in config.py < the places of slurm/site.env < `--config FILE` < `--section.key value`.
`python train.py --help` lists every key and `--print_config` prints the resolved configuration.
"""

import argparse
import difflib
import os
import re
from argparse import ArgumentError
from dataclasses import replace
from pathlib import Path

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from tinyimnet.config import KEYS, Config, check, flatten, runs_root
from tinyimnet.errors import UserError
from tinyimnet.files import ROOT

set_parsing_settings(docstring_parse_attribute_docstrings=True)

CONFIGS = ROOT / "configs"
DEFAULT_CONFIG = CONFIGS / "tiny1m.yaml"
# Variables of slurm/site.env for what a configuration leaves to its default; configs/smoke.yaml names data of its own.
PLACES = {"data.root": "DATA_ROOT", "data.stage": "STAGE_TO"}
DESCRIPTION = "The defaults below < --config FILE, a YAML of differences < --section.key value."


def load(argv: list[str], prog: str = "train.py") -> Config:
    """The configuration that `argv` asks for; `--help` and `--print_config` print and exit.

    Raises:
        UserError: unknown key, wrong type or value, missing or malformed file; names the key and the value.
    """
    parser = ArgumentParser(prog=prog, description=DESCRIPTION, exit_on_error=False)
    parser.add_argument(
        "--config", action="config", help=f"YAML of differences (default: configs/{DEFAULT_CONFIG.name})"
    )
    parser.add_class_arguments(Config)
    parser.set_defaults({key: os.environ[name] for key, name in PLACES.items() if os.environ.get(name)})
    try:
        file, overrides = _split_config(argv)
        parsed = parser.parse_args(["--config", str(file), *overrides])
        values = parser.instantiate(parsed)
    except (ArgumentError, TypeError, ValueError) as error:
        raise UserError(_sentence(str(error))) from None
    config = Config(**{name: getattr(values, name) for name in Config.__dataclass_fields__})
    if not config.run.dir:
        config = replace(config, run=replace(config.run, dir=f"{runs_root()}/{file.stem}"))
    check(config)
    return config


def _split_config(argv: list[str]) -> tuple[Path, list[str]]:
    """The file after --config (else the default) and the other arguments, which come after it and so override it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG)
    known, overrides = parser.parse_known_args(argv)
    _check_keys(known.config)
    return known.config, overrides


def _check_keys(file: Path) -> None:
    """Look that the file is a mapping of known keys: jsonargparse's word on that is hard to read."""
    try:
        tree = yaml.safe_load(file.read_text())
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
