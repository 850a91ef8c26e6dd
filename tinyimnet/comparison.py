"""The page of several runs: a colour for each, what they reached, and the spread over seeds."""

import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tinyimnet import markup, svg
from tinyimnet.config import NO_RECIPE
from tinyimnet.markup import Html
from tinyimnet.record import Record, clock, moment
from tinyimnet.tracking import STEP

COMPARED = {
    "val/ema_top1": "EMA top-1, validation [%]",
    "val/ema_top5": "EMA top-5, validation [%]",
    "val/top1": "Raw top-1, validation [%]",
    "val/ema_loss": "EMA loss, validation",
    "val/loss": "Raw loss, validation",
    "train/loss": "Training loss",
    "train/lr": "Learning rate",
    "train/grad_norm": "Gradient norm",
    "train/ema_distance": "Raw to EMA distance",
    "perf/images_per_s": "Throughput [images/s]",
    "perf/step_ms": "Time of a step [ms]",
    "train/bad_steps": "Skipped steps, so far",
    "perf/failed_saves": "Failed saves, so far",
    "perf/gpu_memory_gb": "GPU memory, peak [GB]",
}
FINAL = {
    "val/ema_top1": "EMA top-1 [%]",
    "val/ema_top1_flip": "EMA top-1, flip [%]",
    "val/ema_top5": "EMA top-5 [%]",
    "val/top1": "raw top-1 [%]",
    "val/ema_loss": "EMA loss",
}


@dataclass(frozen=True)
class Seeds:
    """Runs that differ in their seed only."""

    name: str  # what is before -seedN
    runs: list[Record]

    def spread(self, key: str, colour: int) -> svg.Curve:
        """Mean, least and greatest value of a metric at the steps that all of them have."""
        values = [dict(zip(*run.series(key), strict=True)) for run in self.runs]
        steps = sorted(set(values[0]).intersection(*values[1:]))
        rows = [[each[step] for each in values] for step in steps]
        label = f"{self.name}, mean of {len(self.runs)} seeds"
        means = [statistics.fmean(row) for row in rows]
        return svg.Curve(label, steps, means, colour, [min(row) for row in rows], [max(row) for row in rows])


def page(runs: Sequence[Record]) -> str:
    """The HTML page of two or more runs."""
    title = f"{len(runs)} runs"
    names = ", ".join(map(markup.escaped, _names(runs)))
    head = f'<h1>{title}</h1><p>{names}<br><span class="soft">page of {moment(time.time())}</span></p>'
    sections = {
        "Runs": f'<div class="card">{overview(runs)}</div>',
        "Seeds": seeds(runs),
        "Curves": charts(runs),
        "Configuration": configuration(runs),
        "Lives": lives(runs),
    }
    return markup.document(f"{title}: {', '.join(_names(runs))}", head, sections)


def overview(runs: Sequence[Record]) -> str:
    """A row for each run: how far it is, what it reached, what it cost."""
    header = ("run", *FINAL.values(), "epochs", "state", "parameters", "images/s", "training time", "lives")
    rows = []
    for i, (run, name) in enumerate(zip(runs, _names(runs), strict=True)):
        speeds = run.series("perf/images_per_s")[1]
        rows.append(
            (
                Html(f'<i class="{svg.line_class(i)}"></i>{markup.escaped(name)}'),
                *(_fixed(key, run.results.get(key, run.last(key))) for key in FINAL),
                f"{run.lines[-1].get('epoch', 0):.4g}",
                run.state()[0],
                f"{run.parameters:,}" if run.parameters else "-",
                f"{statistics.median(speeds):,.0f}" if speeds else "-",
                clock(run.training_seconds),
                len(run.lives) or "-",
            )
        )
    return markup.table(header, rows, "l" + "r" * len(FINAL) + "rlrrrr")


