"""metrics.jsonl is the authoritative record, whatever happens to W&B."""

import json
import os
from pathlib import Path

from tinyimnet.config import TrackingConfig
from tinyimnet.files import read_lines
from tinyimnet.run.metrics import STEP
from tinyimnet.tracking.identity import run_id
from tinyimnet.tracking.tracker import Tracker

DISABLED = TrackingConfig(wandb="disabled")


def tracker(folder: Path, *, at: int = 0, rank: int = 0, attempt: int = 1) -> Tracker:
    made = Tracker(folder, DISABLED, rank=rank, attempt=attempt)
    made.start(at)
    return made


def test_one_line_per_step_with_the_usual_metric_names(tmp_path: Path) -> None:
    log = tracker(tmp_path, attempt=2)
    log.log(10, {"train/loss": 5.0})
    log.log(20, {"train/loss": 4.0, "val/top1": 1.5})
    log.close(0)
    assert read_lines(tmp_path / "metrics.jsonl") == [
        {STEP: 10, "train/loss": 5.0, "perf/attempt": 2},
        {STEP: 20, "train/loss": 4.0, "val/top1": 1.5, "perf/attempt": 2},
    ]


def test_replayed_steps_replace_their_earlier_lines(tmp_path: Path) -> None:
    first = tracker(tmp_path)
    for step in (10, 20, 30):
        first.log(step, {"train/loss": float(step)})
    first.close(1)
    second = tracker(tmp_path, at=20)
    second.log(30, {"train/loss": 31.0})
    second.close(0)
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert [(line[STEP], line["train/loss"]) for line in lines] == [(10, 10.0), (20, 20.0), (30, 31.0)]


def test_a_flush_puts_the_lines_on_disk(tmp_path: Path, monkeypatch) -> None:
    log = tracker(tmp_path)
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.readlink(f"/proc/self/fd/{number}")))
    log.log(10, {"train/loss": 5.0})
    assert synced == []  # logging does not wait for the disk
    log.flush()
    assert synced == [str(tmp_path / "metrics.jsonl")]


def test_a_partial_line_after_a_crash_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({STEP: 10}) + '\n{"trainer/glo')
    tracker(tmp_path, at=20).close(0)
    assert (tmp_path / "metrics.jsonl").read_text() == json.dumps({STEP: 10}) + "\n"


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    log = tracker(tmp_path, rank=1)
    log.log(1, {"train/loss": 1.0})
    log.flush()
    log.close(0)
    assert list(tmp_path.iterdir()) == []


def test_the_id_comes_from_the_environment_then_the_folder_or_is_new(tmp_path: Path, monkeypatch) -> None:
    first = run_id(tmp_path)
    assert first and run_id(tmp_path) == first
    monkeypatch.setenv("WANDB_RUN_ID", "given")
    assert run_id(tmp_path) == "given"
    monkeypatch.delenv("WANDB_RUN_ID")
    assert run_id(tmp_path) == "given"
    (tmp_path / "wandb_run.json").write_text("half a fi")
    assert run_id(tmp_path) not in ("", first, "given")


def test_a_rank_follows_the_mode_of_rank_0(tmp_path: Path, monkeypatch) -> None:
    """A settings file of wandb may exist on one node only."""
    monkeypatch.setenv("WANDB_MODE", "online")
    log = Tracker(tmp_path, TrackingConfig(per_rank=True), rank=1)
    log.start(0, "disabled")
    assert log._mirror is None
