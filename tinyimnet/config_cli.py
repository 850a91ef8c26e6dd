"""Read a configuration: a YAML of differences and dotted overrides; each user error is one sentence.

Precedence: the defaults in config.py < the paths of slurm/site.env < `--config FILE` < `--section.key value`; of an
option given twice, the last counts. `python train.py --help` lists every key and `--print_config` prints the resolved
configuration.
"""

import argparse
import ast
import difflib
import functools
import inspect
import itertools
import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tinyimnet.config import KEYS, PATHS, Config, dump, runs_root
from tinyimnet.config_check import check
from tinyimnet.config_file import read_mapping, read_value
from tinyimnet.config_types import TYPES, convert, in_words
from tinyimnet.errors import Parser, UserError, did_you_mean
from tinyimnet.files import ROOT, exists, expanded, from_utf8, no_such

# Inside the package in a wheel, at the top of a checkout.
CONFIGS = next(folder for folder in (ROOT / "tinyimnet" / "configs", ROOT / "configs") if folder.is_dir())
DEFAULT_CONFIG = CONFIGS / "tiny1m.yaml"
# Variables of slurm/site.env that replace defaults; a configuration that sets the key, as smoke.yaml does, wins.
PLACES = {"data.root": "DATA_ROOT", "data.stage": "STAGE_TO"}
HELP = """\
Start a run, or resume the one in the run folder.

  python {program} --config smoke                                # no data needed
  python {program}                                               # configs/tiny1m.yaml
  python {program} --config my.yaml --optim.lr 0.3 --run.dir runs/lr03
  python {program} --config smoke --print_config                # the resolved configuration
  accelerate launch --multi_gpu {program}                       # a process per GPU

Precedence: defaults < --config FILE (a YAML of differences) < --section.key VALUE; the last of two counts.
"""


def load(argv: list[str], prog: str = "train.py") -> Config:
    """The configuration that `argv` asks for; `--help` and `--print_config` print and exit.

    Raises:
        UserError: unknown key, wrong type or value, missing or malformed file; names the key and the value.
    """
    options, given = _split(argv, prog)
    file = find_config(expanded(options.config, "--config"))
    values: dict[str, Any] = {key: os.environ[name] for key, name in PLACES.items() if os.environ.get(name)}
    values |= _from_file(file)
    values |= {key: _from_text(key, text) for key, text in given.items()}
    for key in PATHS:
        if values.get(key):
            values[key] = str(expanded(values[key], key))
    config = _assemble(values)
    if not config.run.dir:
        config = replace(config, run=replace(config.run, dir=f"{runs_root()}/{file.stem}"))
    check(config)
    if options.print_config:
        print(dump(config), end="")
        sys.exit(0)
    return config


def overrides(key: str, argv: list[str]) -> bool:
    """Whether the command line sets a key, instead of the configuration file or the default."""
    return key in _split(argv, "train.py")[1]


def find_config(name: Path) -> Path:
    """The file of that path, or for a bare name such as `smoke` the one in configs/.

    Raises:
        UserError: it is neither.
    """
    shipped = {file.stem: file for file in sorted(CONFIGS.glob("*.yaml"))}
    if name.is_dir():
        raise UserError(f"--config {name} is a folder and must be a YAML file, or one of {', '.join(shipped)}.")
    if exists(name):
        return name
    if str(name) != name.stem:
        raise UserError(f"--config {no_such(name)}")
    if str(name) not in shipped:
        raise UserError(f"--config {name} is neither a file nor one of {', '.join(shipped)}.")
    return shipped[str(name)]


# ---- the command line -------------------------------------------------------------------------------------------


