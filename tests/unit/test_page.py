"""The HTML report of runs: its content, and its errors if something is missing or damaged."""

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from markupsafe import escape

from helpers.pages import begin, chart, folder, page
from tinyimnet.config import Config, OptimConfig, RunConfig
from tinyimnet.console import moment
from tinyimnet.errors import UserError
from tinyimnet.report import several_runs
from tinyimnet.run.lock import LEASE
from tinyimnet.run.metrics import RESULTS
from tinyimnet.run.record import Record, read_record

# ---- content ------------------------------------------------------------------------------------------------


def test_text_from_a_run_is_escaped(tmp_path: Path) -> None:
    run = folder(tmp_path / "<img src=x>&'\"")
    (run / "evaluation").mkdir()
    header = "class,name,images,correct,top1_percent,most_often_taken_for\n"
    (run / "evaluation" / "per_class.csv").write_text(header + "n1,<b>crab</b>,5,1,20.00,<script>\n")
    text = page(run)
    assert "<img src=x>" not in text and "<b>crab" not in text and text.count("<script>") == 1
    assert escape(run.name) in text and escape("<b>crab</b>") in text


def test_nothing_of_the_environment_is_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-key-that-nobody-may-see")
    assert "a-key-that-nobody-may-see" not in page(folder(tmp_path / "run"))


def test_a_part_without_its_file_is_left_out(tmp_path: Path) -> None:
    text = page(folder(tmp_path / "run"))
    assert re.findall('<h2 id="(.*?)">', text) == ["curves", "configuration"]


def test_a_page_links_the_parts_that_it_has(tmp_path: Path) -> None:
    text = page(folder(tmp_path / "run"))
    assert re.findall('<a href="#(.*?)">', text) == ["curves", "configuration"]


@pytest.mark.parametrize(("url", "links"), [("https://wandb.ai/a/b/runs/c", 1), ("javascript:alert(1)", 0)])
def test_a_link_leads_to_the_run_on_wandb_and_nowhere_else(tmp_path: Path, url: str, links: int) -> None:
    run = folder(tmp_path / "run")
    (run / "wandb_run.json").write_text(json.dumps({"id": "c", "url": url}))
    assert page(run).count(f'href="{url}"') == links


def test_the_utilisation_stands_beside_the_speed(tmp_path: Path) -> None:
    assert "median, MFU 12.0 %" in page(folder(tmp_path / "run", **{"perf/images_per_s": 500.0, "perf/mfu": 12.0}))
    assert "MFU" not in page(folder(tmp_path / "without", **{"perf/images_per_s": 500.0}))


def test_training_time_counts_steps_and_evaluations(tmp_path: Path) -> None:
    assert read_record(folder(tmp_path / "run")).training_seconds == pytest.approx(200 * 0.020 + 2 * 1.0)


def test_an_unknown_key_figure_has_no_tile(tmp_path: Path) -> None:
    text = page(folder(tmp_path / "run"))
    assert "<dt>EMA top-1 so far</dt><dd>20.00 %</dd><dd>best 20.00 %</dd>" in text and "<dt>MACs</dt>" not in text


def test_the_accuracy_of_a_finished_run_is_not_called_so_far(tmp_path: Path) -> None:
    run = folder(tmp_path / "run")
    (run / "DONE").write_text("{}")
    assert "<dt>EMA top-1</dt>" in page(run)


INFO = {
    "dataset": "pets", "classes": 40, "train_images": 3000, "val_images": 500, "world_size": 4, "nodes": ["n1", "n2"],
    "gpus": ["H200"] * 4, "cpu": "EPYC, 2 threads", "git_commit": "0123456789abcdef", "git_modified": True,
}  # fmt: skip


def facts(run: Path, **info: object) -> dict[str, str]:
    """Write run_info.json and return the facts in the header of the page."""
    (run / "run_info.json").write_text(json.dumps(INFO | info))
    header = page(run).partition('<dl class="facts">')[2].partition("</dl>")[0]
    return dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", header))


def test_the_header_names_data_machine_commit_seed_and_start(tmp_path: Path) -> None:
    run = folder(tmp_path / "run", config=Config(run=RunConfig(seed=3)))
    begin(run, 0, 150)
    assert facts(run) == {
        "data": "pets, 40 classes (chance is 2.50 %), 3,000 training and 500 validation images",
        "machine": "4 processes on n1, n2: 4 x H200",
        "commit": "0123456789ab with uncommitted changes",
        "seed": "3",
        "started": f"{moment(0)}, 2 attempts",
    }


