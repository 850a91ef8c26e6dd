"""`tinyimnet tensorboard`: event files that TensorBoard reads as metrics.jsonl says."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.program import REPO
from helpers.run_folders import attempt, logged
from tinyimnet import cli
from tinyimnet.errors import UserError
from tinyimnet.files import read_lines
from tinyimnet.launch import tensorboard
from tinyimnet.run.metrics import STEP

Points = dict[str, list[tuple[int, np.float32]]]


def write(*runs: Path, out: Path) -> None:
    assert cli.main(["tensorboard", *map(str, runs), "--out", str(out)]) == 0


def opened(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()  # 0: all points


def points(events: EventAccumulator) -> Points:
    """The steps and values of each metric, as TensorBoard reads them."""
    return {tag: [(e.step, np.float32(e.value)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def points_of(run: Path) -> Points:
    """The steps and values of each metric, in the precision of an event file."""
    rows = read_lines(run / "metrics.jsonl")
    keys = {key for row in rows for key in row} - {STEP}
    return {key: [(row[STEP], np.float32(row[key])) for row in rows if key in row] for key in keys}


def test_tensorboard_reads_each_metric_at_its_step(finished_run: Path, tmp_path: Path) -> None:
    write(finished_run, out=tmp_path)
    read = points(opened(tmp_path / finished_run.name))
    assert read == points_of(finished_run)
    assert len(read["val/ema_top1"]) == 2 and len(read["train/loss"]) == 6


def test_the_wall_time_is_the_start_plus_the_training_time(make_run, tmp_path: Path) -> None:
    lines = [logged(10, **{"perf/step_ms": 500}), logged(20, **{"perf/step_ms": 1000, "perf/eval_s": 3})]
    run = make_run("a", metrics__jsonl=lines, attempts__jsonl=[attempt(started=1e9), attempt(started=2e9, step=10)])
    write(run, out=tmp_path / "tb")
    events = opened(tmp_path / "tb" / "a")
    assert [event.wall_time for event in events.Scalars("train/loss")] == [1e9 + 5, 1e9 + 18]


def test_each_run_has_a_folder_of_its_name(make_run, tmp_path: Path) -> None:
    write(*(make_run(name, metrics__jsonl=[logged(10)]) for name in ("a", "b")), out=tmp_path / "tb")
    assert sorted(path.name for path in (tmp_path / "tb").iterdir()) == ["a", "b"]


def test_runs_of_the_same_name_are_told_apart(make_run, tmp_path: Path) -> None:
    write(*(make_run(name, metrics__jsonl=[logged(10)]) for name in ("x/a", "y/a")), out=tmp_path / "tb")
    assert {str(file.parent.relative_to(tmp_path / "tb")) for file in tmp_path.rglob(tensorboard.FILE)} == {
        "x/a",
        "y/a",
    }


def test_writing_again_doubles_no_point_on_disk_or_in_an_open_tensorboard(make_run, tmp_path: Path) -> None:
    run = make_run("a", metrics__jsonl=[logged(10), logged(20)])
    write(run, out=tmp_path / "tb")
    shown = opened(tmp_path / "tb" / "a")
    (run / "metrics.jsonl").write_text("".join(json.dumps(logged(step)) + "\n" for step in (10, 20, 30)))
    write(run, out=tmp_path / "tb")
    write(run, out=tmp_path / "tb")
    assert points(shown.Reload()) == points(opened(tmp_path / "tb" / "a")) == points_of(run)


def test_rows_that_a_resumed_run_dropped_leave_the_file(make_run, tmp_path: Path) -> None:
    run = make_run("a", metrics__jsonl=[logged(10), logged(20), logged(30)])
    write(run, out=tmp_path / "tb")
    shown = opened(tmp_path / "tb" / "a")
    whole = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(whole.splitlines()[0] + "\n")
    write(run, out=tmp_path / "tb")
    assert points(opened(tmp_path / "tb" / "a")) == points_of(run)
    (run / "metrics.jsonl").write_text(whole)  # the steps were replayed
    write(run, out=tmp_path / "tb")
    assert points(shown.Reload()) == points_of(run)


def test_a_file_that_was_cut_off_is_completed(make_run, tmp_path: Path) -> None:
    run, file = make_run("a", metrics__jsonl=[logged(10), logged(20)]), tmp_path / "tb" / "a" / tensorboard.FILE
    write(run, out=tmp_path / "tb")
    file.write_bytes(file.read_bytes()[:-7])
    write(run, out=tmp_path / "tb")
    assert points(opened(file.parent)) == points_of(run)


def test_other_files_in_the_folder_stay(make_run, tmp_path: Path) -> None:
    (tmp_path / "tb" / "a").mkdir(parents=True)
    (tmp_path / "tb" / "a" / "thesis.txt").write_text("precious")
    write(make_run("a", metrics__jsonl=[logged(10)]), out=tmp_path / "tb")
    assert (tmp_path / "tb" / "a" / "thesis.txt").read_text() == "precious"


def test_values_that_are_not_finite_are_shown_as_such(make_run, tmp_path: Path) -> None:
    write(make_run("a", metrics__jsonl=[logged(10, **{"train/grad_norm": float("inf")})]), out=tmp_path / "tb")
    assert points(opened(tmp_path / "tb" / "a"))["train/grad_norm"] == [(10, np.float32("inf"))]


def test_a_missing_package_is_named_with_the_range_of_the_extra(make_run, tmp_path: Path, monkeypatch) -> None:
    extra = re.search(r'^tensorboard = \["(.*)"\]$', (REPO / "pyproject.toml").read_text(), re.M)
    assert extra
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)  # as if it were not installed
    with pytest.raises(UserError, match=re.escape(f"install it: pip install '{extra[1]}'.")):
        write(make_run("a", metrics__jsonl=[logged(10)]), out=tmp_path / "tb")
    assert not (tmp_path / "tb").exists()


def test_a_run_without_a_row_is_refused(make_run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a has no line in metrics.jsonl yet; wait for the first one"):
        write(make_run("a"), out=tmp_path / "tb")
    assert not (tmp_path / "tb").exists()


def test_a_place_that_is_no_folder_is_refused(make_run, tmp_path: Path) -> None:
    (tmp_path / "tb").touch()
    with pytest.raises(UserError, match=r"--out .*tb/a cannot be written \(.*\); choose another folder"):
        write(make_run("a", metrics__jsonl=[logged(10)]), out=tmp_path / "tb")