def _split(argv: list[str], prog: str) -> tuple[argparse.Namespace, dict[str, str]]:
    """--config and --print_config, and the text of every key that the command line sets."""
    try:
        options, unknown = _parser(prog, complete="--help" in argv or "-h" in argv).parse_known_args(argv)
    except argparse.ArgumentError as error:
        name = (error.argument_name or "").removeprefix("--")
        raise UserError(_no_value(name) if name in (*KEYS, "config") else f"{error}; see `{prog} --help`.") from None
    if unknown:
        raise UserError(_unknown_option(unknown))
    given = {key: text for key, text in vars(options).items() if key in KEYS}
    for key, text in {"config": options.config, **given}.items():
        if not text and TYPES.get(key) is not str:
            raise UserError(_no_value(key))
    return options, given


def _no_value(key: str) -> str:
    return f"--{key} has no value; write --{key}=VALUE, or leave it out to keep the default."


@functools.cache
def _parser(prog: str, *, complete: bool) -> argparse.ArgumentParser:
    """The parser of all keys; their help needs the source code, which is read only if it is shown (`complete`)."""
    parser = Parser(
        prog=prog,
        usage=f"{prog} [--config FILE] [--section.key VALUE ...]",
        description=HELP.format(program="train.py" if prog == "train.py" else "-m tinyimnet train"),
        argument_default=argparse.SUPPRESS,
        exit_on_error=False,
    )
    text = "file, or the name of one in configs/ (default: tiny1m)"
    parser.add_argument("--config", metavar="FILE", default=str(DEFAULT_CONFIG), help=text)
    parser.add_argument("--print_config", action="store_true", default=False, help="print the configuration and exit")
    helps, defaults = (_documentation(), asdict(Config())) if complete else ({}, {})
    groups = {name: parser.add_argument_group(helps.get(name, name)) for name in Config.__dataclass_fields__}
    for key in KEYS:
        section, name = key.split(".")
        note = f"{helps[key]} (default: {_shown(defaults[section][name])})".replace("%", "%%") if complete else None
        groups[section].add_argument(f"--{key}", dest=key, metavar=_metavar(TYPES[key]), help=note)
    return parser


@functools.cache
def _documentation() -> dict[str, str]:
    """The docstring below each section and key in config.py."""
    found = {}
    for prefix, owner in {"": Config, **{f"{name}.": kind for name, kind in get_type_hints(Config).items()}}.items():
        (body,) = (node.body for node in ast.parse(inspect.getsource(owner)).body if isinstance(node, ast.ClassDef))
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                found[prefix + field.target.id] = ast.literal_eval(text.value)  # type: ignore[attr-defined]
    return found


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal or kind is bool:
        return f"{{{','.join(map(_shown, get_args(kind) or (True, False)))}}}"
    return {float: "NUMBER", int: "N", str: "TEXT"}.get(kind, "[N,...]" if get_origin(kind) is tuple else "NUMBER|auto")


def _shown(value: Any) -> str:
    """A value as YAML, to write on the command line."""
    if isinstance(value, tuple | list):
        return f"[{','.join(map(_shown, value))}]"
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def _unknown_option(arguments: list[str]) -> str:
    """What to write instead of the first of these arguments, which no option takes."""
    name, _, value = arguments[0].partition("=")
    key = name.lstrip("-\u2010\u2011\u2012\u2013\u2014\u2212")  # the dashes that documents and chats make of --
    if key.endswith((".yaml", ".yml")) or (CONFIGS / f"{key}.yaml").is_file():
        return f"{key} is not an option; give it as --config {shlex.quote(key)}."
    if key in KEYS or key in ("config", "print_config"):
        value = value or (arguments[1] if arguments[1:] and key != arguments[0] else "VALUE")
        return f"{name} is not an option; write --{key}={shlex.quote(value)}."
    if not key or (key == name and not value):
        return f"{arguments[0]} is not an option; write options as --section.key=VALUE (`--help` lists them)."
    return _unknown_key(key)


def _unknown_key(key: str) -> str:
    """A sentence that suggests the key that was meant: by its name, then by its documentation, then by its spelling."""
    section = re.sub(r"\W", "", key)
    if section in Config.__dataclass_fields__:
        example = next(each for each in KEYS if each.startswith(f"{section}."))
        return f"{key} is a section, not a key; give one of its keys, such as {example}."
    return f"{key} is not a known key{did_you_mean(_meant(key), '; `--help` lists them.')}"


