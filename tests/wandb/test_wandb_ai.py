"""The tracker against a real W&B server, for those who have a key: it has to follow the rules of the test server.

REAL_WANDB_API_KEY=... python -m pytest tests/wandb/test_wandb_ai.py

REAL_WANDB_BASE_URL selects a self-hosted server.
"""

import os
from pathlib import Path

import pytest
import wandb  # noqa: TID251 (its public API reads back what arrived)

from helpers.program import python
from helpers.wandb_server.clients import wait_until
from helpers.wandb_server.runs import log, run_id
from tinyimnet import config as configuration
from tinyimnet.config import Config, TrackingConfig
from tinyimnet.run.metrics import STEP
from tinyimnet.tracking.tracker import Tracker

KEY, PROJECT = os.environ.get("REAL_WANDB_API_KEY"), "tinyimnet-tests"


@pytest.mark.skipif(not KEY, reason="needs a real W&B: set REAL_WANDB_API_KEY; it leaves a run in tinyimnet-tests")
def test_a_real_server_has_each_row_once_after_a_requeue_and_a_sync(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", str(KEY))
    if url := os.environ.get("REAL_WANDB_BASE_URL"):
        monkeypatch.setenv("WANDB_BASE_URL", url)
    settings = TrackingConfig(project=PROJECT, finish_timeout=60)
    (tmp_path / "config.yaml").write_text(configuration.dump(Config(tracking=settings)))

    def attempt(at: int, *steps: int, mode: str = "online", preempted: bool = False) -> None:
        monkeypatch.setenv("WANDB_MODE", mode)
        tracker = Tracker(tmp_path, settings)
        tracker.start(at)
        log(tracker, *steps)
        tracker.close(0, preempted=preempted)

    attempt(0, 5, 10, 15, preempted=True)
    attempt(5, 10, 15, 20)
    attempt(20, 25, 30, mode="offline")
    monkeypatch.setenv("WANDB_MODE", "online")
    done = python("-m", "tinyimnet", "sync", str(tmp_path))
    assert done.returncode == 0, done.stderr

    def steps() -> list[float]:
        run = wandb.Api().run(f"{PROJECT}/{run_id(tmp_path)}")
        return [row[STEP] for row in run.scan_history(keys=[STEP])]

    wait_until(lambda: len(steps()) >= 6, 60)
    assert steps() == [5, 10, 15, 20, 25, 30]
    assert wandb.Api().run(f"{PROJECT}/{run_id(tmp_path)}").state == "finished"