def seeds(runs: Sequence[Record]) -> str:
    """Mean and spread of the runs that differ in their seed only; empty where there are no two of them."""
    groups = by_seed(runs)
    if not groups:
        return ""
    curves = [group.spread("val/ema_top1", i) for i, group in enumerate(groups)]
    figure = svg.figure("EMA top-1, mean and range [%]", curves)
    return f'<div class="charts">{figure}{"".join(map(final, groups))}</div>'


def final(group: Seeds) -> str:
    """Mean and spread of what the finished runs of a group reached."""
    done = [run.results for run in group.runs if run.results]
    rows = []
    for key, label in FINAL.items():
        if values := [results[key] for results in done if key in results]:
            spread = statistics.stdev(values) if len(values) > 1 else None
            numbers = (statistics.fmean(values), spread, min(values), max(values))
            rows.append((label, *(_fixed(key, value) for value in numbers)))
    title = f"{group.name}: {len(done)} of {len(group.runs)} seeds are finished"
    return markup.card(title, markup.table(("final value", "mean", "std", "min", "max"), rows, "lrrrr"))


def by_seed(runs: Sequence[Record]) -> list[Seeds]:
    """Groups of two or more runs named NAME-seedN with one configuration apart from the seed and where they lie."""
    groups: dict[tuple, list[Record]] = {}
    for run in runs:
        if found := re.fullmatch(r"(.+)-seed\d+", run.name):
            recipe = sorted(
                (key, str(value)) for key, value in run.settings.items() if not key.startswith(NO_RECIPE)
            )
            groups.setdefault((found[1], *recipe), []).append(run)
    return [Seeds(key[0], group) for key, group in groups.items() if len(group) > 1]


def charts(runs: Sequence[Record]) -> str:
    """Every metric over the global step, a curve for each run."""
    names = _names(runs)
    marks = [
        svg.Mark(step, "", f"{name}: life {life}, from step {step:,.0f}", svg.line_class(i))
        for i, (run, name) in enumerate(zip(runs, names, strict=True))
        for step, life in run.starts()
    ]
    epochs = {run.steps_per_epoch for run in runs}
    epoch = epochs.pop() if len(epochs) == 1 else 0
    figures = (
        svg.figure(
            title,
            [
                svg.Curve(name, *run.series(key), i)
                for i, (run, name) in enumerate(zip(runs, names, strict=True))
            ],
            marks,
            zero="loss" not in key,
            last=max(run.lines[-1][STEP] for run in runs),
            epoch=epoch,
        )
        for key, title in COMPARED.items()
    )
    told = "A dashed vertical line is where a life of the run with its colour began." if marks else ""
    return svg.sheet(figures, max(len(run.lines) for run in runs), told)


def configuration(runs: Sequence[Record]) -> str:
    """What the configurations differ in."""
    keys = list(dict.fromkeys(key for run in runs for key in run.settings))
    rows = [(key, *(run.settings.get(key, "-") for run in runs)) for key in keys]
    differing = [row for row in rows if len(set(map(str, row[1:]))) > 1]
    header = ("key", *_names(runs))
    folded = markup.folded("All keys", markup.table(header, rows, "l" * len(header)))
    return markup.card("What differs", markup.table(header, differing, "l" * len(header))) + folded


def lives(runs: Sequence[Record]) -> str:
    """When, where, in which job and from which step each life of each run began."""
    rows = [
        (name, i, moment(life["started"]), f"{life['step']:,}", ", ".join(life["nodes"]), life["job"] or "-")
        for run, name in zip(runs, _names(runs), strict=True)
        for i, life in enumerate(run.lives, 1)
    ]
    header = ("run", "life", "started", "from step", "nodes", "Slurm job")
    return markup.folded("Starts", markup.table(header, rows, "lrrrll")) if rows else ""


def _names(runs: Sequence[Record]) -> list[str]:
    """The names of the folders, with the folder above where two are called the same."""
    names = [run.name for run in runs]
    return [f"{run.path.parent.name}/{run.name}" if names.count(run.name) > 1 else run.name for run in runs]


def _fixed(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if "loss" in key else f"{value:.2f}"
