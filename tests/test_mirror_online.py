"""One W&B run, whatever happens: the mirror against a W&B server, read back with the client's own API."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import wandb  # noqa: TID251 (its public API reads back what arrived)
from conftest import launch
from test_mirror import child, within
from wandb_records import StoredRun
from wandb_server import WandbServer

from tinyimnet import config as configuration
from tinyimnet import files
from tinyimnet.config import Config, TrackingConfig
from tinyimnet.stored import send_lock
from tinyimnet.tracking import STEP, Tracker

pytestmark = pytest.mark.wandb
FINISH = 5  # tracking.finish_timeout


@pytest.fixture
def run_dir(tmp_path: Path, wandb_server: WandbServer) -> Path:
    """A run folder as a start leaves it."""
    folder = tmp_path / "tiny-seed3"
    folder.mkdir()
    settings = Config(tracking=TrackingConfig(finish_timeout=FINISH))
    (folder / "config.yaml").write_text(configuration.dump(settings))
    return folder


def start(run_dir: Path, at: int = 0, **options: Any) -> Tracker:
    made = Tracker(run_dir, TrackingConfig(**{"finish_timeout": FINISH, **options}))
    made.start(at)
    return made


def log(tracker: Tracker, *steps: int) -> None:
    for step in steps:
        tracker.log(step, {"train/loss": 1 / (step + 1)})


def stored(server: WandbServer, run_dir: Path) -> StoredRun:
    """The run on the server, as soon as it is there."""

    def find() -> StoredRun | None:
        try:
            return server.run(json.loads((run_dir / "wandb_run.json").read_text())["id"])
        except (OSError, KeyError):
            return None

    return within(20, find)


def steps(run: StoredRun) -> list[float]:
    """The axis of its rows, in their order."""
    return [row[STEP] for row in run.history if STEP in row]


def test_a_requeued_run_is_one_run_with_each_row_once(run_dir: Path, wandb_server: WandbServer) -> None:
    first = start(run_dir)
    log(first, 5, 10, 15)
    first.close(0, preempted=True)
    run = stored(wandb_server, run_dir)
    assert (run.state, run.was_preempting) == ("preempted", True)
    second = start(run_dir, at=5)
    log(second, 10, 15, 20)
    within(10, lambda: run.state == "running")
    second.close(0)
    assert run.state == "finished"
    assert steps(run) == [5, 10, 15, 20]
    assert list(wandb_server.store.runs.values()) == [run]


def test_the_api_reads_what_was_logged_over_the_global_step(run_dir: Path, wandb_server: WandbServer) -> None:
    tracker = start(run_dir)
    log(tracker, 5, 10)
    tracker.close(0)
    id = stored(wandb_server, run_dir).id
    run = wandb.Api().run(f"lab/tiny-imagenet-1m/{id}")
    rows = list(run.scan_history(keys=[STEP, "train/loss"]))
    assert [(row[STEP], row["train/loss"]) for row in rows] == [(5, 1 / 6), (10, 1 / 11)]
    assert (run.name, run.group, run.config["optim"]["lr"]) == ("tiny-seed3", "tiny", Config().optim.lr)


def test_after_sigkill_of_the_training_the_run_failed_and_goes_on_as_the_same(
    run_dir: Path, wandb_server: WandbServer
) -> None:
    program = (
        "import os, sys; from pathlib import Path; from tinyimnet.tracking import *;"
        f"log = Tracker(Path(sys.argv[1]), TrackingConfig(finish_timeout={FINISH})); log.start(0);"
        "[log.log(step, {'train/loss': 1.0}) for step in range(100)]; os.kill(os.getpid(), 9)"
    )
    assert launch([sys.executable, "-c", program, str(run_dir)]).returncode == -signal.SIGKILL
    run = stored(wandb_server, run_dir)
    within(20, lambda: run.state == "failed")
    assert run.exit_code == 137
    second = start(run_dir, at=50)
    log(second, *range(51, 120))
    second.close(0)
    assert steps(run) == list(range(120))
    assert (run.state, run.resumed) == ("finished", 1)


def test_the_next_life_sends_nothing_before_the_mirror_of_the_one_before_has_ended(
    run_dir: Path, wandb_server: WandbServer
) -> None:
    """It outlives a training that was killed, and has its last rows and word to send."""
    with send_lock(run_dir) as earlier:
        files.lock(earlier)
        log = start(run_dir)
        log.log(1, {"train/loss": 1.0})
        time.sleep(6)
        assert not wandb_server.store.runs
    assert steps(within(20, lambda: stored(wandb_server, run_dir))) in ([], [1])
    log.close(0)
    assert steps(stored(wandb_server, run_dir)) == [1]


def test_a_mirror_that_dies_right_before_the_end_is_told_with_the_way_to_send_the_rest(
    run_dir: Path, wandb_server: WandbServer, caplog
) -> None:
    made = start(run_dir)
    stored(wandb_server, run_dir)
    os.killpg(made._mirror.process.pid, signal.SIGKILL)  # type: ignore[union-attr]
    made.close(0)
    assert "ended too early (exit code -9); send what is missing: python -m tinyimnet sync" in caplog.text


@pytest.mark.parametrize("moment", ["connected", "at the end"])
def test_a_service_process_that_is_killed_costs_no_row(
    moment: str, run_dir: Path, wandb_server: WandbServer
) -> None:
    tracker = start(run_dir)
    run = stored(wandb_server, run_dir)
    core = within(20, lambda: child(tracker._mirror.process.pid, "wandb-core"))  # type: ignore[union-attr]
    log(tracker, 1, 2, 3)
    time.sleep(1.5)
    os.kill(core, signal.SIGKILL)
    if moment == "connected":
        log(tracker, 4, 5)
        time.sleep(2)
    tracker.close(0)
    assert steps(run) == ([1, 2, 3, 4, 5] if moment == "connected" else [1, 2, 3])
    assert run.state == "finished"


@pytest.mark.parametrize(
    ("fault", "path"), [("reset", "file_stream"), ("hang", ""), (503, ""), (404, "file_stream")]
)
def test_a_server_that_breaks_costs_no_step_any_time_and_no_row(
    fault: Any, path: str, run_dir: Path, wandb_server: WandbServer
) -> None:
    tracker = start(run_dir)
    run = stored(wandb_server, run_dir)
    log(tracker, 1, 2)
    within(10, lambda: steps(run) == [1, 2])
    wandb_server.break_with(fault, path)
    took = []
    for step in range(3, 100):
        started = time.perf_counter()
        log(tracker, step)
        took.append(time.perf_counter() - started)
    started = time.monotonic()
    tracker.close(0)
    ended = time.monotonic() - started
    assert steps(run) == [1, 2]  # and the rest is on disk
    wandb_server.heal()
    assert ended < FINISH + 8
    assert sorted(took)[len(took) // 2] < 0.001
    again = start(run_dir, at=99)
    again.close(0)
    assert sorted(steps(run)) == list(range(1, 100))


@pytest.mark.parametrize("fault", ["reset", "hang", 503, 401])
def test_a_server_that_is_not_there_at_the_start_is_waited_for_and_then_it_is_offline_under_the_same_id(
    fault: Any, run_dir: Path, wandb_server: WandbServer, capsys, monkeypatch
) -> None:
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
    wandb_server.break_with(fault)
    tracker = start(run_dir)
    log(tracker, 1, 2)
    within(25, lambda: list((run_dir / "wandb").glob("offline-run-*")))
    started = time.monotonic()
    tracker.close(0)
    assert time.monotonic() - started < FINISH
    assert (
        f"Recording offline; send it later with: python -m tinyimnet sync {run_dir}"
        in capsys.readouterr().out
    )
    wandb_server.heal()
    assert launch([sys.executable, "-m", "tinyimnet", "sync", str(run_dir)]).returncode == 0
    assert steps(stored(wandb_server, run_dir)) == [1, 2]


def test_the_stop_button_asks_the_training_to_save_and_end(run_dir: Path, wandb_server: WandbServer) -> None:
    tracker = start(run_dir)
    wandb_server.press_stop(stored(wandb_server, run_dir).id)
    within(40, (run_dir / "STOP").exists)  # the client asks every 15 s
    tracker.close(0)


def test_alerts_arrive_with_their_level(run_dir: Path, wandb_server: WandbServer) -> None:
    tracker = start(run_dir)
    tracker.alert("Checkpoint not written", "No space left on device")
    tracker.close(0)
    [alert] = wandb_server.alerts
    assert (alert["title"], alert["severity"]) == ("Checkpoint not written", "WARN")


def test_every_process_sends_system_metrics_where_that_is_asked_for(
    run_dir: Path, wandb_server: WandbServer
) -> None:
    trackers = []
    settings = TrackingConfig(per_rank=True, finish_timeout=FINISH)
    (run_dir / "config.yaml").write_text(configuration.dump(Config(tracking=settings)))
    for rank in (0, 1):
        trackers.append(Tracker(run_dir, settings, rank=rank))
        trackers[-1].start(0)
        run = stored(wandb_server, run_dir)
    log(trackers[0], 1, 2)
    log(trackers[1], 1, 2)
    time.sleep(3)
    for tracker in reversed(trackers):
        tracker.close(0)
    assert steps(run) == [1, 2]
    assert run.state == "finished"
    assert any("/l:rank_1" in key for row in run.events for key in row)
