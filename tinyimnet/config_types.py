"""Types of configuration values: the declared type of each key, conversion from YAML, and both in words."""

from contextlib import suppress
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from tinyimnet.config import Config

TYPES: dict[str, Any] = {
    f"{section}.{key}": kind
    for section, of in get_type_hints(Config).items()
    for key, kind in get_type_hints(of).items()
}


def convert(value: Any, kind: Any) -> Any:
    """`value`, read from YAML, as `kind`: an int is accepted for a float and a list for a tuple, nothing else.

    Raises:
        ValueError: the value has another type.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        for each in inner:
            with suppress(ValueError):
                return convert(value, each)
    elif origin is Literal:
        if any(value == each and type(value) is type(each) for each in inner):
            return value
    elif origin is tuple:
        kinds = [inner[0]] * len(value) if isinstance(value, list) and inner[-1] is Ellipsis else list(inner)
        if isinstance(value, list) and len(value) == len(kinds):
            return tuple(convert(*pair) for pair in zip(value, kinds, strict=True))
    elif kind is float and type(value) is int:
        with suppress(OverflowError):
            return float(value)
    elif type(value) is kind:
        return value
    raise ValueError


def in_words(kind: Any) -> str:
    """A type as an error message names it: "a number", "one of sgd, adamw, muon"."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(in_words, inner))
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}" if len(inner) > 1 else str(inner[0])
    if origin is tuple:
        count = "" if inner[-1] is Ellipsis else f"{len(inner)} "
        return f"a list of {count}{'whole ' * (inner[0] is int)}numbers"
    return {float: "a number", int: "a whole number", bool: "true or false", str: "text"}[kind]
