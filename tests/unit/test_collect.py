"""The summaries of finished runs in results/, and their picture."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from helpers.program import REPO
from results import collect, plot
from tinyimnet.evaluation.weights import load_trained
from tinyimnet.files import read_lines
from tinyimnet.model.network import count_parameters
from tinyimnet.run.metrics import STEP
from tinyimnet.run.record import read_record


@pytest.fixture
def finished(finished_run: Path, tmp_path: Path) -> Path:
    """A 12-step run, logged every 2 steps, with timings of 6 s per step at 64 px and 6 s per evaluation."""
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    timed(run, {})
    return run


def timed(run: Path, slow: dict[int, float]) -> None:
    """Rewrite the timings: ms per step by the step of the line, 6,000 if not given."""
    lines = read_lines(run / "metrics.jsonl")
    for line in lines:
        line |= {"perf/step_ms": slow.get(line[STEP], 6000.0), "train/resolution": 64}
        if "perf/eval_s" in line:
            line["perf/eval_s"] = 6.0
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_summary_has_the_figures_of_the_run(finished: Path) -> None:
    summary, done = collect.collect(read_record(finished)), json.loads((finished / "DONE").read_text())
    assert [summary[key] for key in ("run", "seed", "epochs", "attempts")] == ["run", 0, 2, 1]
    assert summary["parameters"] == done["parameters"]
    for name, key in (
        ("top1", "val/top1"),
        ("ema_top1", "val/ema_top1"),
        ("ema_top1_flip", "val/ema_top1_flip"),
    ):
        assert summary[name] == done[key]
    assert summary["evaluations"][-1]["ema_top1"] == pytest.approx(done["val/ema_top1"], abs=1e-4)
    row = collect.row(summary)
    assert all(text in row for text in (f"{done['parameters']:,}", f"| **{done['val/ema_top1']:.2f}** |"))


def test_minutes_are_the_time_of_steps_and_evaluations(finished: Path) -> None:
    summary = collect.collect(read_record(finished))
    assert [e["minutes"] for e in summary["evaluations"]] == [0.7, 1.4]
    assert summary["images_per_s"] == {64: 5}


def test_a_pause_in_one_interval_is_not_counted(finished: Path) -> None:
    timed(finished, {4: 60_000.0})
    summary = collect.collect(read_record(finished))
    assert (summary["minutes"], summary["minutes_as_recorded"]) == (1.4, 3.2)


def test_the_summary_says_when_the_reference_was_passed(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert collect.collect(read_record(finished))["minutes_to_53.34"] is None
    monkeypatch.setattr(collect, "REFERENCE", -1)
    assert collect.collect(read_record(finished))["minutes_to_-1"] == 0.7


def test_a_run_that_is_not_finished_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (finished / "DONE").unlink()
    with pytest.raises(collect.errors.UserError, match=r"run is not finished; rerun its training command"):
        collect.main([str(finished)])


@pytest.mark.parametrize("file", sorted((REPO / "results").glob("*.json")), ids=lambda file: file.stem)
def test_the_readme_has_the_figures_of_every_run_in_results(file: Path) -> None:
    summary = json.loads(file.read_text(encoding="utf-8"))
    assert collect.row(summary) in (REPO / "README.md").read_text()
    assert summary["parameters"] <= 1_000_000
    assert (file.parent / f"{file.stem}_submission.csv").exists()


@pytest.mark.parametrize("file", sorted((REPO / "results").glob("*.safetensors")), ids=lambda file: file.stem)
def test_weights_in_results_belong_to_their_run_and_can_be_used(file: Path) -> None:
    trained, summary = load_trained(file), json.loads(file.with_suffix(".json").read_text())
    assert count_parameters(trained.model) == summary["parameters"]
    assert trained.model(torch.zeros(1, 3, 64, 64)).shape == (1, len(trained.classes)) == (1, 200)


@pytest.mark.parametrize("file", sorted((REPO / "results").glob("*.json")), ids=lambda file: file.stem)
def test_the_cards_in_results_are_those_that_the_program_writes(file: Path) -> None:
    summary = json.loads(file.read_text(encoding="utf-8"))
    card = file.with_suffix(".md").read_text(encoding="utf-8")
    assert card == collect.card(summary)
    assert f"| {file.stem}.safetensors, EMA weights | {summary['ema_top1']:.2f} %" in card


@pytest.mark.parametrize("weights", ["runs/first", "runs/first/final.safetensors", "results/first.safetensors"])
def test_the_summary_names_the_run_whose_weights_it_started_from(finished: Path, weights: str) -> None:
    record = read_record(finished)
    record.config["train.init_from"] = weights
    assert collect.collect(record)["init_from"] == "first"


def test_the_curve_of_a_fine_tuned_network_starts_where_its_weights_end() -> None:
    first = {"init_from": "", "evaluations": [{"minutes": 10.0, "ema_top1": 40.0}, {"minutes": 20.0, "ema_top1": 50.0}]}
    second = {"init_from": "first", "evaluations": [{"minutes": 5.0, "ema_top1": 52.0}]}
    third = {"init_from": "second", "evaluations": [{"minutes": 2.5, "ema_top1": 53.0}]}
    assert plot.curve("third", {"first": first, "second": second, "third": third}) == ([25.0, 27.5], [52.0, 53.0])


@pytest.mark.parametrize("resolution, told", [(64, 0), (96, 1)])
def test_the_card_names_the_resolution_of_enlarged_images(resolution: int, told: int) -> None:
    summary = json.loads((REPO / "results/tiny1m_cpu.json").read_text(encoding="utf-8"))
    summary["evaluations"][-1]["resolution"] = resolution
    assert collect.card(summary).count(f"It sees images enlarged to {resolution} x {resolution}") == told
