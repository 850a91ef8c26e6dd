"""The mirror against a W&B server: one W&B run whatever happens, read back with the client's own API."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import wandb  # noqa: TID251 (its public API reads back what arrived)

from helpers.program import python
from helpers.wandb_server.clients import wait_until
from helpers.wandb_server.runs import (
    FINISH,
    killed_training,
    log,
    log_without_the_mirror,
    mirror_of,
    new_folder,
    offline_records,
    on_server,
    run_id,
    service_of,
    start,
    steps,
    steps_on_disk,
)
from helpers.wandb_server.server import WandbServer
from tinyimnet import config as configuration
from tinyimnet import files
from tinyimnet.config import Config, TrackingConfig
from tinyimnet.console import command
from tinyimnet.run.metrics import STEP
from tinyimnet.tracking.tracker import Tracker
from tinyimnet.tracking.uploaded import recorded, send_lock


@pytest.fixture
def run_dir(tmp_path: Path, wandb_server: WandbServer) -> Path:
    """A run folder as the start of a run leaves it."""
    return new_folder(tmp_path)


def test_a_requeued_run_is_one_run_with_each_row_once(run_dir: Path, wandb_server: WandbServer) -> None:
    first = start(run_dir)
    log(first, 5, 10, 15)
    first.close(0, preempted=True)
    run = on_server(wandb_server, run_dir)
    assert (run.state, run.was_preempting) == ("preempted", True)
    second = start(run_dir, at=5)
    log(second, 10, 15, 20)
    wait_until(lambda: run.state == "running")
    second.close(0)
    assert run.state == "finished"
    assert steps(run) == [5, 10, 15, 20]
    assert list(wandb_server.store.runs.values()) == [run]


def test_the_api_reads_what_was_logged_over_the_global_step(run_dir: Path, wandb_server: WandbServer) -> None:
    tracker = start(run_dir)
    log(tracker, 5, 10)
    tracker.close(0)
    id = on_server(wandb_server, run_dir).id
    run = wandb.Api().run(f"lab/tiny-imagenet-1m/{id}")
    rows = list(run.scan_history(keys=[STEP, "train/loss"]))
    assert [(row[STEP], row["train/loss"]) for row in rows] == [(5, 1 / 6), (10, 1 / 11)]
    assert (run.name, run.group, run.config["optim"]["lr"]) == ("tiny-seed3", "tiny", Config().optim.lr)


def test_after_a_sigkill_the_run_has_failed_and_goes_on_as_the_same_one(
    run_dir: Path, wandb_server: WandbServer
) -> None:
    lines = "[tracker.log(step, {'train/loss': 1.0}) for step in range(100)]"
    assert killed_training(run_dir, lines) == -signal.SIGKILL
    run = on_server(wandb_server, run_dir)
    wait_until(lambda: run.state == "failed")
    assert run.exit_code == 137
    second = start(run_dir, at=50)
    log(second, *range(51, 120))
    second.close(0)
    assert steps(run) == list(range(120))
    assert (run.state, run.resumed) == ("finished", 1)


def test_an_attempt_sends_nothing_until_the_previous_mirror_has_ended(run_dir: Path, wandb_server: WandbServer) -> None:
    """The mirror outlives a training that was killed, and still sends its last rows and its exit code."""
    with send_lock(run_dir) as earlier:
        files.lock(earlier)
        tracker = start(run_dir)
        log(tracker, 1)
        time.sleep(6)
        assert not wandb_server.store.runs
    run = on_server(wandb_server, run_dir)
    tracker.close(0)
    assert steps(run) == [1]


def test_a_mirror_that_dies_early_is_reported_with_the_sync_command(
    run_dir: Path, wandb_server: WandbServer, caplog
) -> None:
    tracker = start(run_dir)
    on_server(wandb_server, run_dir)
    os.killpg(mirror_of(tracker).process.pid, signal.SIGKILL)
    tracker.close(0)
    told = f"exited early (exit code -9); upload the missing rows with: {command('sync', run_dir)}"
    assert told in caplog.text


@pytest.mark.parametrize("moment", ["connected", "at the end"])
def test_a_service_process_that_is_killed_costs_no_row(moment: str, run_dir: Path, wandb_server: WandbServer) -> None:
    tracker = start(run_dir)
    run = on_server(wandb_server, run_dir)
    service = service_of(tracker)
    log(tracker, 1, 2, 3)
    time.sleep(1.5)
    os.kill(service, signal.SIGKILL)
    if moment == "connected":
        log(tracker, 4, 5)
        time.sleep(2)
    tracker.close(0)
    assert steps(run) == ([1, 2, 3, 4, 5] if moment == "connected" else [1, 2, 3])
    assert run.state == "finished"


@pytest.mark.parametrize(("fault", "path"), [("reset", "file_stream"), ("hang", ""), (503, ""), (404, "file_stream")])
def test_a_server_that_breaks_costs_no_step_any_time_and_no_row(
    fault: Any, path: str, run_dir: Path, wandb_server: WandbServer
) -> None:
    tracker = start(run_dir)
    run = on_server(wandb_server, run_dir)
    log(tracker, 1, 2)
    wait_until(lambda: steps(run) == [1, 2])
    wandb_server.break_with(fault, path)
    log_without_the_mirror(tracker, *range(3, 100))
    started = time.monotonic()
    tracker.close(0)
    ended = time.monotonic() - started
    assert steps(run) == [1, 2] and steps_on_disk(run_dir) == list(range(1, 100))
    wandb_server.heal()
    assert ended < FINISH + 20
    again = start(run_dir, at=99)
    again.close(0)
    assert sorted(steps(run)) == list(range(1, 100))


@pytest.mark.parametrize("fault", ["reset", "hang", 503, 401])
def test_with_no_server_at_the_start_it_goes_offline_under_the_same_id(
    fault: Any, run_dir: Path, wandb_server: WandbServer, capsys, monkeypatch
) -> None:
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
    wandb_server.break_with(fault)
    tracker = start(run_dir)
    id = run_id(run_dir)
    log(tracker, 1, 2)
    [record] = wait_until(lambda: offline_records(run_dir))
    started = time.monotonic()
    tracker.close(0)
    assert time.monotonic() - started < FINISH + 20
    said = f"Recording offline; upload later with: {command('sync', run_dir)}"
    assert said in capsys.readouterr().out
    wandb_server.heal()
    assert python("-m", "tinyimnet", "sync", str(run_dir)).returncode == 0
    run = on_server(wandb_server, run_dir)
    assert steps(run) == [1, 2]
    assert record.name.endswith(f"-{id}") and run.id == id


def test_a_service_that_does_not_end_is_killed_and_the_run_goes_offline(
    run_dir: Path, wandb_server: WandbServer, capsys, monkeypatch
) -> None:
    """wandb.teardown waits without a limit for wandb-core, which after a request without an answer sometimes stays."""
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
    wandb_server.break_with("hang")
    tracker = start(run_dir)
    log(tracker, 1, 2)
    wait_until(lambda: wandb_server.broken)
    os.kill(service_of(tracker), signal.SIGSTOP)
    wait_until(lambda: offline_records(run_dir))
    tracker.close(0)
    assert "Recording offline" in capsys.readouterr().out
    assert recorded(run_dir, run_id(run_dir)).steps == {1, 2}


def test_the_stop_button_asks_the_training_to_save_and_end(run_dir: Path, wandb_server: WandbServer) -> None:
    tracker = start(run_dir)
    wandb_server.press_stop(on_server(wandb_server, run_dir).id)
    wait_until((run_dir / "STOP").exists)  # the client asks every 15 s
    tracker.close(0)


def test_alerts_arrive_with_their_level(run_dir: Path, wandb_server: WandbServer) -> None:
    tracker = start(run_dir)
    tracker.alert("Checkpoint not written", "No space left on device")
    tracker.close(0)
    [alert] = wandb_server.alerts
    assert (alert["title"], alert["severity"]) == ("Checkpoint not written", "WARN")
    assert alert["text"] == "No space left on device"


def test_every_process_sends_system_metrics_if_per_rank_is_set(run_dir: Path, wandb_server: WandbServer) -> None:
    settings = TrackingConfig(per_rank=True, finish_timeout=FINISH)
    (run_dir / "config.yaml").write_text(configuration.dump(Config(tracking=settings)))
    trackers = [Tracker(run_dir, settings, rank=rank) for rank in (0, 1)]
    for tracker in trackers:
        tracker.start(0)
        run = on_server(wandb_server, run_dir)
        log(tracker, 1, 2)
    time.sleep(3)
    for tracker in reversed(trackers):
        tracker.close(0)
    assert steps(run) == [1, 2]
    assert run.state == "finished"
    measured = {key for row in run.events for key in row}
    for rank in (0, 1):
        assert any(key.startswith("system.") and key.endswith(f"/l:rank_{rank}") for key in measured), measured
