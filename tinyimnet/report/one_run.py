"""Page of a single run: progress, curves, evaluation, images, configuration and attempts.

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
from tinyimnet.run.states import look

PAGE = "report.html"  # file name in the run folder


def page(run: Record) -> str:
    """HTML page of a run.

    Raises:
        UserError: an evaluation file or an image is damaged.
    """
    return templating.page(
        "one_run.html.j2",
        run=run,
        state=run.state(),
        look=look(run.state()),
        key_figures=_key_figures(run),
        charts=_charts(run),
        evaluation=read_evaluation(run.path / "evaluation"),
        pictures=_pictures(run.path),
        config=Table(("key", "value"), "ll", list(run.config.items())),
        info=Table(("key", "value"), "ll", [(key, _plain(value)) for key, value in flatten(run.info).items()]),
        attempts=_attempts(run),
    )


def _key_figures(run: Record) -> list[Tile]:
    """Tiles below the run name; unknown figures are left out."""
    speeds, top1 = run.series("perf/images_per_s")[1], run.series(TOP1)[1]
    limit, macs = run.config.get("model.max_parameters"), run.info.get("macs")
    tiles = (
        Tile("EMA top-1", percent(run.last(TOP1)), f"best {max(top1):.2f} %" if top1 else ""),
        Tile("EMA top-1, flip TTA", percent(run.results.get("val/ema_top1_flip")), "averaged with mirror image"),
        Tile("raw top-1", percent(run.last("val/top1"))),
        Tile("parameters", f"{run.parameters:,}" if run.parameters else "", f"limit {limit:,}" if limit else ""),
        Tile("MACs", f"{macs / 1e6:,.1f} M" if macs else "", "per image"),
        Tile("epochs", f"{run.lines[-1].get('epoch', 0):.4g}", f"of {run.config.get('train.epochs', '?')}"),
        Tile("images/s", f"{statistics.median(speeds):,.0f}" if speeds else "", "median"),
        Tile("attempts", str(len(run.attempts) or ""), "starts and resumes"),
        Tile("training time", clock(run.training_seconds), _elapsed(run)),
    )
    return [tile for tile in tiles if tile.value]


def _elapsed(run: Record) -> str:
    """Time from the start of the first attempt to the last write of metrics.jsonl or DONE."""
    if not run.attempts:
        return ""
    files = [file for name in ("metrics.jsonl", "DONE") if (file := run.path / name).exists()]
    written = max(file.stat().st_mtime for file in files)
    return f"{clock(written - run.attempts[0].started)} elapsed"


def _charts(run: Record) -> list[Chart]:
    """One chart per logged quantity, with a mark at the start of each attempt that resumed."""
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
    """The images that are in the run folder."""
    found = (
        read_picture(path / "augmented.png", "Augmented training images", wide=True),
        read_picture(path / "evaluation" / "most_confused.png", "Most confused classes", wide=True),
        read_picture(path / "evaluation" / "confusion.png", "Confusion matrix"),
        read_picture(path / "evaluation" / "reliability.png", "Reliability diagram"),
    )
    return [picture for picture in found if picture]


def _attempts(run: Record) -> Table:
    """Table of attempts: start time, first step, nodes, processes and Slurm job."""
    rows = [
        (i, moment(each.started), f"{each.step:,}", ", ".join(each.nodes), each.processes, each.job or "-")
        for i, each in enumerate(run.attempts, 1)
    ]
    return Table(("attempt", "started", "from step", "nodes", "processes", "Slurm job"), "rrrlrl", rows)


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value or "-")
