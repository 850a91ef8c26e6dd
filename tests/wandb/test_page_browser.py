"""The HTML report of real runs in Chromium, at the width of a desktop and of a phone."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from helpers.browser import Browser, check_layout, chromium
from helpers.pages import chart
from helpers.program import python, small_run
from tinyimnet.report.charts import Chart
from tinyimnet.run.metrics import METRICS, Metric, by_chart
from tinyimnet.run.record import read_record

DESKTOP, PHONE = 1400, 360  # CSS pixels
SCREENS = [(DESKTOP, False), (DESKTOP, True), (PHONE, False), (PHONE, True)]
PAGES = ["one", "several", "index"]
LOSS = '[...document.querySelectorAll("figure.chart")].find(f => f.querySelector("h3").textContent == "Loss")'
FRAME = Chart.frame


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
def index(several: Path) -> Path:
    """The page of the folder with these runs."""
    return report(several.with_name("index.html"), several.parent)


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


@pytest.fixture
def live(run: Path, tmp_path: Path) -> Path:
    """The page of that run while it trains, which reloads every second instead of every minute."""
    copy = Path(shutil.copytree(run, tmp_path / "live"))
    (copy / "DONE").unlink()
    (copy / "LOCK").touch()
    page = report(copy / "report.html", copy)
    page.write_text(page.read_text().replace('data-refresh="60"', 'data-refresh="1"'))
    return page


def choose(browser: Browser, axis: str) -> None:
    """Choose the horizontal axis of all charts."""
    browser.evaluate(f"document.querySelector('[name=axis][value={axis}]').click()")


def axes(browser: Browser) -> set[str]:
    """What is written below the charts."""
    below = '[...document.querySelectorAll(".below text:last-child")].map(text => text.textContent)'
    return set(browser.evaluate(below))


def logged(run: Path, metrics: list[Metric]) -> bool:
    """Whether a run has a value of one of these metrics."""
    record = read_record(run)
    return any(record.last(metric.key) is not None for metric in metrics)


# ---- the page of a run ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "dark"), SCREENS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_the_screen(browser: Browser, name: str, width: int, dark: bool, request) -> None:
    browser.open(request.getfixturevalue(name), width=width, dark=dark)
    check_layout(browser, width)


@pytest.mark.parametrize("dark", [False, True])
def test_a_page_follows_the_dark_mode_of_the_desktop(browser: Browser, one: Path, dark: bool) -> None:
    browser.open(one, width=DESKTOP, dark=dark)
    red = browser.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/)[0]")
    assert (int(red) < 128) == dark


@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_nothing_but_itself(browser: Browser, name: str, request) -> None:
    browser.open(request.getfixturevalue(name), width=DESKTOP)
    others = [url for url in browser.requests if not url.startswith("data:image/png")]
    assert len(others) == 1 and others[0].startswith("file:")


@pytest.mark.parametrize("name", PAGES)
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


def test_text_in_charts_is_readable_on_a_phone(browser: Browser, one: Path) -> None:
    browser.open(one, width=390)
    size = "parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a"
    assert min(browser.evaluate(f'[...document.querySelectorAll("svg text")].map(text => {size})')) >= 11


def test_a_picture_with_text_has_its_full_size_until_a_tap_fits_it(browser: Browser, one: Path) -> None:
    browser.open(one, width=PHONE)
    share = "(image => image.clientWidth / image.naturalWidth)(document.querySelector('.wide img'))"
    assert browser.evaluate(share) == 1
    browser.evaluate("document.querySelector('.wide img').click()")
    assert browser.evaluate(share) < PHONE / 1132


class Pointer:
    """The mouse pointer and the chart of the loss."""

    def __init__(self, browser: Browser, page: Path):
        browser.open(page, width=DESKTOP)
        self.browser = browser

    def text(self) -> str:
        """Return the text of the chart."""
        return self.browser.evaluate(f"{LOSS}.innerText")

    def come(self) -> None:
        """Point at the middle of the plot."""
        left, top, width, height = self.browser.evaluate(
            f"(figure => {{ figure.scrollIntoView(); const box = figure.querySelector('svg').getBoundingClientRect();"
            f" return [box.left, box.top, box.width, box.height] }})({LOSS})"
        )
        middle = (FRAME.left + FRAME.right) / 2 / FRAME.width
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


# ---- the horizontal axis ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("axis", "label"), [("epoch", "epoch"), ("time", "minutes of training")])
@pytest.mark.parametrize("name", ["one", "several"])
def test_one_switch_changes_the_axis_of_all_charts(browser: Browser, name: str, axis: str, label: str, request) -> None:
    browser.open(request.getfixturevalue(name), width=PHONE)
    choose(browser, axis)
    assert axes(browser) == {label}
    check_layout(browser, PHONE)
    assert browser.complaints == []


def test_on_the_time_axis_a_curve_is_at_its_training_time(browser: Browser, run: Path, one: Path) -> None:
    browser.open(one, width=DESKTOP)
    choose(browser, "time")
    seconds = read_record(run).seconds()
    places = [FRAME.left + second / seconds[-1] * (FRAME.right - FRAME.left) for second in seconds]
    points = browser.evaluate(f"{LOSS}.querySelector('[data-curve=\"0\"] polyline').getAttribute('points')")
    assert [float(point.split(",")[0]) for point in points.split()] == pytest.approx(places, abs=0.2)
    mark = browser.evaluate(f"{LOSS}.querySelector('[data-step]').getAttribute('transform')")
    assert float(mark.removeprefix("translate(").split()[0]) == pytest.approx(places[11], abs=0.2)  # from step 12


def test_the_script_draws_the_step_axis_as_the_file_has_it(browser: Browser, one: Path) -> None:
    browser.open(one, width=DESKTOP)
    for axis in ("time", "step"):
        choose(browser, axis)
    text = one.read_text(encoding="utf-8")
    shapes = '[...document.querySelectorAll("svg polyline, svg polygon")].map(s => s.getAttribute("points"))'
    drawn = [points.split() for points in browser.evaluate(shapes)]
    assert drawn == [points.split() for points in re.findall(r'<poly.*? points="(.*?)"', text)]
    ticks = browser.evaluate(f"[...{LOSS}.querySelectorAll('.below text')].map(text => text.textContent)")
    below = chart(text, "Loss").partition('<g class="below">')[2].partition("</g>")[0]
    assert ticks == re.findall("<text.*?>(.*?)</text>", below)


def test_pointing_at_the_time_axis_shows_the_time(browser: Browser, one: Path) -> None:
    pointer = Pointer(browser, one)
    choose(browser, "time")
    pointer.come()
    assert re.search(r"[\d.]+ minutes", pointer.text())


# ---- the page of a run that trains ------------------------------------------------------------------------------


def test_a_reload_shows_the_new_page_and_keeps_the_place(browser: Browser, live: Path) -> None:
    browser.open(live, width=PHONE)
    choose(browser, "time")
    browser.evaluate("document.querySelector('details').open = true")
    browser.evaluate("scrollTo(0, 2000)")
    text = live.read_text(encoding="utf-8")
    browser.loaded = False
    live.write_text(text.replace("<h1>live", "<h1>later").replace('data-refresh="1"', ""), encoding="utf-8")
    browser.wait_for_load()
    assert browser.evaluate("document.querySelector('h1').textContent") == "later"
    place = "[scrollY, document.querySelector(':checked').value, document.querySelector('details').open]"
    assert browser.evaluate(place) == [2000, "time", True]
    assert axes(browser) == {"minutes of training"}


def test_a_hidden_page_reloads_when_it_is_looked_at(browser: Browser, live: Path) -> None:
    browser.open(live, width=PHONE)
    hide = "Object.defineProperty(document, 'hidden', {value: true, configurable: true}); window.same = true; 0"
    browser.evaluate(hide)
    browser.evaluate("new Promise(done => setTimeout(done, 2500))")
    assert browser.evaluate("window.same")
    browser.loaded = False
    browser.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange')); 0")
    browser.wait_for_load()
    assert browser.evaluate("window.same") is None


# ---- the page of several runs -----------------------------------------------------------------------------------


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