def _meant(key: str) -> str:
    folder, _, leaf = key.lower().replace("-", "_").rpartition(".")
    words = set(leaf.split("_"))
    helps = _documentation()
    order = sorted(KEYS, key=lambda each: not each.startswith(f"{folder}."))  # the same section first
    names = [each for each in order if each.rpartition(".")[2] == leaf]
    parts = [each for each in order if words <= set(each.rpartition(".")[2].split("_"))]
    texts = [each for each in order if len(words) > 1 and words <= set(re.findall(r"\w+", helps[each].lower()))]
    leaves = {each.rpartition(".")[2]: each for each in KEYS}
    near = difflib.get_close_matches(leaf, leaves, 1)
    spelled = difflib.get_close_matches(key, KEYS, 1) or [leaves[name] for name in near]
    return next(iter([*names, *parts, *texts, *spelled]), "")


# ---- values -----------------------------------------------------------------------------------------------------


def _from_text(key: str, text: str) -> Any:
    """The value of a key from the command line."""
    for value in (text, read_value(text)):
        try:
            return convert(value, TYPES[key])
        except ValueError:
            pass
    raise UserError(_wrong(key, text, f"{text!r}"[:100]))


def _from_file(file: Path) -> dict[str, Any]:
    """The keys that a configuration file sets, with values of the declared types."""
    values = {}
    for section, keys in read_mapping(file, "--config", "optim: {lr: 0.1}").items():
        if section not in Config.__dataclass_fields__:
            raise UserError(f"{file}: {_not_a_section(section, keys)}")
        if not isinstance(keys, dict):
            held = "no keys" if keys is None else f"{keys!r}"[:100]
            example = next(key for key in KEYS if key.startswith(f"{section}.")).rpartition(".")[2]
            raise UserError(
                f"{file}: section {section} has {held} and must hold keys, such as '{section}: {{{example}: ...}}'; "
                "remove the line to keep the defaults."
            )
        for name, value in keys.items():
            key = f"{section}.{name}"
            if key not in KEYS:
                raise UserError(f"{file}: {_unknown_key(key)}")
            if value is None:
                raise UserError(f"{key} has no value in {file}; give it one, or remove the line to keep the default.")
            try:
                values[key] = convert(from_utf8(value) if isinstance(value, str) else value, TYPES[key])
            except ValueError:
                raise UserError(_wrong(key, value, f"{value!r}"[:100] + f" in {file}")) from None
    return values


def _not_a_section(name: str, keys: Any) -> str:
    """A top-level key that is no section: a key without its section, a key of the command line, or unknown."""
    if isinstance(keys, dict) and keys:
        return _unknown_key(f"{name}.{next(iter(keys))}")
    meant = name if name in KEYS else _meant(name)
    section, _, key = meant.partition(".")
    way_out = (
        f"write '{section}: {{{key}: ...}}'" if key else "the sections are " + ", ".join(Config.__dataclass_fields__)
    )
    return f"{name} is not a section of keys; {way_out}."


def _wrong(key: str, value: Any, shown: str) -> str:
    kind, hint = TYPES[key], ""
    if isinstance(value, str) and kind is not str and re.fullmatch(r"-?\d+,\d+", value):
        hint = f"; write {value.replace(',', '.')}"
    elif kind is str and not isinstance(value, list | dict):
        hint = "; write it in quotes"
    elif get_origin(kind) is tuple:
        section, name = key.split(".")
        hint = f", such as {_shown(asdict(Config())[section][name])}"
    return f"{key} is {shown} and must be {in_words(kind)}{hint}."


def _assemble(values: Mapping[str, Any]) -> Config:
    config = Config()
    for section in Config.__dataclass_fields__:
        mine = {key.partition(".")[2]: value for key, value in values.items() if key.startswith(f"{section}.")}
        config = replace(config, **{section: replace(getattr(config, section), **mine)})
    return config
