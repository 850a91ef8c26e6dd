"""W&B views made from code: the project's workspace view "Tiny ImageNet 1M", and reports on runs."""

import json
import statistics
import textwrap
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinyimnet.config import MAY_CHANGE, Config, flatten
from tinyimnet.errors import UserError, one_line
from tinyimnet.run.metrics import RESULTS, STEP, TOP1, by_chart
from tinyimnet.run.record import Record, with_metrics
from tinyimnet.tracking.tracker import how_to_sync

TITLE = "Tiny ImageNet 1M"
TITLE_LENGTH = 128  # maximum number of characters in a report title
MAX_RUNS = 50  # curves in a panel; the W&B default is 10
ANSWER = 120  # seconds for all requests together; wandb allows 19 for each (WANDB_HTTP_TIMEOUT)
PICTURES = ("media/augmented", "evaluation/confusion", "evaluation/reliability", "evaluation/most_confused")
COLUMNS = (
    "run:state", "summary:val/ema_top1", "summary:val/ema_top5", "summary:val/top1", "summary:epoch",
    "summary:perf/images_per_s", "summary:perf/attempt", "config:parameters.value", "config:run.value.seed"
)  # fmt: skip


def read_run(path: Path) -> Record:
    """Read a run folder.

    Raises:
        UserError: it is not a run folder, has no metrics yet, or was never tracked on W&B.
    """
    run = with_metrics(path.absolute())
    if not run.wandb_id:
        raise UserError(f"{path} was never tracked on W&B: it has no wandb_run.json with an id.")
    return run


# ---- in the process that talks to W&B -----------------------------------------------------------------------


def publish(entity: str | None, project: str, runs: list[Record]) -> dict[str, str]:
    """Save the workspace view and, if there are runs, the report on them; return the URLs.

    Raises:
        UserError: the API key is missing, W&B lacks the project or a run, or W&B does not answer or refuses a request.
    """
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    wandb.setup(wandb.Settings(silent=True))
    try:
        api = wandb.Api()
        entity = str(entity or api.settings["entity"] or api.default_entity)
        views, reports = (saved(entity, project, kind) for kind in ("project-view", "runs"))
        urls = {}
        if runs:
            check_sent(api, entity, project, runs)
            urls["report"] = save_report(entity, project, reports, runs)
        return {"view": save_view(entity, project, views), **urls}
    except (wandb.Error, WandbApiFailedError, OSError) as error:
        raise UserError(
            f"W&B request failed ({one_line(error)}); check the network, WANDB_BASE_URL and WANDB_API_KEY, then rerun "
            "the same command."
        ) from None


def saved(entity: str, project: str, kind: str) -> list[Any]:
    """Saved views of a project, of the kind "project-view" (workspace views) or "runs" (reports).

    Each view has the attributes id, name, display_name and description.

    Raises:
        UserError: the project does not exist.
    """
    import wandb

    # A new Api each time: an Api caches the first listing of a project, whatever its kind.
    listed = wandb.Api().reports(f"{entity}/{project}")
    listed.variables["viewType"] = kind  # the client method lists reports only, but its query accepts any kind
    try:
        return list(listed)
    except ValueError as error:
        raise UserError(f"W&B: {one_line(error)}; check --project and --entity.") from None


def check_sent(api: Any, entity: str, project: str, runs: list[Record]) -> None:
    """Raise a UserError for the first run that W&B does not have."""
    chosen = {"name": {"$in": [run.wandb_id for run in runs]}}
    sent = {run.id for run in api.runs(f"{entity}/{project}", chosen)}
    for run in runs:
        if run.wandb_id not in sent:
            raise UserError(
                f"W&B has no run {run.wandb_id} ({run.name}) in {entity}/{project}; check --project and --entity, or "
                f"upload it with: {how_to_sync(run.path)}"
            )


