"""The HTML report of real runs in Chromium, at the width of a desktop and of a phone."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from helpers.browser import Browser, chromium
from helpers.program import python, small_run
from tinyimnet.report.charts import Chart
from tinyimnet.run.metrics import METRICS, Metric, by_chart
from tinyimnet.run.record import read_record

DESKTOP, PHONE = 1400, 360  # CSS pixels
SCREENS = [(DESKTOP, False), (DESKTOP, True), (PHONE, False), (PHONE, True)]
# Parts of the page that cannot be seen: without a size, or outside the window.
HIDDEN = """[...document.querySelectorAll("svg polyline, figure, figure img, .tiles div, h2, .card")].filter(part => {
  const box = part.getBoundingClientRect();
  return box.width < 2 || box.right > document.documentElement.clientWidth + 1 && !part.closest(".scroll");
}).map(part => part.outerHTML.slice(0, 200))"""
# Pairs of words in a chart that overlap.
OVERLAPS = """[...document.querySelectorAll("figure.chart")].flatMap(figure => {
  const words = [...figure.querySelectorAll("svg text, h3, .at, .legend li")];
  const boxes = words.map(word => word.getBoundingClientRect());
  return boxes.flatMap((a, i) => boxes.slice(i + 1).flatMap((b, j) =>
    a.left < b.right && b.left < a.right && a.top < b.bottom - 1 && b.top < a.bottom - 1
      ? [words[i].textContent + " / " + words[i + 1 + j].textContent] : []));
})"""


@pytest.fixture(scope="module")
def run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two attempts, the second of which extends it, with its evaluation."""
    run_dir = tmp_path_factory.mktemp("runs") / "net-seed0"
    for epochs in (2, 3):
        arguments = small_run(tiny_data, run_dir, train__epochs=epochs, run__log_every=1)
        done = python("train.py", *arguments, WANDB_MODE="disabled")
        assert done.returncode == 0, done.stderr
    done = python("-m", "tinyimnet", "evaluate", str(run_dir))
    assert done.returncode == 0, done.stderr
    return run_dir


@pytest.fixture(scope="module")
def one(run: Path) -> Path:
    """The page of that run."""
    return report(run / "report.html", run)


