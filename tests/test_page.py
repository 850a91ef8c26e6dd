"""The report of runs as one HTML page: what it says, and what it says where something is missing."""

import argparse
import json
import math
import os
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from conftest import python
from hypothesis import given
from hypothesis import strategies as st

from tinyimnet import comparison, page, svg
from tinyimnet.config import Config, OptimConfig, RunConfig
from tinyimnet.errors import UserError
from tinyimnet.lock import LEASE
from tinyimnet.record import read_record
from tinyimnet.tracking import STEP


def folder(
    path: Path, top1: tuple[float, ...] = (10.0, 20.0), *, config: Config | None = None, **more: float
) -> Path:
    """A run folder with 100 steps and an evaluation in each epoch; `more` is added to every line."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(asdict(config or Config())))))
    lines = [
        {STEP: 100 * i, "epoch": i, "train/loss": 5 / i, "perf/step_ms": 20.0, "perf/eval_s": 1.0, "val/ema_top1": value, **more}
        for i, value in enumerate(top1, 1)
    ]  # fmt: skip
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def report(*arguments: object) -> str:
    """The page of `python -m tinyimnet report ARGUMENTS`."""
    parser = argparse.ArgumentParser()
    page.add_arguments(parser)
    args = parser.parse_args(list(map(str, arguments)))
    assert page.main(args) == 0
    return (args.out or args.runs[0] / "report.html").read_text()


# ---- what it says -------------------------------------------------------------------------------------------


def test_names_and_texts_of_a_run_are_shown_and_never_become_html(tmp_path: Path) -> None:
    run = folder(tmp_path / "<img src=x>&'\"")
    (run / "evaluation").mkdir()
    header = "class,name,images,correct,top1_percent,most_often_taken_for\n"
    (run / "evaluation" / "per_class.csv").write_text(header + "n1,<b>crab</b>,5,1,20.00,<script>\n")
    text = report(run)
    assert "<img src=x>" not in text and "<b>crab" not in text and text.count("<script>") == 1
    assert "&lt;img src=x&gt;&amp;&#x27;&quot;" in text and "&lt;b&gt;crab&lt;/b&gt;" in text


def test_nothing_of_the_environment_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-key-that-nobody-may-see")
    assert "a-key-that-nobody-may-see" not in report(folder(tmp_path / "run"))


def test_a_part_without_its_file_is_left_out(tmp_path: Path) -> None:
    text = report(folder(tmp_path / "run"))
    assert 'id="curves"' in text and 'id="configuration"' in text
    assert not any(f'id="{part}"' in text for part in ("evaluation", "pictures", "lives"))


def test_a_link_leads_to_the_run_on_wandb_and_nothing_else_becomes_one(tmp_path: Path) -> None:
    run = folder(tmp_path / "run")
    for url, links in (("https://wandb.ai/a/b/runs/c", 1), ("javascript:alert(1)", 0)):
        (run / "wandb_run.json").write_text(json.dumps({"id": "c", "url": url}))
        assert report(run).count(f'href="{url}"') == links


def test_training_time_counts_steps_and_evaluations(tmp_path: Path) -> None:
    assert read_record(folder(tmp_path / "run")).training_seconds == pytest.approx(200 * 0.020 + 2 * 1.0)


def test_a_life_is_marked_where_it_began_and_the_first_one_not(tmp_path: Path) -> None:
    run = folder(tmp_path / "run")
    life = {"started": 0, "job": "", "restart": 0, "nodes": ["a"], "processes": 1, "total_steps": 300}
    (run / "lives.jsonl").write_text(
        "".join(json.dumps(life | {"step": step}) + "\n" for step in (0, 150, 150))
    )
    assert read_record(run).starts() == [(150, 3)]
    assert "life 3, from step 150" in report(run)


@pytest.mark.parametrize(
    ("files", "state"),
    [
        ({"DONE": '{"steps": 200}'}, "finished"),
        ({"LOCK": ""}, "running"),
        ({"REQUEUE": "{}"}, "stopped"),
        (
            {"logs/rank_0.log": "1 INFO rank 0 of 1 is process 2 on a\n1 INFO ended by an error: no\n"},
            "failed",
        ),
        (
            {"logs/rank_0.log": "INFO ended by an error: no\n1 INFO rank 0 of 1 is process 2 on a\n"},
            "stopped",
        ),
        ({}, "stopped"),
    ],
)
def test_the_state_of_a_run_is_named(tmp_path: Path, files: dict[str, str], state: str) -> None:
    run = folder(tmp_path / "run")
    for name, content in files.items():
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(content)
    assert read_record(run).state()[0] == state
    assert f">{state}</b>" in report(run)


def test_a_run_whose_lock_is_no_longer_renewed_was_killed_and_goes_on_from_its_checkpoint(
    tmp_path: Path,
) -> None:
    run = folder(tmp_path / "run")
    (run / "LOCK").touch()
    os.utime(run / "LOCK", times=(time.time() - LEASE - 1,) * 2)
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "step_00000150.pt").touch()
    assert read_record(run).state() == ("killed", "after step 200; the same command goes on from step 150")


# ---- several runs -------------------------------------------------------------------------------------------


def seed(tmp_path: Path, number: int, lr: float, top1: tuple[float, ...]) -> Path:
    config = Config(run=RunConfig(seed=number), optim=OptimConfig(lr=lr))
    run = folder(tmp_path / f"net-seed{number}", top1, config=config)
    (run / "DONE").write_text(json.dumps({"val/ema_top1": top1[-1]}))
    return run


def test_runs_that_differ_in_the_seed_only_have_a_mean_and_a_range(tmp_path: Path) -> None:
    tops = ((10.0, 20.0), (12.0, 25.0, 26.0), (11.0, 30.0))
    runs = [read_record(seed(tmp_path, i, 0.1, top1)) for i, top1 in enumerate(tops)]
    [group] = comparison.by_seed(runs)
    curve = group.spread("val/ema_top1", 0)
    assert list(curve.steps) == [100, 200]  # what all three have
    assert list(curve.values) == [11.0, 25.0]
    assert (list(curve.low), list(curve.high)) == ([10.0, 20.0], [12.0, 30.0])
    row = "".join(f'<td class="r">{value}</td>' for value in ("25.33", "5.03", "20.00", "30.00"))
    assert f"<td>EMA top-1 [%]</td>{row}" in comparison.page(runs)


def test_runs_with_another_configuration_are_no_seeds_of_one_recipe(tmp_path: Path) -> None:
    runs = [read_record(seed(tmp_path, i, lr, (1.0,))) for i, lr in enumerate((0.1, 0.2))]
    assert comparison.by_seed(runs) == []
    assert 'id="seeds"' not in comparison.page(runs)


def test_what_the_configurations_of_runs_differ_in_is_in_view(tmp_path: Path) -> None:
    text = comparison.page([read_record(seed(tmp_path, i, 0.1 + i, (1.0,))) for i in range(2)])
    in_view = text.partition("What differs")[2].partition("<details>")[0]
    assert "<td>optim.lr</td><td>0.1</td><td>1.1</td>" in in_view and "optim.momentum" not in in_view


def test_a_run_that_is_named_twice_is_one(tmp_path: Path) -> None:
    run = folder(tmp_path / "run")
    assert "<h1>run</h1>" in report(run, f"{run}/", "--out", tmp_path / "page.html")


# ---- curves -------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400), st.integers(6, 60))
def test_a_thinned_curve_keeps_its_ends_and_extremes_and_is_short(values: list[float], most: int) -> None:
    places = svg.thin(values, most)
    kept = [values[i] for i in places]
    assert len(places) <= max(most, 2) and places == sorted(set(places))
    assert (kept[0], kept[-1], min(kept), max(kept)) == (values[0], values[-1], min(values), max(values))


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_and_enclose_the_values(low: float, size: float) -> None:
    ticks = svg.ticks(low, low + size)
    slack = 1e-6 * max(abs(low), size)
    assert ticks[0] <= low + slack and ticks[-1] >= low + size - slack and 2 <= len(ticks) <= 9


@pytest.mark.parametrize(
    ("value", "label"),
    [(0, "0"), (0.05, "0.05"), (250, "250"), (2500, "2.5k"), (20000, "20k"), (3e6, "3M"), (5e-4, "5e-4")],
)
def test_a_tick_has_a_short_label(value: float, label: str) -> None:
    assert svg.tick_label(value) == label


def test_values_that_are_not_finite_are_left_out_and_counted() -> None:
    curve = svg.Curve("norm", [1, 2, 3], [1.0, math.inf, math.nan], 0)
    figure = svg.figure("Gradient norm", [curve])
    assert "2 values that are not finite are left out" in figure and 'data-steps="1"' in figure
    assert svg.figure("Nothing", [svg.Curve("norm", [1], [math.nan], 0)]) == ""


def test_a_long_run_makes_a_small_page_in_seconds(tmp_path: Path) -> None:
    run = folder(tmp_path / "run", tuple(50 + math.sin(i) for i in range(20_000)), **{f"perf/{part}_ms": 1.0 for part in ("data", "forward_backward", "optimizer", "wait")})  # fmt: skip
    started = time.perf_counter()
    text = report(run)
    assert len(text) < 1e6 and time.perf_counter() - started < 10
    assert f"thinned to {svg.POINTS} points" in text


# ---- mistakes -----------------------------------------------------------------------------------------------


def no_run(run: Path) -> None:
    (run / "config.yaml").unlink()


def no_metrics(run: Path) -> None:
    (run / "metrics.jsonl").write_text("")


def damaged_configuration(run: Path) -> None:
    (run / "config.yaml").write_text("[")


def damaged_facts(run: Path) -> None:
    (run / "facts.json").write_text("{")


def damaged_table(run: Path) -> None:
    (run / "evaluation").mkdir()
    (run / "evaluation" / "per_class.csv").write_text("class,name\nn1,crab\n")


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (no_run, "is not a run folder: it has no config.yaml; name one, such as runs/smoke."),
        (
            no_metrics,
            r"has no line in metrics.jsonl yet; the first one comes after run.log_every \(50\) steps",
        ),
        (damaged_configuration, "config.yaml is damaged"),
        (damaged_facts, "facts.json is damaged .*restore it or delete it."),
        (damaged_table, "per_class.csv is damaged .*write it again: python -m tinyimnet evaluate"),
    ],
)
def test_a_folder_without_what_it_takes_is_named(tmp_path: Path, harm, sentence: str) -> None:
    run = folder(tmp_path / "run")
    harm(run)
    with pytest.raises(UserError, match=sentence):
        report(run)
    assert not (run / "report.html").exists()


def test_a_page_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--out .* cannot be written .*; choose another file."):
        report(folder(tmp_path / "run"), "--out", tmp_path / "missing" / "page.html")


def test_the_command_loads_neither_torch_nor_wandb() -> None:
    heavy = "import sys, tinyimnet.page; print({'torch', 'wandb', 'numpy', 'matplotlib'} & set(sys.modules))"
    assert python("-c", heavy).stdout == "set()\n"
