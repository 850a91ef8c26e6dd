"""Finished runs by configuration, over seeds: python -m launch.summary RUN [RUN ...] [--out summary.md]"""

import os
import re
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch import runs
from tinyimnet import console, errors
from tinyimnet.config import NO_RECIPE
from tinyimnet.errors import Parser, UserError

HEADER = ("configuration", "seeds", "mean", "std", "min", "max")
TITLE = "EMA top-1 in percent at the end of finished runs"


@dataclass(frozen=True)
class Result:
    """What a finished run was and what it reached."""

    name: str
    seed: Any
    settings: dict[str, str]  # of the recipe
    top1: float  # of the averaged weights, percent


def main(argv: list[str]) -> int:
    """Print the table and, with --out, write it; returns the exit code.

    Raises:
        UserError: no run is finished, or the file cannot be written.
    """
    description = "Mean and spread of the final EMA top-1 over seeds, a row for each configuration."
    parser = Parser(prog="python -m launch.summary", description=description, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, or a folder of them")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table as markdown too")
    args = parser.parse_args(argv)
    paths = runs.find_runs(args.runs)
    read = [read_result(path, name) for path, name in zip(paths, runs.names_of(paths), strict=True)]
    results = [result for result in read if isinstance(result, Result)]
    others = ", ".join(result for result in read if isinstance(result, str))
    if not results:
        raise UserError(f"nothing to sum up: {others}; `python -m launch.status` shows how far they are.")
    rows = table(results)
    note = f"not counted: {others}" if others else ""
    console.table(TITLE, rows, HEADER)
    if note:
        console.console.print(note, markup=False)
    if args.out:
        write_markdown(args.out, rows, note)
    return 0


def read_result(path: Path, name: str) -> Result | str:
    """What a run reached, or its name and why it does not count."""
    if not (path / "DONE").exists():
        return f"{name} (not finished)"
    top1 = runs.read_json(path / "DONE").get(runs.TOP1)
    if not isinstance(top1, int | float):
        return f"{name} (its DONE is damaged)"
    settings = runs.read_settings(path)
    if not settings:
        return f"{name} (its config.yaml is damaged or missing)"
    kept = {key: str(value) for key, value in settings.items() if not key.startswith(NO_RECIPE)}
    return Result(name, settings.get("run.seed"), kept, top1)


def table(results: list[Result]) -> list[tuple[str, ...]]:
    """A row for each configuration, in the order in which they come."""
    groups: dict[tuple, list[Result]] = {}
    for result in results:
        groups.setdefault(tuple(sorted(result.settings.items())), []).append(result)
    all_settings = [group[0].settings for group in groups.values()]
    keys = sorted({key for settings in all_settings for key in settings})
    differing = [key for key in keys if len({settings.get(key) for settings in all_settings}) > 1]
    return [_row(group, differing) for group in groups.values()]


def _row(group: list[Result], differing: list[str]) -> tuple[str, ...]:
    top1 = [result.top1 for result in group]
    label = ", ".join(f"{key}={group[0].settings.get(key, '-')}" for key in differing)
    seeds = len({result.seed for result in group})
    return (
        label or common_name([result.name for result in group]),
        str(seeds) if seeds == len(group) else f"{seeds} ({len(group)} runs)",
        f"{statistics.mean(top1):.2f}",
        f"{statistics.stdev(top1):.2f}" if len(top1) > 1 else "-",
        f"{min(top1):.2f}",
        f"{max(top1):.2f}",
    )


def common_name(names: list[str]) -> str:
    """What the names of runs have in common, without the beginning of a seed: tiny1m-s0, tiny1m-s1 -> tiny1m."""
    if len(names) == 1:
        return names[0]
    common = os.path.commonprefix(names)  # noqa: RUF071 (letters are meant, not folders)
    return re.sub(r"[-_.](seed|s)?[-_.=]?\d*$", "", common) or "all the same"


def write_markdown(file: Path, rows: list[tuple[str, ...]], note: str) -> None:
    """Write the table for a README.

    Raises:
        UserError: the file cannot be written.
    """
    rule = ("---", *["---:"] * (len(HEADER) - 1))
    lines = ["| " + " | ".join(row) + " |" for row in (HEADER, rule, *rows)]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join([f"{TITLE}:", "", *lines, *(["", note] if note else [])]) + "\n")
    except OSError as error:
        raise UserError(f"--out {file} cannot be written ({error.strerror}); choose another file.") from None


if __name__ == "__main__":
    sys.exit(errors.run(main, sys.argv[1:]))
