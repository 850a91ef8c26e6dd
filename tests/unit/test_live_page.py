"""The page of a run that trains, stops or fails."""

import logging
import shutil
from pathlib import Path

import pytest

from helpers import here
from tinyimnet.run.lock import RunLock
from tinyimnet.training import outcome, page
from tinyimnet.training.page import LivePage


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A run that has not finished and has no page."""
    copy = Path(shutil.copytree(finished_run, tmp_path / "copy"))
    (copy / "DONE").unlink()
    (copy / "report.html").unlink()
    return copy


def test_a_run_has_a_page_after_its_first_evaluation(trainer, tmp_path: Path) -> None:
    training = trainer(train__epochs=1, run__log_every=1)
    written = tmp_path / "run" / "report.html"
    while training.step < training.total_steps:
        assert not written.exists()
        training.take_step()
        training.at_boundary()
    assert "running</b>, at step 6 of 6" in written.read_text()


def test_other_ranks_write_no_page(run: Path) -> None:
    LivePage(run, enabled=False).update()
    assert not (run / "report.html").exists()


def test_pages_follow_each_other_so_slowly_that_they_cost_little(run: Path, monkeypatch) -> None:
    now, starts = 1000.0, []

    def slow(*_: object) -> None:
        nonlocal now
        starts.append(now)
        now += 2.0  # seconds for a page

    monkeypatch.setattr(page, "write_page", slow)
    monkeypatch.setattr(page.time, "monotonic", lambda: now)
    live = LivePage(run, enabled=True)
    for _ in range(100):
        live.update()
        now += 10
    assert starts[1] - starts[0] >= 2.0 * page.PAUSE and len(starts) == 3


def test_a_page_that_cannot_be_written_is_a_warning(run: Path, monkeypatch, caplog) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page, "write_atomically", full)
    LivePage(run, enabled=True).update()
    assert "report.html is not written: [Errno 28] No space left on device" in caplog.text


@pytest.mark.parametrize("file", ["evaluation/results.json", "run_info.json", "config.yaml", "augmented.png"])
def test_a_page_of_damaged_files_is_a_warning(run: Path, file: str, caplog) -> None:
    (run / file).write_text("{")
    LivePage(run, enabled=True).update()
    assert "report.html is not written" in caplog.text and f"{Path(file).name} is damaged" in caplog.text


def test_before_the_first_row_there_is_no_page_and_no_warning(run: Path, caplog) -> None:
    (run / "metrics.jsonl").write_text("")
    with caplog.at_level(logging.WARNING):
        assert not page.write_page(run)
    assert not caplog.records and not (run / "report.html").exists()


@pytest.mark.parametrize(("failed", "state"), [(False, "stopped"), (True, "failed")])
def test_the_page_of_a_run_that_ends_early_says_so(run: Path, failed: bool, state: str, capsys) -> None:
    with RunLock(run) as lock:
        lock.acquire()  # for `tinyimnet status` it still runs
        outcome.last_page(run, lock, failed=failed)
    text = (run / "report.html").read_text()
    assert f"{state}</b>, " in text and "data-refresh" not in text
    assert capsys.readouterr().out == f"page: {run / 'report.html'}\n"


def test_a_run_that_lost_its_folder_does_not_write_its_page(run: Path) -> None:
    with RunLock(run) as lock:
        lock.acquire()
        (run / "LOCK").write_text('{"token": "of another process"}')
        outcome.last_page(run, lock, failed=True)
    assert not (run / "report.html").exists()


def test_a_run_that_is_asked_to_stop_leaves_a_page(tiny_data: Path, tmp_path: Path, monkeypatch) -> None:
    def stop(live: LivePage) -> None:
        if (live.run_dir / "metrics.jsonl").stat().st_size:  # after the first evaluation
            (live.run_dir / "STOP").touch()

    monkeypatch.setattr(LivePage, "update", stop)
    monkeypatch.setattr("tinyimnet.distributed.preemption.LOOK", 0)
    run = here.train_here(tiny_data, tmp_path / "run", run__log_every=1)
    assert "stopped</b>, by a STOP file" in (run / "report.html").read_text()
