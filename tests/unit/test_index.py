"""The page of all runs in a folder."""

import re
from pathlib import Path

import pytest

from helpers.pages import folder, page
from tinyimnet import cli
from tinyimnet.errors import UserError


def names(text: str) -> list[str]:
    """The first cell of each row, without its link."""
    return [re.sub("<.*?>", "", cell) for cell in re.findall(r"<tr>\s*<td>(.*?)</td>", text)]


def index(runs: Path) -> str:
    """The page of the runs in a folder."""
    return page(runs, "--out", runs / "index.html")


def test_the_most_accurate_run_is_the_first(tmp_path: Path) -> None:
    for name, top1 in (("low", 10.0), ("high", 30.0), ("middle", 20.0)):
        folder(tmp_path / name, (top1,))
    (folder(tmp_path / "unmeasured") / "metrics.jsonl").write_text("")
    assert names(index(tmp_path)) == ["high", "middle", "low", "unmeasured"]


def test_a_row_has_state_accuracy_epochs_parameters_and_time(tmp_path: Path) -> None:
    run = folder(tmp_path / "run")
    (run / "run_info.json").write_text('{"parameters": 999464}')
    text = index(tmp_path)
    row = ('<b class="state waiting">stopped</b>', "20.00 %", "2/300", "999,464", "0:00:06")
    assert re.findall("<td.*?>(.*?)</td>", text)[1:] == list(row)


def test_a_run_is_linked_to_its_page_if_it_has_one(tmp_path: Path) -> None:
    page(folder(tmp_path / "a run?"))
    folder(tmp_path / "other")
    assert re.findall('<a href="(.*?)">(.*?)</a>', index(tmp_path)) == [("a%20run%3F/report.html", "a run?")]


def test_the_links_start_from_the_folder_of_the_page(tmp_path: Path) -> None:
    page(folder(tmp_path / "runs" / "run"))
    assert 'href="runs/run/report.html"' in page(tmp_path / "runs", "--out", tmp_path / "all.html")


def test_a_damaged_run_is_named_and_the_others_are_listed(tmp_path: Path) -> None:
    (folder(tmp_path / "damaged") / "config.yaml").write_text("[")
    folder(tmp_path / "run")
    text = index(tmp_path)
    assert sorted(names(text)) == ["damaged", "run"]
    assert re.search(r'<p class="bad">.*damaged/config.yaml is damaged', text)


def test_the_index_is_written_into_the_folder(tmp_path: Path) -> None:
    folder(tmp_path / "run")
    assert cli.main(["report", str(tmp_path)]) == 0
    assert names((tmp_path / "index.html").read_text()) == ["run"]


def test_a_folder_without_runs_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        page(tmp_path)


def test_a_baseline_needs_a_page_with_a_chart(tmp_path: Path) -> None:
    folder(tmp_path / "run")
    with pytest.raises(UserError, match="--baseline is a line in the page of runs, and .* holds runs; name some"):
        page(tmp_path, "--baseline", 50)