@pytest.fixture(scope="module")
def several(run: Path) -> Path:
    """The page of the run and two copies under other names; two of the three are seeds of one recipe."""
    seed, other = (run.with_name(name) for name in ("net-seed1", "other-network-with-a-long-name"))
    for copy in (seed, other):
        shutil.copytree(run, copy)
    config = yaml.safe_load((other / "config.yaml").read_text())
    config["optim"]["lr"] /= 2
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    config = seed / "config.yaml"
    config.write_text(config.read_text().replace("seed: 0", "seed: 1"))
    return report(run.with_name("report.html"), run, seed, other)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One Chromium for all tests."""
    with chromium(tmp_path_factory.mktemp("profile")) as running:
        yield running


def report(out: Path, *runs: Path) -> Path:
    """Write a page with the report command."""
    done = python("-m", "tinyimnet", "report", *map(str, runs), "--out", str(out))
    assert done.returncode == 0, done.stderr
    return out


def check_layout(browser: Browser, width: int) -> None:
    """Assert that nothing is missing, cut off or overlapping."""
    assert browser.evaluate("innerWidth") == width  # a phone widens the window to what overflows
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert browser.evaluate(HIDDEN) == []
    assert browser.evaluate(OVERLAPS) == []


def logged(run: Path, metrics: list[Metric]) -> bool:
    """Whether a run has a value of one of these metrics."""
    record = read_record(run)
    return any(record.last(metric.key) is not None for metric in metrics)


# ---- the page of a run ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "dark"), SCREENS)
def test_the_page_of_a_run_fits_the_screen(browser: Browser, one: Path, width: int, dark: bool) -> None:
    browser.open(one, width=width, dark=dark)
    check_layout(browser, width)


@pytest.mark.parametrize("dark", [False, True])
def test_a_page_follows_the_dark_mode_of_the_desktop(browser: Browser, one: Path, dark: bool) -> None:
    browser.open(one, width=DESKTOP, dark=dark)
    red = browser.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/)[0]")
    assert (int(red) < 128) == dark


@pytest.mark.parametrize("name", ["one", "several"])
def test_a_page_loads_nothing_but_itself(browser: Browser, name: str, request) -> None:
    browser.open(request.getfixturevalue(name), width=DESKTOP)
    others = [url for url in browser.requests if not url.startswith("data:image/png")]
    assert len(others) == 1 and others[0].startswith("file:")


@pytest.mark.parametrize("name", ["one", "several"])
def test_the_browser_reports_no_error_or_warning(browser: Browser, name: str, request) -> None:
    browser.open(request.getfixturevalue(name), width=DESKTOP)
    assert browser.complaints == []  # the page's content security policy allows its script


def test_every_quantity_that_was_logged_has_its_chart(browser: Browser, run: Path, one: Path) -> None:
    browser.open(one, width=DESKTOP)
    titles = browser.evaluate('[...document.querySelectorAll("figure.chart h3")].map(h => h.textContent)')
    drawn = {title: metrics for title, metrics in by_chart().items() if title != "Attempt"}
    assert titles == [title for title, metrics in drawn.items() if logged(run, metrics)]


def test_every_picture_of_the_run_is_shown(browser: Browser, run: Path, one: Path) -> None:
    browser.open(one, width=DESKTOP)
    shown = browser.evaluate("[...document.images].map(image => image.naturalWidth)")
    names = ("augmented", "evaluation/confusion", "evaluation/reliability", "evaluation/most_confused")
    assert len(shown) == sum((run / f"{name}.png").exists() for name in names) >= 3 and min(shown) > 0


def test_the_second_attempt_is_marked_in_each_chart(browser: Browser, one: Path) -> None:
    browser.open(one, width=DESKTOP)
    marks = '[...document.querySelectorAll("figure.chart")].map(f => f.querySelectorAll("path.attempt").length)'
    assert set(browser.evaluate(marks)) == {1}


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_folded_parts_open_and_fit(browser: Browser, one: Path, width: int) -> None:
    browser.open(one, width=width)
    browser.evaluate('document.querySelectorAll("details").forEach(part => part.open = true)')
    assert browser.evaluate('[...document.querySelectorAll("td")].filter(cell => cell.offsetHeight).length') > 800
    assert browser.evaluate("innerWidth") == width
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")


class Pointer:
    """The mouse pointer and the chart of the loss."""

    LOSS = '[...document.querySelectorAll("figure.chart")].find(f => f.querySelector("h3").textContent == "Loss")'

    def __init__(self, browser: Browser, page: Path):
        browser.open(page, width=DESKTOP)
        self.browser, self.frame = browser, Chart.frame

    def text(self) -> str:
        """Return the text of the chart."""
        return self.browser.evaluate(f"{self.LOSS}.innerText")

    def come(self) -> None:
        """Point at the middle of the plot."""
        left, top, width, height = self.browser.evaluate(
            f"(figure => {{ figure.scrollIntoView(); const box = figure.querySelector('svg').getBoundingClientRect();"
            f" return [box.left, box.top, box.width, box.height] }})({self.LOSS})"
        )
        middle = (self.frame.left + self.frame.right) / 2 / self.frame.width
        self.browser.point_at(left + middle * width, top + height / 2)

    def leave(self) -> None:
        """Point at the corner of the window."""
        self.browser.point_at(1, 1)


def test_pointing_at_a_chart_shows_the_values_of_a_step(browser: Browser, run: Path, one: Path) -> None:
    pointer = Pointer(browser, one)
    pointer.come()
    steps, losses = read_record(run).series("train/loss")
    assert "step 9, epoch 1.5" in pointer.text()  # of 18
    assert f"training {losses[steps.index(9)]:.4g}" in pointer.text()


def test_a_chart_shows_its_last_values_after_the_pointer_leaves(browser: Browser, one: Path) -> None:
    pointer = Pointer(browser, one)
    before = pointer.text()
    pointer.come()
    assert pointer.text() != before
    pointer.leave()
    assert pointer.text() == before


# ---- the page of several runs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "dark"), SCREENS)
def test_the_page_of_several_runs_fits_the_screen(browser: Browser, several: Path, width: int, dark: bool) -> None:
    browser.open(several, width=width, dark=dark)
    check_layout(browser, width)


def test_each_chart_has_a_curve_of_every_run(browser: Browser, run: Path, several: Path) -> None:
    browser.open(several, width=DESKTOP)
    curves = browser.evaluate(
        '[...document.querySelectorAll("#curves ~ .charts figure")].map(f => f.querySelectorAll("polyline").length)'
    )
    drawn = [metric for metric in METRICS if metric.key != "perf/attempt" and logged(run, [metric])]
    assert curves == [3] * len(drawn)


def test_the_range_over_seeds_is_a_band(browser: Browser, several: Path) -> None:
    browser.open(several, width=DESKTOP)
    assert browser.evaluate('document.querySelectorAll("#seeds ~ .charts .band").length') == 1