def test_the_header_names_the_cpu_of_a_machine_without_gpus(tmp_path: Path) -> None:
    machine = facts(folder(tmp_path / "run"), gpus=[], world_size=1, nodes=["n1"])["machine"]
    assert machine == "1 process on n1: EPYC, 2 threads"


def test_only_differences_from_the_defaults_are_not_folded(tmp_path: Path) -> None:
    text = page(folder(tmp_path / "run", config=Config(optim=OptimConfig(lr=0.25))))
    in_view, _, folded = text.partition('<h2 id="configuration">')[2].partition("<details>")
    assert f"<td>optim.lr</td><td>0.25</td><td>{OptimConfig().lr}</td>" in in_view
    assert "optim.momentum" not in in_view and "optim.momentum" in folded


@pytest.mark.parametrize(("lock", "reloads"), [(True, True), (False, False)])
def test_only_the_page_of_a_run_that_trains_reloads(tmp_path: Path, lock: bool, reloads: bool) -> None:
    run = folder(tmp_path / "run")
    if lock:
        (run / "LOCK").touch()
    assert ('<body data-refresh="60">' in page(run)) == reloads


# ---- a baseline ---------------------------------------------------------------------------------------------


def test_a_number_is_a_line_in_the_chart_of_the_accuracy_only(tmp_path: Path) -> None:
    text = page(folder(tmp_path / "run"), "--baseline", 53.34)
    assert "baseline <b>53.34</b>" in chart(text, "Top-1, validation [%]") and text.count("baseline <b>") == 1


def test_a_run_as_baseline_is_a_line_at_its_final_accuracy(tmp_path: Path) -> None:
    other = folder(tmp_path / "other", (70.0, 60.0))
    text = page(folder(tmp_path / "run"), "--baseline", other)
    assert "baseline other <b>60</b>" in chart(text, "Top-1, validation [%]")


def test_several_runs_are_compared_with_a_baseline_too(tmp_path: Path) -> None:
    runs = [folder(tmp_path / name) for name in ("a", "b")]
    text = page(*runs, "--out", tmp_path / "page.html", "--baseline", 40)
    assert "baseline <b>40</b>" in chart(text, "EMA top-1, validation [%]") and text.count("baseline <b>") == 1


@pytest.mark.parametrize(
    ("baseline", "sentence"),
    [
        ("150", "--baseline is 150 and must be a top-1 accuracy from 0 to 100 percent, or a run folder."),
        ("nan", "--baseline is nan and must be"),
        ("elsewhere", "elsewhere does not exist"),
    ],
)
def test_a_baseline_that_is_no_accuracy_is_refused(tmp_path: Path, baseline: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        page(folder(tmp_path / "run"), "--baseline", baseline)


@pytest.mark.parametrize(
    ("files", "state"),
    [
        ({"DONE": '{"steps": 200}'}, "finished"),
        ({"LOCK": ""}, "running"),
        ({"REQUEUE": "{}"}, "stopped"),
        ({"logs/rank_0.log": "1 INFO rank 0 of 1 is process 2\n1 INFO ended by an error: no\n"}, "failed"),
        ({"logs/rank_0.log": "INFO ended by an error: no\n1 INFO rank 0 of 1 is process 2\n"}, "stopped"),
        ({}, "stopped"),
    ],
)
def test_the_state_of_a_run_is_named(tmp_path: Path, files: dict[str, str], state: str) -> None:
    run = folder(tmp_path / "run")
    for name, content in files.items():
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(content)
    assert f"{state}</b>, {read_record(run).state_in_words()}" in page(run)


def test_a_run_whose_lock_is_not_renewed_was_killed(tmp_path: Path) -> None:
    run = folder(tmp_path / "run")
    (run / "LOCK").touch()
    os.utime(run / "LOCK", times=(time.time() - LEASE - 1,) * 2)
    assert "killed</b>" in page(run)


def test_a_stopped_run_is_shown_with_the_checkpoint_that_it_resumes_from(tmp_path: Path) -> None:
    run = folder(tmp_path / "run")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "step_00000150.pt").touch()
    assert "stopped</b>, at step 200; rerun the same command to resume from step 150" in page(run)


# ---- several runs -------------------------------------------------------------------------------------------


def seed(tmp_path: Path, number: int, lr: float, top1: tuple[float, ...] = (1.0,)) -> Record:
    """Make a finished run of a recipe."""
    config = Config(run=RunConfig(seed=number), optim=OptimConfig(lr=lr))
    run = folder(tmp_path / f"net-seed{number}", top1, config=config)
    (run / "DONE").write_text(json.dumps({"val/ema_top1": top1[-1]}))
    return read_record(run)


