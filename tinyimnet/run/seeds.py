"""Runs of one recipe that differ in their seed: which belong together, and what they are called."""

import os
import re
from collections.abc import Iterable

from tinyimnet.run.record import Record

_SEED = r"[-_.](seed|s)?[-_.=]?\d*$"


def by_recipe(runs: Iterable[Record]) -> list[list[Record]]:
    """The runs of each recipe, in the order in which they come."""
    groups: dict[tuple, list[Record]] = {}
    for run in runs:
        groups.setdefault(run.recipe, []).append(run)
    return list(groups.values())


def common_name(names: list[str]) -> str:
    """What the names of runs have in common, without the beginning of a seed: tiny1m-s0, tiny1m-s1 -> tiny1m; a, b -> 'a, ...'."""
    if len(names) == 1:
        return names[0]
    common = os.path.commonprefix(names)  # noqa: RUF071 (letters are meant, not folders)
    return re.sub(_SEED, "", common) or f"{names[0]}, ..."


def group_name(name: str) -> str | None:
    """The recipe in the name of a run that has its seed at the end: tiny1m-seed3 -> tiny1m; None for another name."""
    found = re.fullmatch(r"(.+)-seed\d+", name)
    return found and found[1]