def save_view(entity: str, project: str, views: list[Any]) -> str:
    """Create or update the workspace view of a project; return its URL."""
    import wandb_workspaces.workspaces as ws

    def section(name: str, panels: list[Any]) -> ws.Section:
        page = ws.SectionLayoutSettings(columns=3, rows=-(-len(panels) // 3))  # one page for all panels
        axis = ws.SectionPanelSettings(x_axis=STEP)
        return ws.Section(name=name, panels=panels, is_open=True, layout_settings=page, panel_settings=axis)

    view = ws.Workspace(
        entity=entity,
        project=project,
        name=TITLE,
        sections=[section(name, panels) for name, panels in all_panels().items()],
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=MAX_RUNS),
        runset_settings=ws.RunsetSettings(pinned_columns=list(COLUMNS)),
    )
    for old in views:
        if old.display_name == TITLE:  # without the old name and id, `save` would add a second view
            view._internal_name, view._internal_id = old.name, old.id
    view.save()
    return view.url


def save_report(entity: str, project: str, reports: list[Any], runs: list[Record]) -> str:
    """Create or update the report on some runs; return its URL."""
    import wandb_workspaces.expr as expr
    import wandb_workspaces.reports.v2 as wr

    ids = [run.wandb_id for run in runs]
    drawn = [panel for panels in all_panels().values() for panel in panels]
    names = ", ".join(run.name for run in runs)
    these = wr.Runset(
        entity=entity,
        project=project,
        name="Runs",
        filters=[expr.Metric("ID").isin(ids)],
        visible_columns=list(COLUMNS),
    )
    report = wr.Report(
        entity=entity,
        project=project,
        title=textwrap.shorten(f"{TITLE}: {names}", TITLE_LENGTH, placeholder=" ..."),
        description=f"W&B runs {', '.join(sorted(ids))}",  # identifies the report when it is saved again
        width="fluid",
        blocks=[
            wr.H1("Results"),
            wr.MarkdownBlock(markdown(results(runs))),
            wr.H1("Config differences"),
            wr.MarkdownBlock(markdown(recipe(runs))),
            wr.H1("Curves"),
            wr.PanelGrid(runsets=[these], panels=drawn),
            wr.H1("Attempts"),
            wr.MarkdownBlock(markdown(attempts(runs))),
        ],
    )
    for old in reports:
        if old.description == report.description:
            report.id = old.id
    report.save()
    return report.url


def all_panels() -> dict[str, list[Any]]:
    """Panels by section; every call creates new ones."""
    import wandb_workspaces.reports.v2 as wr

    def plot(title: str, keys: list[Any], **grouping: Any) -> wr.LinePlot:
        return wr.LinePlot(title=title, x=STEP, y=keys, max_runs_to_show=MAX_RUNS, **grouping)

    def over_seeds(spread: str) -> wr.LinePlot:  # wandb_mirror.py makes the seeds of one configuration a group
        grouping = {"groupby": "Group", "groupby_aggfunc": "mean", "groupby_rangefunc": spread}
        words = {"stddev": "standard deviation", "minmax": "min/max"}[spread]
        return plot(f"EMA top-1, validation: mean and {words} over seeds [%]", [TOP1], **grouping)

    sections: dict[str, list[Any]] = {}
    for title, metrics in by_chart().items():
        sections.setdefault(metrics[0].group, []).append(plot(title, [metric.key for metric in metrics]))
    return {
        **sections,
        "Seeds": [over_seeds("stddev"), over_seeds("minmax")],
        "Media": [wr.MediaBrowser(title=key, media_keys=[key], num_columns=1) for key in PICTURES],
        "Run comparer": [wr.RunComparer(diff_only="split")],
    }


# ---- tables -------------------------------------------------------------------------------------------------


def results(runs: list[Record]) -> list[list[str]]:
    """Table of the final results of each run, or else of its last evaluation; the first row is the header."""
    rows = [["run", "id", *RESULTS.values(), "epochs", "images/s", "attempts"]]
    for run in runs:
        speeds, last = run.series("perf/images_per_s")[1], {key: run.last(key) for key in (*RESULTS, "epoch")}
        last |= {key: run.results[key] for key in RESULTS if key in run.results}
        numbers = ["-" if value is None else f"{value:.2f}" for value in last.values()]
        speed = f"{statistics.median(speeds):.0f}" if speeds else "-"
        rows.append([run.name, run.wandb_id, *numbers, speed, str(len(run.attempts))])
    return rows


def recipe(runs: list[Record]) -> list[list[str]]:
    """Table of the settings that differ between runs, or from the defaults for a single run; header first."""
    columns = [(run.name, run.config) for run in runs]
    if len(runs) == 1:
        columns.insert(0, ("default", flatten(asdict(Config()))))
    rows = [["key", *(name for name, _ in columns)]]
    for key in columns[-1][1]:
        values = [json.dumps(config.get(key)) for _, config in columns]  # as JSON, a tuple equals a list
        if len(set(values)) > 1 and not key.startswith(MAY_CHANGE):
            rows.append([key, *values])
    return rows


def attempts(runs: list[Record]) -> list[list[str]]:
    """Table of every attempt of every run; the first row is the header."""
    rows = [["run", "attempt", "started (UTC)", "job", "nodes", "processes", "from step"]]
    for run in runs:
        for number, attempt in enumerate(run.attempts, 1):
            started = time.strftime("%Y-%m-%d %H:%M", time.gmtime(attempt.started))
            where = [attempt.job or "-", ", ".join(attempt.nodes), str(attempt.processes)]
            rows.append([run.name, str(number), started, *where, str(attempt.step)])
    return rows


def markdown(rows: list[list[str]]) -> str:
    """Format rows as a Markdown table; the first row is the header."""
    ruled = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(row) + " |" for row in ruled)
