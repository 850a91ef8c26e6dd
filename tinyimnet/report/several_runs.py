"""Page of several runs: their results, curves in one colour per run, and the spread over seeds."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tinyimnet.console import clock, moment
from tinyimnet.report import appearance, clocks, templating
from tinyimnet.report.baseline import Baseline
from tinyimnet.report.charts import Chart, Curve, Mark, chart, look
from tinyimnet.report.clocks import Clock
from tinyimnet.report.formats import result
from tinyimnet.report.parts import Table
from tinyimnet.run.metrics import METRICS, RESULTS, STEP, TOP1
from tinyimnet.run.record import Record
from tinyimnet.run.seeds import by_recipe, common_name


@dataclass(frozen=True)
class Seeds:
    """Two or more runs that differ only in their seed."""

    name: str
    runs: list[Record]

    def spread(self, key: str, colour: int, clock: int = 0) -> Curve:
        """Mean, minimum and maximum of a metric at the steps that all runs have."""
        steps, rows = _in_common([dict(zip(*run.series(key), strict=True)) for run in self.runs])
        label = f"{self.name}, mean of {len(self.runs)} seeds"
        means = [statistics.fmean(row) for row in rows]
        return Curve(label, steps, means, colour, [min(row) for row in rows], [max(row) for row in rows], clock)

    def clock(self) -> Clock:
        """The mean training time at the steps that all runs have."""
        seconds = [dict(zip((line[STEP] for line in run.lines), run.seconds(), strict=True)) for run in self.runs]
        steps, rows = _in_common(seconds)
        return Clock(self.runs[0].steps_per_epoch, steps or [0], [statistics.fmean(row) for row in rows] or [0])

    def finals(self) -> tuple[str, Table]:
        """Mean and spread of the results of the finished runs, with a title."""
        done = [run.results for run in self.runs if run.finished]
        rows = []
        for key, label in RESULTS.items():
            if values := [results[key] for results in done if key in results]:
                spread = statistics.stdev(values) if len(values) > 1 else None
                numbers = (statistics.fmean(values), spread, min(values), max(values))
                rows.append((label, *(result(key, number) for number in numbers)))
        title = f"{self.name}: {len(done)} of {len(self.runs)} seeds finished"
        return title, Table(("final metric", "mean", "std", "min", "max"), "lrrrr", rows)


def page(runs: Sequence[Record], baseline: Baseline | None = None) -> str:
    """HTML page of two or more runs."""
    named = {_name(run, runs): run for run in runs}
    groups = groups_of_seeds(runs)
    spreads = [group.spread(TOP1, i, clock=len(runs) + i) for i, group in enumerate(groups)]
    return templating.page(
        "several_runs.html.j2",
        names=list(named),
        overview=_overview(named),
        spread=chart("EMA top-1, mean and min/max [%]", spreads),
        finals=[group.finals() for group in groups],
        charts=_charts(named, baseline),
        switch=clocks.switch([clocks.of_run(run) for run in runs] + [group.clock() for group in groups]),
        differing=_configuration(named, differing=True),
        config=_configuration(named),
        attempts=_attempts(named),
    )


def groups_of_seeds(runs: Sequence[Record]) -> list[Seeds]:
    """Recipes that were run with two or more seeds."""
    groups = [group for group in by_recipe(runs) if len({run.config.get("run.seed") for run in group}) > 1]
    return [Seeds(common_name([run.name for run in group]), group) for group in groups]


def _in_common(values: Sequence[dict[float, float]]) -> tuple[list[float], list[list[float]]]:
    """The steps that all runs have, ascending, and at each of them the value of every run."""
    steps = sorted(set(values[0]).intersection(*values[1:]))
    return steps, [[each[step] for each in values] for step in steps]


def _overview(named: dict[str, Record]) -> Table:
    """Table of results, progress and cost, with a row per run."""
    header = (
        "run",
        *RESULTS.values(),
        "epochs",
        "state",
        "parameters",
        "images/s",
        "training time",
        "attempts",
    )
    rows = [(name, *_reached(run), *_cost(run)) for name, run in named.items()]
    return Table(header, "l" + "r" * len(RESULTS) + "rlrrrr", rows, [look(i) for i in range(len(rows))])


def _reached(run: Record) -> list[str]:
    values = [result(key, run.results.get(key, run.last(key))) for key in RESULTS]
    return [*values, f"{run.lines[-1].get('epoch', 0):.4g}/{run.config.get('train.epochs', '?')}", run.state()]


def _cost(run: Record) -> tuple[str, ...]:
    speeds = run.series("perf/images_per_s")[1]
    return (
        f"{run.parameters:,}" if run.parameters else "-",
        f"{statistics.median(speeds):,.0f}" if speeds else "-",
        clock(run.training_seconds),
        str(len(run.attempts) or "-"),
    )


def _charts(named: dict[str, Record], baseline: Baseline | None) -> list[Chart]:
    """One chart per metric, with one curve per run."""
    marks = [
        Mark(step, "", f"{name}: attempt {number}, from step {step:,}", look(i), i)
        for i, (name, run) in enumerate(named.items())
        for step, number in run.starts()
    ]
    epochs = {run.steps_per_epoch for run in named.values()}
    epoch = next(iter(epochs)) if len(epochs) == 1 else 0
    last = max(run.lines[-1][STEP] for run in named.values())
    line = [baseline.curve(last)] if baseline else []
    drawn = (
        chart(
            metric.title,
            [Curve(name, *run.series(metric.key), i, clock=i) for i, (name, run) in enumerate(named.items())]
            + (line if metric.key == TOP1 else []),
            marks,
            zero=appearance.from_zero(metric),
            last=last,
            epoch=epoch,
        )
        for metric in METRICS
        if metric.key != appearance.MARKS
    )
    return [found for found in drawn if found]


def _configuration(named: dict[str, Record], *, differing: bool = False) -> Table:
    """Table of all configuration keys, or only of those that differ."""
    keys = dict.fromkeys(key for run in named.values() for key in run.config)
    rows = [(key, *(run.config.get(key, "-") for run in named.values())) for key in keys]
    if differing:
        rows = [row for row in rows if len(set(map(str, row[1:]))) > 1]
    return Table(("key", *named), "l" * (1 + len(named)), rows)


def _attempts(named: dict[str, Record]) -> Table:
    """Table of every attempt of every run: start time, first step, nodes and Slurm job."""
    rows = [
        (name, i, moment(each.started), f"{each.step:,}", ", ".join(each.nodes), each.job or "-")
        for name, run in named.items()
        for i, each in enumerate(run.attempts, 1)
    ]
    return Table(("run", "attempt", "started", "from step", "nodes", "Slurm job"), "lrrrll", rows)


def _name(run: Record, runs: Sequence[Record]) -> str:
    """Name of the run folder, with as many parent folders as needed to distinguish it from the other runs."""
    others = [other.path.parts for other in runs if other is not run]
    for depth in range(1, len(run.path.parts)):
        tail = run.path.parts[-depth:]
        if all(other[-depth:] != tail for other in others):
            return "/".join(tail)
    return str(run.path)
