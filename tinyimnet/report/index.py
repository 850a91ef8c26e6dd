"""Page of all runs in a folder, the best first, with links to their pages."""

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from tinyimnet.console import clock
from tinyimnet.files import as_utf8, exists, matching
from tinyimnet.report import templating
from tinyimnet.report.formats import percent
from tinyimnet.report.one_run import PAGE
from tinyimnet.report.parts import Table
from tinyimnet.run.metrics import TOP1
from tinyimnet.run.record import Record, read_record
from tinyimnet.run.states import look

INDEX = "index.html"  # which `python -m http.server` shows


def runs_inside(folder: Path) -> list[Path]:
    """The run folders in a folder that is none itself; one that cannot be read is none.

    Raises:
        OSError: the folder cannot be read.
    """
    return [] if _is_run(folder) else [entry for entry in matching(folder, "*") if _is_run(entry)]


def _is_run(folder: Path) -> bool:
    try:
        return any(exists(folder / name) for name in ("config.yaml", "metrics.jsonl", "job.json"))
    except OSError:
        return False


def page(folder: Path, paths: Sequence[Path], out: Path) -> str:
    """HTML page of the runs in a folder; a file that is damaged is named below the table.

    Args:
        folder: the folder.
        paths: its run folders.
        out: where the page will be, for the links.
    """
    runs = sorted(map(read_record, paths), key=lambda run: (-(_top1(run) or 0), run.name))
    header = ("run", "state", "EMA top-1", "epochs", "parameters", "training time")
    return templating.page(
        "index.html.j2",
        name=as_utf8(folder.name),
        runs=Table(header, "llrrrr", [_row(run, out.parent) for run in runs]),
        damaged=[sentence for run in runs for sentence in run.damaged],
    )


def _row(run: Record, start: Path) -> tuple[str, ...]:
    state, epochs = run.state(), run.config.get("train.epochs", "?")
    return (
        _link(run, start),
        Markup('<b class="state {}">{}</b>').format(look(state), state),
        percent(_top1(run)) or "-",
        f"{run.lines[-1].get('epoch', 0):.4g}/{epochs}" if run.lines else "-",
        f"{run.parameters:,}" if run.parameters else "-",
        clock(run.training_seconds) if run.lines else "-",
    )


def _link(run: Record, start: Path) -> str:
    """The name of a run, linked to its page if it has one."""
    if not os.path.exists(run.path / PAGE):
        return run.name
    return Markup('<a href="{}">{}</a>').format(quote(os.path.relpath(run.path / PAGE, start)), run.name)


def _top1(run: Record) -> float | None:
    """The final EMA top-1, or the newest."""
    return run.results.get(TOP1, run.last(TOP1))
