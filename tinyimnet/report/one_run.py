"""The page of a single run: how far it is, its curves, its evaluation, its pictures, what it was started with.

commands/report.py writes it to a file.
"""

import statistics
from pathlib import Path
from typing import Any

from tinyimnet.config import flatten
from tinyimnet.console import clock, moment
from tinyimnet.report import appearance, templating
from tinyimnet.report.charts import Chart, Curve, Mark, chart
from tinyimnet.report.evaluation import read_evaluation
from tinyimnet.report.formats import percent
from tinyimnet.report.parts import Picture, Table, Tile, read_picture
from tinyimnet.run.folder import Attempt
from tinyimnet.run.metrics import STEP, TOP1, by_chart
from tinyimnet.run.record import Record


def page(run: Record) -> str:
    """The HTML page of a run.

    Raises:
        UserError: a file of its evaluation is damaged.
    """
    return templating.page(
        "one_run.html.j2",
        run=run,
        state=run.state(),
        key_figures=_key_figures(run),
        charts=_charts(run),
        evaluation=read_evaluation(run.path / "evaluation"),
        pictures=_pictures(run.path),
        config=Table(("key", "value"), "ll", list(run.config.items())),
        info=Table(("fact", "value"), "ll", [(key, _plain(value)) for key, value in flatten(run.info).items()]),
        attempts=_attempts(run),
    )


def _key_figures(run: Record) -> list[Tile]:
    """The tiles below the name; what is not known has none."""
    speeds, top1 = run.series("perf/images_per_s")[1], run.series(TOP1)[1]
    limit, macs = run.config.get("model.max_parameters"), run.info.get("macs")
    tiles = (
        Tile("EMA top-1", percent(run.last(TOP1)), f"best {max(top1):.2f} %" if top1 else ""),
        Tile("EMA top-1, flip", percent(run.results.get("val/ema_top1_flip")), "mirror image averaged"),
        Tile("raw top-1", percent(run.last("val/top1"))),
        Tile("parameters", f"{run.parameters:,}" if run.parameters else "", f"of {limit:,}" if limit else ""),
        Tile("MACs", f"{macs / 1e6:,.1f} M" if macs else "", "for one image"),
        Tile("epochs", f"{run.lines[-1].get('epoch', 0):.4g}", f"of {run.config.get('train.epochs', '?')}"),
        Tile("images/s", f"{statistics.median(speeds):,.0f}" if speeds else "", "median"),
        Tile("attempts", str(len(run.attempts) or ""), "starts of the run"),
        Tile("training time", clock(run.training_seconds), _elapsed(run)),
    )
    return [tile for tile in tiles if tile.value]


def _elapsed(run: Record) -> str:
    """From the first attempt to the last thing that was written."""
    if not run.attempts:
        return ""
    files = [file for name in ("metrics.jsonl", "DONE") if (file := run.path / name).exists()]
    written = max(file.stat().st_mtime for file in files)
    return f"{clock(written - run.attempts[0].started)} with pauses"


def _charts(run: Record) -> list[Chart]:
    """A chart for each quantity that was logged, with a mark where each attempt began."""
    marks = [
        Mark(step, str(number), f"attempt {number}, from step {step:,}, {_when(run.attempts[number - 1])}")
        for step, number in run.starts()
    ]
    drawn = (
        chart(
            title,
            [
                Curve(metric.label, *run.series(metric.key), appearance.colour(metric, i))
                for i, metric in enumerate(metrics)
            ],
            marks,
            zero=appearance.from_zero(metrics[0]),
            stacked=appearance.is_stacked(metrics[0]),
            last=run.lines[-1][STEP],
            epoch=run.steps_per_epoch,
        )
        for title, metrics in by_chart().items()
        if metrics[0].key != appearance.MARKS
    )
    return [found for found in drawn if found]


def _when(attempt: Attempt) -> str:
    return f"{moment(attempt.started)} on {', '.join(attempt.nodes)}"


def _pictures(path: Path) -> list[Picture]:
    """The pictures of the folder that are there."""
    found = (
        read_picture(path / "augmented.png", "Training images, as the network sees them", wide=True),
        read_picture(path / "evaluation" / "most_confused.png", "Most confused classes", wide=True),
        read_picture(path / "evaluation" / "confusion.png", "Confusion matrix"),
        read_picture(path / "evaluation" / "reliability.png", "Reliability"),
    )
    return [picture for picture in found if picture]


def _attempts(run: Record) -> Table:
    """When, where, in which job and from which step each attempt began."""
    rows = [
        (i, moment(each.started), f"{each.step:,}", ", ".join(each.nodes), each.processes, each.job or "-")
        for i, each in enumerate(run.attempts, 1)
    ]
    return Table(("attempt", "started", "from step", "nodes", "processes", "Slurm job"), "rrrlrl", rows)


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value or "-")
