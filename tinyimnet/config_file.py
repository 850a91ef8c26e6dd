"""Read YAML strictly: one mapping, no key twice; each user error names the file and the line.

PyYAML keeps the last of two equal keys, reads 010 as 8, 12:30:00 as 45000, 1e-3 as text and 2024-01-01 as a date.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from tinyimnet.errors import UserError, one_line


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a repeated key, with the numbers of YAML 1.2 and no dates."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (as in the base class)
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":int", ":float", ":timestamp"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                what = f"{key.value} is a key that" if isinstance(key.value, str) else "a key"
                hint = "; decimals have a point: 0.1, not 0,1" if key.tag.endswith((":int", ":float")) else ""
                raise yaml.constructor.ConstructorError(None, None, f"{what} is not text{hint}", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_INT = r"[-+]?(0|[1-9][0-9_]{0,30}|0x[0-9a-fA-F]{1,20})$"
_FLOAT = r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(_INT), list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(_FLOAT), list("-+.0123456789"))


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes the text that this loader or that of PyYAML reads as something else, such as 1e-3."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, []), *resolvers]
        for first, resolvers in _Loader.yaml_implicit_resolvers.items()
    }


def write(tree: dict[str, Any]) -> str:
    """A tree as YAML that reads as the same tree."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False)


def read_value(text: str) -> Any:
    """A single YAML value, as on the command line; text that is not valid YAML is text."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def read_mapping(file: Path, option: str, example: str) -> dict[str, Any]:
    """The mapping in a YAML file that was given as `option`; `example` is one, for the error message.

    Raises:
        UserError: the file is missing, unreadable, not UTF-8 or not YAML, has a key twice, or holds no single mapping.
    """
    try:
        tree = yaml.load(file.read_text(encoding="utf-8-sig"), _Loader)
    except OSError as error:
        raise UserError(f"{option} {file} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{option} {file} cannot be read: byte {error.start} is not UTF-8; save it as UTF-8.") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise UserError(f"{option} {file} cannot be read: line {line}: {_problem(error)}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{option} {file} cannot be read: {one_line(error)}.") from None
    if not isinstance(tree, dict):
        held = "is empty" if tree is None else f"holds {'a list' if isinstance(tree, list) else repr(tree)[:60]}"
        raise UserError(f"{option} {file} {held} and must hold keys, such as '{example}'.")
    return tree


def _problem(error: yaml.MarkedYAMLError) -> str:
    if error.problem and "'\\t'" in error.problem:
        return "a tab; indent with spaces"
    if error.problem and "but found another document" in error.problem:
        return "a second document begins; keep one"
    return str(error.problem or error.context).replace("'<stream end>'", "the end of the file")
