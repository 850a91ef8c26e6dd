"""The report of real runs in Chromium, as wide as a desktop and as narrow as a phone."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, chromium
from conftest import python, small_run

from tinyimnet.record import read_record

pytestmark = pytest.mark.wandb
DESKTOP, PHONE = 1400, 360  # CSS pixels
SCREENS = [(DESKTOP, False), (DESKTOP, True), (PHONE, False), (PHONE, True)]
# Parts of the page that are not there to be seen: without a size, or beside the window.
HIDDEN = """[...document.querySelectorAll("svg polyline, figure, figure img, .tiles div, h2, .card")].filter(part => {
  const box = part.getBoundingClientRect();
  return box.width < 2 || box.right > document.documentElement.clientWidth + 1 && !part.closest(".scroll");
}).map(part => part.outerHTML.slice(0, 200))"""
# Pairs of words in one chart that lie on each other.
OVERLAPS = """[...document.querySelectorAll("figure.chart")].flatMap(figure => {
  const words = [...figure.querySelectorAll("svg text, h3, .at, .legend li")];
  const boxes = words.map(word => word.getBoundingClientRect());
  return boxes.flatMap((a, i) => boxes.slice(i + 1).flatMap((b, j) =>
    a.left < b.right && b.left < a.right && a.top < b.bottom - 1 && b.top < a.bottom - 1
      ? [words[i].textContent + " / " + words[i + 1 + j].textContent] : []));
})"""


@pytest.fixture(scope="module")
def run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two lives, the second from an extension, with its evaluation."""
    run_dir = tmp_path_factory.mktemp("runs") / "net-seed0"
    environment = {"WANDB_MODE": "disabled"}
    for epochs in (2, 3):
        done = python(
            "train.py",
            *small_run(tiny_data, run_dir, train__epochs=epochs),
            "--run.log_every=1",
            **environment,
        )
        assert done.returncode == 0, done.stderr
    done = python("-m", "tinyimnet", "evaluate", str(run_dir))
    assert done.returncode == 0, done.stderr
    return run_dir


@pytest.fixture(scope="module")
def one(run: Path) -> Path:
    """Its page."""
    return report(run / "report.html", run)


@pytest.fixture(scope="module")
def several(run: Path) -> Path:
    """The page of three runs, copies under other names; two are seeds of one recipe."""
    others = [run.with_name(name) for name in ("net-seed1", "other-network-with-a-long-name")]
    for other in others:
        shutil.copytree(run, other)
    return report(run.with_name("report.html"), run, *others)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as running:
        yield running


def report(out: Path, *runs: Path) -> Path:
    """Write a page as a person does."""
    done = python("-m", "tinyimnet", "report", *map(str, runs), "--out", str(out))
    assert done.returncode == 0, done.stderr
    return out


def check_layout(browser: Browser, width: int) -> None:
    """Nothing is loaded, complained about, missing, cut off or on top of something else."""
    assert [url for url in browser.requests if not url.startswith(("file:", "data:image/png"))] == []
    assert sum(url.startswith("file:") for url in browser.requests) == 1
    assert browser.complaints == []
    assert browser.evaluate("innerWidth") == width  # a phone widens the window to what overflows
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert browser.evaluate(HIDDEN) == []
    assert browser.evaluate(OVERLAPS) == []


@pytest.mark.parametrize(("width", "dark"), SCREENS)
def test_the_page_of_a_run_is_whole_and_fits(
    browser: Browser, run: Path, one: Path, width: int, dark: bool
) -> None:
    browser.open(one, width=width, dark=dark)
    check_layout(browser, width)
    titles = browser.evaluate(
        '[...document.querySelectorAll("figure.chart h3")].map(title => title.textContent)'
    )
    assert titles == [
        "Top-1, validation [%]", "Top-5, validation [%]", "Loss", "Learning rate", "Resolution [px]", "Gradient norm",
        "Raw to EMA distance", "Throughput [images/s]", "Time of a step [ms]", "Saves and evaluations [s]", "Skipped steps, failed saves",
    ]  # fmt: skip
    names = (
        "augmented.png",
        "evaluation/confusion.png",
        "evaluation/reliability.png",
        "evaluation/most_confused.png",
    )
    pictures = browser.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert len(pictures) == sum((run / name).exists() for name in names) >= 3 and min(pictures) > 0
    lines = browser.evaluate('document.querySelectorAll("figure.chart").length')
    assert browser.evaluate('document.querySelectorAll("figure.chart path.life").length') == lines
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/)[0]")
    assert (int(background) < 128) == dark


@pytest.mark.parametrize(("width", "dark"), SCREENS)
def test_the_page_of_several_runs_is_whole_and_fits(
    browser: Browser, several: Path, width: int, dark: bool
) -> None:
    browser.open(several, width=width, dark=dark)
    check_layout(browser, width)
    curves = '[...document.querySelectorAll("#curves ~ .charts figure")].map(f => f.querySelectorAll("polyline").length)'
    assert browser.evaluate(curves) == [3] * 13
    assert browser.evaluate('document.querySelectorAll("#seeds ~ .charts .band").length') == 1


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_what_is_folded_opens_and_fits(browser: Browser, one: Path, width: int) -> None:
    browser.open(one, width=width)
    browser.evaluate('document.querySelectorAll("details").forEach(part => part.open = true)')
    assert browser.evaluate("[document.documentElement.scrollWidth <= innerWidth, innerWidth]") == [
        True,
        width,
    ]
    assert browser.evaluate('[...document.querySelectorAll("tr")].length') > 200  # a row for each class


def test_pointing_at_a_chart_shows_the_values_of_that_step(browser: Browser, run: Path, one: Path) -> None:
    browser.open(one, width=DESKTOP)
    loss = 'document.querySelectorAll("figure.chart")[2]'
    before = browser.evaluate(f"{loss}.innerText")
    # Steps 1 to 18 are logged; on the plot, 48 to 390 of 400 units wide, step 9 is in the middle.
    box = browser.evaluate(
        f"{loss}.scrollIntoView(), (box => [box.left, box.top, box.width, box.height])"
        f'({loss}.querySelector("svg").getBoundingClientRect())'
    )
    browser.point_at(box[0] + box[2] * 219 / 400, box[1] + box[3] / 2)
    steps, losses = read_record(run).series("train/loss")
    shown = browser.evaluate(f"{loss}.innerText")
    assert "step 9, epoch 1.5" in shown
    assert f"training {losses[steps.index(9)]:.4g}" in shown
    browser.point_at(1, 1)
    assert browser.evaluate(f"{loss}.innerText") == before
