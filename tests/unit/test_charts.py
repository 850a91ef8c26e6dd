"""The charts of the HTML report: which ones a page has, and what they draw."""

import json
import math
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.pages import begin, chart, folder, page, titles
from tinyimnet.report import axes, charts, clocks, formats
from tinyimnet.report.clocks import Clock
from tinyimnet.run.metrics import METRICS, STEP, by_chart
from tinyimnet.run.record import read_record

LOGGED = {metric.key: 1.0 for metric in METRICS}
LONG = st.lists(st.floats(-1e6, 1e6), min_size=41, max_size=200)  # more values than a thinned curve keeps


def test_a_run_has_each_chart_of_the_metrics_table(tmp_path: Path) -> None:
    drawn = [title for title in by_chart() if title != "Attempt"]  # shown by marks in the other charts
    assert titles(page(folder(tmp_path / "run", **LOGGED))) == drawn


def test_several_runs_have_a_chart_for_each_metric(tmp_path: Path) -> None:
    runs = [folder(tmp_path / name, **LOGGED) for name in ("a", "b")]
    text = page(*runs, "--out", tmp_path / "page.html").partition('<h2 id="curves">')[2]
    assert titles(text) == [metric.title for metric in METRICS if metric.key != "perf/attempt"]


def test_a_metric_that_was_not_logged_has_no_chart(tmp_path: Path) -> None:
    assert not any("GPU memory" in title for title in titles(page(folder(tmp_path / "run"))))


@pytest.mark.parametrize(("title", "lowest"), [("Top-1, validation [%]", "0"), ("Loss", "2.5")])
def test_the_axis_starts_at_zero_except_for_a_loss(tmp_path: Path, title: str, lowest: str) -> None:
    figure = chart(page(folder(tmp_path / "run")), title)
    assert re.findall(r'<text x="42".*?>(.*?)</text>', figure)[0] == lowest


def test_weights_keep_their_colours_in_all_charts(tmp_path: Path) -> None:
    text = page(folder(tmp_path / "run", **LOGGED))
    for title in ("Top-1, validation [%]", "Top-5, validation [%]", "Loss"):
        legend = dict(re.findall(r'<i class="(c\d) d0"></i>(.*?) <b>', chart(text, title)))
        assert ("EMA" in legend["c0"], "raw" in legend["c1"]) == (True, True), title


def test_parts_of_a_sum_are_stacked() -> None:
    parts = [charts.Curve("a", [1, 2], [1.0, 1.0], 0), charts.Curve("b", [1, 2], [3.0, 3.0], 1)]
    stacked, beside = (charts.chart("Parts", parts, stacked=choice) for choice in (True, False))
    assert stacked and beside
    assert [tick.label for tick in stacked.y_ticks][-1] == "4"
    assert [tick.label for tick in beside.y_ticks][-1] == "3"


def test_only_the_parts_of_a_step_are_stacked(tmp_path: Path) -> None:
    text = page(folder(tmp_path / "run", **LOGGED))
    areas = [title for title in titles(text) if '<polygon class="part' in chart(text, title)]
    assert areas == ["Step time breakdown [ms]"]


def test_lower_parts_of_a_sum_are_drawn_over_the_upper_ones(tmp_path: Path) -> None:
    figure = chart(page(folder(tmp_path / "run", **LOGGED)), "Step time breakdown [ms]")
    assert re.findall(r'data-curve="(\d)"', figure) == ["3", "2", "1", "0"]


@pytest.mark.parametrize(("points", "dotted"), [(charts.DOTTED, True), (charts.DOTTED + 1, False)])
def test_a_short_curve_has_dots(tmp_path: Path, points: int, dotted: bool) -> None:
    figure = chart(page(folder(tmp_path / "run", (1.0,) * points)), "Loss")
    assert ('class="dots' in figure) == dotted


def test_each_attempt_but_the_first_is_marked_once(tmp_path: Path) -> None:
    run = folder(tmp_path / "run")
    begin(run, 0, 150, 150)  # the second attempt completed no step
    marks = re.findall("<title>(attempt .*?),", chart(page(run), "Loss"))
    assert marks == ["attempt 3"]


def test_the_mark_of_an_attempt_is_where_it_started(tmp_path: Path) -> None:
    run = folder(tmp_path / "run")
    begin(run, 0, 100)  # of 200 steps: in the middle of the plot
    figure, frame = chart(page(run), "Loss"), charts.Chart.frame
    assert f'data-step="100" transform="translate({(frame.left + frame.right) // 2} 0)"' in figure


