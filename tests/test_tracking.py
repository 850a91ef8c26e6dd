"""metrics.jsonl is the truth; W&B is offline without a key and never in the way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinyimnet.config import TrackingConfig
from tinyimnet.tracking import STEP, Tracker, read_metrics

DISABLED = TrackingConfig(wandb="disabled")


def tracker(folder: Path, config: TrackingConfig = DISABLED, *, enabled: bool = True, at: int = 0) -> Tracker:
    made = Tracker(folder, config, {"lr": 0.1}, enabled=enabled)
    made.rewind(at)
    return made


def test_one_line_a_step_in_the_fields_terms(tmp_path: Path) -> None:
    log = tracker(tmp_path)
    log.log(10, {"train/loss": 5.0})
    log.log(20, {"train/loss": 4.0, "val/top1": 1.5})
    log.close(0)
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {STEP: 10, "train/loss": 5.0},
        {STEP: 20, "train/loss": 4.0, "val/top1": 1.5},
    ]


def test_replayed_steps_replace_and_never_repeat(tmp_path: Path) -> None:
    first = tracker(tmp_path)
    for step in (10, 20, 30):
        first.log(step, {"train/loss": float(step)})
    first.close(1)
    second = tracker(tmp_path, at=20)
    second.log(30, {"train/loss": 31.0})
    second.close(0)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [(line[STEP], line["train/loss"]) for line in lines] == [(10, 10.0), (20, 20.0), (30, 31.0)]


def test_sync_puts_the_lines_on_disk(tmp_path: Path, monkeypatch) -> None:
    log = tracker(tmp_path)
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.readlink(f"/proc/self/fd/{number}")))
    log.log(10, {"train/loss": 5.0})
    assert synced == []  # a line does not wait for the disk
    log.sync()
    assert synced == [str(tmp_path / "metrics.jsonl")]


def test_half_a_line_after_a_crash_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({STEP: 10}) + '\n{"trainer/glo')
    tracker(tmp_path, at=20).close(0)
    assert (tmp_path / "metrics.jsonl").read_text() == json.dumps({STEP: 10}) + "\n"


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    log = tracker(tmp_path, TrackingConfig(wandb="offline"), enabled=False)
    log.log(1, {"train/loss": 1.0})
    log.sync()
    log.close(0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_without_a_key_wandb_goes_offline_and_one_id_stays(mode: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no .netrc there
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    for step in (5, 10):
        log = tracker(run_dir, TrackingConfig(wandb=mode), at=step - 5)
        log.log(step, {"train/loss": 2.5})
        log.close(0)
    run_id = json.loads((run_dir / "wandb_run.json").read_text())["id"]
    records = sorted((run_dir / "wandb").glob(f"offline-run-*-{run_id}"))
    assert records
    inspect = [
        str(Path(sys.executable).with_name("wandb")),
        "leet",
        "inspect",
        "--summary",
        "--json",
        str(records[-1]),
    ]
    summary = json.loads(subprocess.run(inspect, capture_output=True, text=True, check=True).stdout)
    assert "train/loss" in json.dumps(summary)


def test_the_address_of_an_online_run_is_kept_beside_its_id(tmp_path: Path, monkeypatch) -> None:
    class Run:
        url = "https://wandb.example/me/tiny/runs/1"

        def define_metric(self, *_names: str, **_options: str) -> None:
            pass

    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setattr("wandb.init", lambda **options: Run())
    tracker(tmp_path, TrackingConfig(wandb="online"))
    kept = json.loads((tmp_path / "wandb_run.json").read_text())
    assert kept["url"] == Run.url and kept["id"]


def test_a_wandb_that_breaks_costs_a_warning_and_no_metric(tmp_path: Path, caplog) -> None:
    class Broken:
        def log(self, _line):
            raise BrokenPipeError("wandb-core is gone")

    log = tracker(tmp_path)
    log._wandb = Broken()
    log.log(1, {"train/loss": 1.0})
    log.log(2, {"train/loss": 2.0})
    log.close(0)
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2
    assert caplog.text.count("W&B stopped") == 1
