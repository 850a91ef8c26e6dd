"""Page of a single run: progress, curves, evaluation, images, configuration and attempts.

A run writes it after its evaluations and at its end (training/page.py), commands/report.py at any time.
"""

import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from tinyimnet.config import defaults, flatten
from tinyimnet.console import clock, counted, moment
from tinyimnet.report import appearance, clocks, templating
from tinyimnet.report.baseline import Baseline
from tinyimnet.report.charts import Chart, Curve, Mark, chart
from tinyimnet.report.evaluation import read_evaluation
from tinyimnet.report.formats import percent
from tinyimnet.report.parts import Picture, Table, Tile, read_picture
from tinyimnet.run.folder import Attempt
from tinyimnet.run.metrics import STEP, TOP1, by_chart
from tinyimnet.run.record import Record
from tinyimnet.run.states import RUNNING, look

PAGE = "report.html"  # file name in the run folder


def page(run: Record, state: str = "", baseline: Baseline | None = None) -> str:
    """HTML page of a run; the page of a run that trains reloads itself.

    Args:
        run: a run with metrics.
        state: its state, if the folder does not say so yet.
        baseline: an accuracy to compare with.

    Raises:
        UserError: an evaluation file or an image is damaged.
    """
    state = state or run.state()
    return templating.page(
        "one_run.html.j2",
        run=run,
        state=state,
        words=run.state_in_words(state),
        look=look(state),
        live=state == RUNNING,
        key_figures=_key_figures(run),
        facts=_facts(run),
        charts=_charts(run, baseline),
        switch=clocks.switch([clocks.of_run(run)]),
        evaluation=read_evaluation(run.path / "evaluation"),
        pictures=_pictures(run.path),
        changed=_changed(run),
        config=Table(("key", "value"), "ll", list(run.config.items())),
        info=Table(("key", "value"), "ll", [(key, _plain(value)) for key, value in flatten(run.info).items()]),
        attempts=_attempts(run),
    )


def _key_figures(run: Record) -> list[Tile]:
    """Tiles below the run name; unknown figures are left out."""
    speeds, top1 = run.series("perf/images_per_s")[1], run.series(TOP1)[1]
    name = "EMA top-1" if run.finished else "EMA top-1 so far"
    shares = run.series("perf/mfu")[1]
    mfu = f", MFU {statistics.median(shares):.1f} %" if shares else ""
    limit, macs = run.config.get("model.max_parameters"), run.info.get("macs")
    tiles = (
        Tile(name, percent(run.last(TOP1)), f"best {max(top1):.2f} %" if top1 else ""),
        Tile("with flip TTA", percent(run.results.get("val/ema_top1_flip")), "EMA weights"),
        Tile("raw top-1", percent(run.last("val/top1"))),
        Tile("parameters", f"{run.parameters:,}" if run.parameters else "", f"limit {limit:,}" if limit else ""),
        Tile("MACs", f"{macs / 1e6:,.1f} M" if macs else "", "per image"),
        Tile("epochs", f"{run.lines[-1].get('epoch', 0):.4g}", f"of {run.config.get('train.epochs', '?')}"),
        Tile("images/s", f"{statistics.median(speeds):,.0f}" if speeds else "", f"median{mfu}"),
        Tile("training time", clock(run.training_seconds), _elapsed(run)),
    )
    return [tile for tile in tiles if tile.value]


def _facts(run: Record) -> dict[str, str]:
    """What was trained on which machine from which code; unknown facts are left out."""
    info, attempts = run.info, run.attempts
    facts = {
        "data": _data(info),
        "machine": _machine(info),
        "commit": info.get("git_commit", "")[:12] + (" with uncommitted changes" if info.get("git_modified") else ""),
        "seed": str(run.config.get("run.seed", "")),
        "started": f"{moment(attempts[0].started)}, {counted(len(attempts), 'attempt')}" if attempts else "",
    }
    return {name: fact for name, fact in facts.items() if fact}


def _data(info: dict[str, Any]) -> str:
    if not (classes := info.get("classes")):
        return ""
    images = f"{info.get('train_images', 0):,} training and {info.get('val_images', 0):,} validation images"
    return f"{info.get('dataset')}, {classes} classes (chance is {100 / classes:.2f} %), {images}"


def _machine(info: dict[str, Any]) -> str:
    if not (processes := info.get("world_size")):
        return ""
    gpus = ", ".join(f"{number} x {name}" for name, number in Counter(info.get("gpus", [])).items())
    count = "1 process" if processes == 1 else f"{processes} processes"
    return f"{count} on {', '.join(info.get('nodes', []))}: {gpus or info.get('cpu', info.get('device'))}"


def _changed(run: Record) -> Table:
    """The keys of the configuration that differ from the defaults."""
    default = defaults()
    rows = [(key, value, default.get(key, "-")) for key, value in run.config.items() if value != default.get(key)]
    return Table(("key", "value", "default"), "lll", rows)


def _elapsed(run: Record) -> str:
    """Time from the start of the first attempt to the last write of metrics.jsonl or DONE."""
    if not run.attempts:
        return ""
    files = [file for name in ("metrics.jsonl", "DONE") if (file := run.path / name).exists()]
    written = max(file.stat().st_mtime for file in files)
    return f"{clock(written - run.attempts[0].started)} elapsed"


def _charts(run: Record, baseline: Baseline | None) -> list[Chart]:
    """One chart per logged quantity, with a mark at the start of each attempt that resumed."""
    last = run.lines[-1][STEP]
    line = [baseline.curve(last)] if baseline else []
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
            ]
            + (line if metrics[0].key == TOP1 else []),
            marks,
            zero=appearance.from_zero(metrics[0]),
            stacked=appearance.is_stacked(metrics[0]),
            last=last,
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
        read_picture(path / "augmented.png", "Augmented training images", "wide"),
        read_picture(path / "evaluation" / "most_confused.png", "Most confused classes", "wide"),
        read_picture(path / "evaluation" / "confusion.png", "Confusion matrix"),
        read_picture(path / "evaluation" / "reliability.png", "Reliability diagram", "plot"),
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
