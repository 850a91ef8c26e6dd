"""The W&B view and report, created by the real packages on the test server."""

import json
import os
import pty
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from helpers.program import REPO, python, small_run
from tinyimnet import cli
from tinyimnet.commands import dashboard as command_line
from tinyimnet.errors import UserError
from tinyimnet.files import read_lines
from tinyimnet.run.metrics import RESULTS, STEP, by_chart
from tinyimnet.tracking import dashboard

pytest.importorskip("wandb_workspaces", reason="needs the extra tinyimnet[dashboard]")
PROJECT = "tiny-imagenet-1m"


@pytest.fixture(scope="module")
def trained(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real small run."""
    folder = tmp_path_factory.mktemp("runs") / "tiny-seed0"
    done = python("train.py", *small_run(tiny_data, folder, train__epochs=1), WANDB_MODE="disabled")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path, wandb_server: Any) -> list[str]:
    """Two run folders that differ in the seed, and their runs on the server."""
    folders = []
    for seed in (0, 1):
        folder = tmp_path / f"tiny-seed{seed}"
        shutil.copytree(trained, folder)
        config = folder / "config.yaml"
        config.write_text(config.read_text().replace("seed: 0", f"seed: {seed}"))
        (folder / "wandb_run.json").write_text(json.dumps({"id": f"id-of-{seed}"}))
        wandb_server.store.add_run(*wandb_server.store.project(None, PROJECT), f"id-of-{seed}")
        folders.append(str(folder))
    return folders


def command(*arguments: str) -> int:
    """Run `tinyimnet dashboard` in this process."""
    return cli.main(["dashboard", *arguments])


def only(server: Any, kind: str) -> Any:
    """Return the only view of a kind: project-view, or runs for a report."""
    (view,) = (view for view in server.views if view.type == kind)
    return view


def values(spec: Any, key: str) -> list[Any]:
    """Return all values of a key, at any depth of a spec."""
    if isinstance(spec, list):
        return [found for item in spec for found in values(item, key)]
    if not isinstance(spec, dict):
        return []
    here = [spec[key]] if key in spec else []
    return here + [found for item in spec.values() for found in values(item, key)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of wandb_workspaces itself, about pydantic
def test_panels_show_exactly_what_a_run_logs(trained: Path) -> None:
    logged = {key for line in read_lines(trained / "metrics.jsonl") for key in line}
    results = json.loads((trained / "DONE").read_text()).keys()
    plots = [panel for panels in dashboard.all_panels().values() for panel in panels if hasattr(panel, "y")]
    drawn = {key for plot in plots for key in plot.y}
    columns = {column.removeprefix("summary:") for column in dashboard.COLUMNS if column.startswith("summary:")}
    assert drawn - logged == {"perf/gpu_memory_gb", "perf/mfu"}, "a panel without a metric"  # only a GPU has these
    assert logged - drawn == {STEP, "epoch"}, "a metric that no panel shows"
    assert columns <= logged and RESULTS.keys() <= results


def test_the_view_has_all_charts_over_the_global_step(runs: list[str], wandb_server: Any, capsys) -> None:
    assert command() == 0
    view = only(wandb_server, "project-view")
    assert view.display_name == "Tiny ImageNet 1M"
    workspace = view.spec["section"]
    sections = {s["name"]: s["panels"] for s in workspace["panelBankConfig"]["sections"]}
    assert list(sections) == [
        *dict.fromkeys(m[0].group for m in by_chart().values()),
        "Seeds",
        "Media",
        "Run comparer",
    ]
    charts = {panel["config"]["chartTitle"]: panel["config"]["metrics"] for name in sections for panel in sections[name]
              if name not in ("Seeds", "Media", "Run comparer")}  # fmt: skip
    assert charts == {title: [metric.key for metric in metrics] for title, metrics in by_chart().items()}
    assert [len(sections[name]) for name in ("Seeds", "Media", "Run comparer")] == [2, len(dashboard.PICTURES), 1]
    axes = values([workspace["settings"], workspace["panelBankConfig"]], "xAxis")
    assert len(axes) > len(charts) and set(axes) == {STEP}
    grouped = [panel["config"]["groupArea"] for panel in sections["Seeds"] if panel["config"]["groupBy"] == "group"]
    assert grouped == ["stddev", "minmax"]
    address = f"{wandb_server.url}/{wandb_server.entity}/{PROJECT}?nw="
    assert capsys.readouterr().out.startswith(f"view: {address}")


def test_a_second_call_updates_the_view_and_the_report(runs: list[str], wandb_server: Any, capsys) -> None:
    command(*runs)
    first = {view.type: view.node for view in wandb_server.views}, capsys.readouterr().out
    command(*runs)
    assert ({view.type: view.node for view in wandb_server.views}, capsys.readouterr().out) == first
    assert len(wandb_server.views) == 2


def test_other_runs_get_a_report_of_their_own(runs: list[str], wandb_server: Any) -> None:
    command(*runs)
    command(runs[0])
    reports = [view.description for view in wandb_server.views if view.type == "runs"]
    assert reports == ["W&B runs id-of-0, id-of-1", "W&B runs id-of-0"]


def test_a_report_shows_only_its_runs_and_how_they_differ(runs: list[str], wandb_server: Any) -> None:
    command(*runs)
    report = only(wandb_server, "runs")
    assert report.display_name == "Tiny ImageNet 1M: tiny-seed0, tiny-seed1"
    (filters,) = (run_set["filters"]["filters"] for run_set in values(report.spec, "runSets")[0])
    assert [(item["key"]["name"], item["op"], item["value"]) for item in filters] == [
        ("name", "IN", ["id-of-0", "id-of-1"])  # W&B calls the id of a run its name
    ]
    results, recipe, attempts = (text.splitlines() for text in values(report.spec, "content"))
    assert [line.split(" | ")[:2] for line in results[2:]] == [
        ["| tiny-seed0", "id-of-0"],
        ["| tiny-seed1", "id-of-1"],
    ]
    assert recipe[2:] == ["| run.seed | 0 | 1 |"]
    assert [line.split(" | ")[:2] for line in attempts[2:]] == [["| tiny-seed0", "1"], ["| tiny-seed1", "1"]]


# ---- errors and servers that do not answer ------------------------------------------------------------------


def test_a_project_that_does_not_exist_is_named(runs: list[str], wandb_server: Any) -> None:
    with pytest.raises(UserError, match="Project other does not exist under entity lab; check --project"):
        command(*runs, "--project", "other")


def test_a_run_that_was_not_sent_is_named_and_nothing_is_saved(runs: list[str], wandb_server: Any) -> None:
    Path(runs[1], "wandb_run.json").write_text('{"id": "offline"}', encoding="utf-8")
    with pytest.raises(
        UserError,
        match="no run offline .tiny-seed1. in lab/tiny-imagenet-1m.*tinyimnet sync .*tiny-seed1",
    ):
        command(*runs)
    assert wandb_server.views == []


def test_an_invalid_key_is_one_sentence(runs: list[str], wandb_server: Any, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    with pytest.raises(UserError, match="W&B request failed .*invalid API key.*check .*WANDB_API_KEY"):
        command(*runs)


def test_without_a_key_it_does_not_prompt_on_a_terminal(wandb_server: Any, monkeypatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    mine, terminal = pty.openpty()
    arguments = [sys.executable, "-m", "tinyimnet", "dashboard"]
    done = subprocess.run(arguments, cwd=REPO, timeout=120, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    assert done.returncode == 2
    assert b"error: W&B request failed (No API key configured" in os.read(mine, 4096)


@pytest.mark.parametrize("what", ["reset", "hang", 500])
def test_a_broken_server_is_one_sentence(what: str | int, runs: list[str], wandb_server: Any, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "2")  # per request; the default is 19
    wandb_server.break_with(what)
    with pytest.raises(UserError, match="W&B request failed .*check the network"):
        command(*runs)


def test_the_command_takes_a_bounded_time(runs: list[str], wandb_server: Any, monkeypatch) -> None:
    monkeypatch.setattr(command_line, "ANSWER", 4)  # before the client's own 19 s
    wandb_server.break_with("hang")
    start = time.monotonic()
    with pytest.raises(UserError, match="W&B did not answer within 4 s"):
        command(*runs)
    assert time.monotonic() - start < 19
