"""The tables of the W&B report, and the errors before any request to W&B."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tinyimnet import cli
from tinyimnet import config as configuration
from tinyimnet.config import Config, ModelConfig, OptimConfig, RunConfig
from tinyimnet.errors import UserError
from tinyimnet.run.metrics import RESULTS, STEP
from tinyimnet.tracking import dashboard

CONFIG = Config(
    model=ModelConfig(widths=(16, 16), depths=(1, 1)),
    optim=OptimConfig(lr=0.1),
    run=RunConfig(dir="runs/tiny", log_every=2),
)
ATTEMPT = {
    "started": 0,
    "job": "",
    "restart": 0,
    "nodes": ["n1", "n2"],
    "processes": 4,
    "step": 0,
    "total_steps": 6,
}


def write_run(parent: Path, seed: int, *, finished: bool = False) -> Path:
    """Write the folder of a run that was requeued once."""
    folder = parent / f"tiny-seed{seed}"
    folder.mkdir()
    config = replace(CONFIG, run=replace(CONFIG.run, seed=seed))
    (folder / "config.yaml").write_text(configuration.dump(config))
    lines = [{STEP: 3 * i, "epoch": i, "val/ema_top1": 20.0 + i, "perf/images_per_s": 100 * i} for i in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    attempts = [ATTEMPT, ATTEMPT | {"started": 3600, "job": "7", "restart": 1, "step": 3}]
    (folder / "attempts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in attempts))
    (folder / "wandb_run.json").write_text(json.dumps({"id": f"id-of-{seed}"}))
    if finished:
        (folder / "DONE").write_text(json.dumps({"val/ema_top1": 30, "val/ema_top1_flip": 31}))
    return folder


def test_the_recipe_of_a_single_run_is_its_difference_from_the_defaults(tmp_path: Path) -> None:
    heading, *rows = dashboard.recipe([dashboard.read_run(write_run(tmp_path, 0))])
    assert heading == ["key", "default", "tiny-seed0"]
    assert rows == [  # but not run.dir and run.log_every
        ["model.widths", "[64, 128, 256]", "[16, 16]"],
        ["model.depths", "[2, 4, 4]", "[1, 1]"],
        ["optim.lr", "0.5", "0.1"],
    ]


def test_the_recipe_of_several_runs_is_what_differs_between_them(tmp_path: Path) -> None:
    runs = [dashboard.read_run(write_run(tmp_path, seed)) for seed in (0, 1)]
    assert dashboard.recipe(runs) == [["key", "tiny-seed0", "tiny-seed1"], ["run.seed", "0", "1"]]


def test_results_are_final_or_else_of_the_last_evaluation(tmp_path: Path) -> None:
    runs = [dashboard.read_run(write_run(tmp_path, seed, finished=seed == 1)) for seed in (0, 1)]
    heading, *rows = dashboard.results(runs)
    shown = [dict(zip(heading, row, strict=True)) for row in rows]
    top1, flip, loss = (RESULTS[f"val/ema_{name}"] for name in ("top1", "top1_flip", "loss"))
    assert [(row["run"], row["id"]) for row in shown] == [
        ("tiny-seed0", "id-of-0"),
        ("tiny-seed1", "id-of-1"),
    ]
    assert [(row[top1], row[flip], row[loss]) for row in shown] == [
        ("22.00", "-", "-"),
        ("30.00", "31.00", "-"),
    ]
    assert {(row["epochs"], row["images/s"], row["attempts"]) for row in shown} == {("2.00", "150", "2")}


def test_every_attempt_has_a_row(tmp_path: Path) -> None:
    _, *rows = dashboard.attempts([dashboard.read_run(write_run(tmp_path, 0))])
    assert rows == [
        ["tiny-seed0", "1", "1970-01-01 00:00", "-", "n1, n2", "4", "0"],
        ["tiny-seed0", "2", "1970-01-01 01:00", "7", "n1, n2", "4", "3"],
    ]


def test_a_run_that_was_never_tracked_is_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path, 0)
    (folder / "wandb_run.json").unlink()
    with pytest.raises(UserError, match="tiny-seed0 was never tracked on W&B"):
        dashboard.read_run(folder)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)  # as if it were not installed
    with pytest.raises(UserError, match="install it: pip install 'wandb-workspaces>=0.4.13,<0.5'."):
        cli.main(["dashboard"])
