"""Group runs of one recipe that differ only in their seed, and name the groups."""

import os
import re
from collections.abc import Iterable

from tinyimnet.run.record import Record

_SEED = r"[-_.](seed|s)?[-_.=]?\d*$"


def by_recipe(runs: Iterable[Record]) -> list[list[Record]]:
    """Runs grouped by recipe, in the order in which they are given."""
    groups: dict[tuple, list[Record]] = {}
    for run in runs:
        groups.setdefault(run.recipe, []).append(run)
    return list(groups.values())


def common_name(names: list[str]) -> str:
    """Common prefix of run names without the seed: tiny1m-s0, tiny1m-s1 -> tiny1m; a, b -> 'a, ...'."""
    if len(names) == 1:
        return names[0]
    common = os.path.commonprefix(names)  # noqa: RUF071 (a prefix of characters, not of path components)
    return re.sub(_SEED, "", common) or f"{names[0]}, ..."


def group_name(name: str) -> str | None:
    """Recipe part of a run name that ends in -seedN: tiny1m-seed3 -> tiny1m; None for any other name."""
    found = re.fullmatch(r"(.+)-seed\d+", name)
    return found and found[1]