def test_numbers_of_attempts_close_to_each_other_are_left_out() -> None:
    marks = [charts.Mark(step, str(step), "") for step in (10, 11, 90)]
    drawn = charts.chart("Loss", [charts.Curve("a", [100], [1.0], 0)], marks)
    assert drawn and [mark.label for mark in drawn.marks] == ["10", "", "90"]


@pytest.mark.parametrize(("seconds", "axis"), [(3599.0, "minutes of training"), (3600.0, "hours of training")])
def test_training_time_is_in_hours_once_a_run_took_one(seconds: float, axis: str) -> None:
    assert clocks.switch([Clock(10, [100], [60.0]), Clock(10, [200], [seconds])]).axes["time"] == axis


@pytest.mark.parametrize(("epoch", "seconds", "axes"), [(0, 5.0, ["step", "time"]), (10, 0.0, ["step", "epoch"])])
def test_an_axis_that_a_run_does_not_know_is_not_offered(epoch: float, seconds: float, axes: list[str]) -> None:
    assert [*clocks.switch([Clock(10, [100], [60.0]), Clock(epoch, [100], [seconds])]).axes] == axes


def test_the_clock_of_a_run_has_its_training_time(tmp_path: Path) -> None:
    clock = clocks.of_run(read_record(folder(tmp_path / "run")))  # 100 steps of 20 ms per epoch, evaluations of 1 s
    assert (clock.epoch, clock.steps, clock.seconds) == (100, [100, 200], [3.0, 6.0])


def test_the_clock_of_a_long_run_keeps_its_end(tmp_path: Path) -> None:
    clock = clocks.of_run(read_record(folder(tmp_path / "run", (1.0,) * 1000)))
    assert len(clock.steps) <= clocks.TIMES + 1 and clock.steps[-1] == 100_000


@given(LONG, st.integers(6, 40))
def test_a_thinned_curve_keeps_its_ends_and_extremes(values: list[float], most: int) -> None:
    kept = [values[i] for i in charts.thin(values, most)]
    assert (kept[0], kept[-1], min(kept), max(kept)) == (values[0], values[-1], min(values), max(values))


@given(LONG, st.integers(6, 40))
def test_a_thinned_curve_is_short_and_in_order(values: list[float], most: int) -> None:
    places = charts.thin(values, most)
    assert len(places) <= most and places == sorted(set(places))


def test_a_short_curve_keeps_every_point() -> None:
    assert charts.thin([1.0, 1.0, 1.0], 3) == [0, 1, 2]


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_and_enclose_the_values(low: float, size: float) -> None:
    ticks = axes.ticks(low, low + size)
    slack = 1e-6 * max(abs(low), size)
    assert ticks[0] <= low + slack and ticks[-1] >= low + size - slack and 2 <= len(ticks) <= 9


@pytest.mark.parametrize(
    ("value", "label"),
    [(0, "0"), (0.05, "0.05"), (250, "250"), (2500, "2.5k"), (20000, "20k"), (3e6, "3M"), (5e-4, "5e-4")],
)
def test_a_tick_has_a_short_label(value: float, label: str) -> None:
    assert axes.tick_label(value) == label


@pytest.mark.parametrize(
    ("value", "text"),
    [(1000.0, "1,000"), (34.2, "34.2"), (0.0012345, "0.001234"), (12345.6, "12,346"), (1.23456, "1.235")],
)
def test_a_value_has_four_significant_digits(value: float, text: str) -> None:
    assert formats.number(value) == text


def test_values_that_are_not_finite_are_left_out_and_counted(tmp_path: Path) -> None:
    run = folder(tmp_path / "run")
    lines = [{STEP: step, "train/loss": loss} for step, loss in ((1, 1.0), (2, math.inf), (3, math.nan))]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figure = chart(page(run), "Loss")
    assert "non-finite values not shown: 2" in figure and 'data-steps="1"' in figure


def test_a_chart_without_a_finite_value_is_left_out() -> None:
    assert charts.chart("Nothing", [charts.Curve("norm", [1], [math.nan], 0)]) is None


def test_a_long_run_makes_a_small_page_in_seconds(tmp_path: Path) -> None:
    parts = {f"perf/{part}_ms": 1.0 for part in ("data", "forward_backward", "optimizer", "wait")}
    run = folder(tmp_path / "run", tuple(50 + math.sin(i) for i in range(20_000)), **parts)
    started = time.perf_counter()
    text = page(run)
    assert len(text) < 1e6 and time.perf_counter() - started < 10
    assert f"thinned to {charts.POINTS} points" in text
