"""Mean and standard deviation of the final EMA top-1 over seeds, one row per recipe.

tinyimnet seeds runs/tiny1m-seed*
tinyimnet seeds runs --out seeds.md
"""

import argparse
import statistics
import sys
from pathlib import Path

from tinyimnet import cli, errors
from tinyimnet.console import command, console, print_table
from tinyimnet.errors import UserError
from tinyimnet.files import write_atomically
from tinyimnet.launch import runs
from tinyimnet.run import seeds
from tinyimnet.run.metrics import TOP1
from tinyimnet.run.record import Record, read_record

HEADER = ("recipe", "seeds", "mean", "std", "min", "max")
TITLE = "EMA top-1 in percent at the end of finished runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, or a folder of them")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the table as Markdown")


def main(args: argparse.Namespace) -> int:
    """Print the table and, with --out, write it.

    Raises:
        UserError: no run is finished, or the file cannot be written.
    """
    paths = runs.find_runs(args.runs)
    names, read = runs.names_of(paths), [read_record(path) for path in paths]
    left_out = {name: why for name, run in zip(names, read, strict=True) if (why := why_not(run))}
    counted = [run for name, run in zip(names, read, strict=True) if name not in left_out]
    others = ", ".join(f"{name} ({why})" for name, why in left_out.items())
    if not counted:
        raise UserError(f"no runs to summarize: {others}; `{command('status')}` shows their progress.")
    rows = table(counted)
    note = f"not counted: {others}" if others else ""
    print_table(TITLE, rows, HEADER)
    if note:
        console.print(note)
    if args.out:
        write_markdown(args.out, rows, note)
    return 0


def why_not(run: Record) -> str:
    """Why a run is not counted; "" if it is."""
    if not run.finished:
        return "not finished"
    if not isinstance(run.results.get(TOP1), int | float):
        return "its DONE is damaged"
    return "" if run.config else "its config.yaml is damaged or missing"


def table(finished: list[Record]) -> list[tuple[str, ...]]:
    """One row per recipe, in order of first appearance."""
    groups = seeds.by_recipe(finished)
    recipes = [dict(group[0].recipe) for group in groups]
    keys = sorted({key for recipe in recipes for key in recipe})
    differing = [key for key in keys if len({recipe.get(key) for recipe in recipes}) > 1]
    return [
        _row(group, ", ".join(f"{key}={_value(key, recipe, group[0])}" for key in differing))
        for group, recipe in zip(groups, recipes, strict=True)
    ]


def _value(key: str, recipe: dict[str, str], run: Record) -> str:
    """A value as text; a data set has a name besides its digest."""
    name = run.info.get("dataset", "") if key == "data" else ""
    return " ".join(dict.fromkeys(filter(None, (name, recipe.get(key, ""))))) or "-"


def _row(group: list[Record], label: str) -> tuple[str, ...]:
    top1 = [run.results[TOP1] for run in group]
    n_seeds = len({run.config.get("run.seed") for run in group})
    return (
        label or seeds.common_name([run.name for run in group]),
        str(n_seeds) if n_seeds == len(group) else f"{n_seeds} ({len(group)} runs)",
        f"{statistics.mean(top1):.2f}",
        f"{statistics.stdev(top1):.2f}" if len(top1) > 1 else "-",
        f"{min(top1):.2f}",
        f"{max(top1):.2f}",
    )


def write_markdown(file: Path, rows: list[tuple[str, ...]], note: str) -> None:
    """Write the table as Markdown.

    Raises:
        UserError: the file cannot be written.
    """
    rule = ("---", *["---:"] * (len(HEADER) - 1))
    lines = ["| " + " | ".join(row) + " |" for row in (HEADER, rule, *rows)]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, "\n".join([f"{TITLE}:", "", *lines, *(["", note] if note else [])]) + "\n")
    except OSError as error:
        raise UserError(f"--out {file} cannot be written ({error.strerror}); choose another file.") from None


if __name__ == "__main__":
    sys.exit(errors.run(cli.main, ["seeds", *sys.argv[1:]]))