def three_seeds(tmp_path: Path) -> list[Record]:
    tops = ((12.0, 25.0, 26.0), (10.0, 20.0), (11.0, 30.0))
    return [seed(tmp_path, i, 0.1, top1) for i, top1 in enumerate(tops)]


def test_the_curve_over_seeds_is_their_mean_at_common_steps(tmp_path: Path) -> None:
    [group] = several_runs.groups_of_seeds(three_seeds(tmp_path))
    curve = group.spread("val/ema_top1", 0)
    assert (curve.steps, curve.values) == ([100, 200], [11.0, 25.0])


def test_the_band_over_seeds_is_their_range(tmp_path: Path) -> None:
    [group] = several_runs.groups_of_seeds(three_seeds(tmp_path))
    curve = group.spread("val/ema_top1", 0)
    assert (curve.low, curve.high) == ([10.0, 20.0], [12.0, 30.0])
    assert 'class="band' in several_runs.page(group.runs)


def test_the_results_of_seeds_have_mean_deviation_and_range(tmp_path: Path) -> None:
    text = several_runs.page(three_seeds(tmp_path))
    row = "".join(f'<td class="r">{value}</td>' for value in ("25.33", "5.03", "20.00", "30.00"))
    assert f"<td>{RESULTS['val/ema_top1']}</td>{row}" in text


def test_a_group_of_seeds_has_the_common_part_of_their_names(tmp_path: Path) -> None:
    assert "net: 3 of 3 seeds finished" in several_runs.page(three_seeds(tmp_path))


def test_runs_of_two_recipes_are_not_grouped_as_seeds(tmp_path: Path) -> None:
    text = several_runs.page([seed(tmp_path, i, lr) for i, lr in enumerate((0.1, 0.2))])
    assert 'id="seeds"' not in text


def test_differences_between_configurations_are_not_folded(tmp_path: Path) -> None:
    text = several_runs.page([seed(tmp_path, i, 0.1 + i) for i in range(2)])
    in_view = text.partition("Differences")[2].partition("<details>")[0]
    assert "<td>optim.lr</td><td>0.1</td><td>1.1</td>" in in_view and "optim.momentum" not in in_view


def test_a_run_that_is_named_twice_counts_once(tmp_path: Path) -> None:
    run = folder(tmp_path / "run")
    assert "<h1>run</h1>" in page(run, f"{run}/", "--out", tmp_path / "page.html")


def test_runs_with_the_same_name_are_distinguished_by_their_folders(tmp_path: Path) -> None:
    runs = [folder(tmp_path / place / "b" / "net") for place in ("a", "c")]
    assert "<p>a/b/net, c/b/net<br>" in page(*runs, "--out", tmp_path / "page.html")


# ---- user errors --------------------------------------------------------------------------------------------


def no_run(run: Path) -> None:
    (run / "config.yaml").unlink()


def no_metrics(run: Path) -> None:
    (run / "metrics.jsonl").write_text("")


def damaged_configuration(run: Path) -> None:
    (run / "config.yaml").write_text("[")


def damaged_info(run: Path) -> None:
    (run / "run_info.json").write_text("{")


def damaged_table(run: Path) -> None:
    (run / "evaluation").mkdir()
    (run / "evaluation" / "per_class.csv").write_text("class,name\nn1,crab\n")


def damaged_results(run: Path) -> None:
    (run / "evaluation").mkdir()
    (run / "evaluation" / "results.json").write_text('{"images": 5}')


def damaged_picture(run: Path) -> None:
    (run / "augmented.png").write_text("")


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (no_run, "is not a run folder: it has no config.yaml; name a run folder such as runs/smoke."),
        (
            no_metrics,
            r"has no line in metrics.jsonl yet; wait for the first one, .* after run.log_every \(50\) steps",
        ),
        (damaged_configuration, "config.yaml is damaged"),
        (damaged_info, "run_info.json is damaged .*restore it or delete it."),
        (damaged_table, "per_class.csv is damaged .*recreate it with: .* evaluate"),
        (damaged_results, "results.json is damaged .*recreate it with: .* evaluate"),
        (damaged_picture, "augmented.png is damaged .*delete it."),
    ],
)
def test_a_missing_or_damaged_file_is_named(tmp_path: Path, harm: Callable[[Path], None], sentence: str) -> None:
    run = folder(tmp_path / "run")
    harm(run)
    with pytest.raises(UserError, match=sentence):
        page(run)
    assert not (run / "report.html").exists()


def test_a_page_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--out .* cannot be written .*; choose another file."):
        page(folder(tmp_path / "run"), "--out", tmp_path / "missing" / "page.html")
