"""tinyimnet sync: what offline attempts and lost connections left behind is uploaded exactly once."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from helpers.program import REPO, python
from helpers.wandb_server.clients import wait_until
from helpers.wandb_server.records import StoredRun
from helpers.wandb_server.runs import new_folder, offline_records, run_id, start
from helpers.wandb_server.runs import steps as steps_of
from helpers.wandb_server.server import WandbServer
from tinyimnet.files import read_lines
from tinyimnet.run.lock import RunLock
from tinyimnet.run.metrics import STEP

# An offline training that logs until the file RUN/seen exists.
TRAINING = """
import itertools, sys, time
from pathlib import Path
from tinyimnet.config import TrackingConfig
from tinyimnet.run.lock import RunLock
from tinyimnet.tracking.tracker import Tracker
run = Path(sys.argv[1])
with RunLock(run) as lock:
    lock.acquire()
    tracker = Tracker(run, TrackingConfig(wandb="offline"))
    tracker.start(0)
    for step in itertools.count(1):
        tracker.log(step, {"train/loss": 1.0})
        time.sleep(0.5)
        if (run / "seen").exists():
            break
    tracker.close(0)
"""


@pytest.fixture
def run_dir(tmp_path: Path, wandb_server: WandbServer) -> Path:
    """A run folder as the start of a run leaves it."""
    return new_folder(tmp_path)


def attempt(run_dir: Path, steps: range, *, at: int = 0, mode: str = "offline", exit_code: int = 0) -> None:
    """Run an attempt that resumes at a step and logs these steps."""
    tracker = start(run_dir, at, wandb=mode)
    for step in steps:
        tracker.log(step, {"train/loss": 1 / step})
    tracker.close(exit_code)


def sync(*arguments: Any) -> subprocess.CompletedProcess:
    return python("-m", "tinyimnet", "sync", *map(str, arguments))


def steps(server: WandbServer, run_dir: Path) -> list[float]:
    """Return the global steps of the rows on the server, in order."""
    return steps_of(server.run(run_id(run_dir)))


def only_run(server: WandbServer) -> StoredRun:
    [run] = server.store.runs.values()
    return run


@pytest.fixture
def offline(run_dir: Path, monkeypatch) -> Path:
    """Two offline attempts, the second of which resumes before the end of the first."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    attempt(run_dir, range(1, 11), exit_code=1)
    attempt(run_dir, range(6, 16), at=5)
    monkeypatch.delenv("WANDB_MODE")
    return run_dir


def test_offline_attempts_become_one_run_with_each_row_once_and_in_order(
    offline: Path, wandb_server: WandbServer
) -> None:
    done = sync(offline)
    assert done.returncode == 0, done.stderr
    assert "uploaded 15 of 15 rows; W&B now has all of them: http" in done.stdout
    assert steps(wandb_server, offline) == list(range(1, 16))
    run = only_run(wandb_server)
    assert run.state == "finished"
    assert any(key.startswith("system.") for row in run.events for key in row)  # of the nodes on which it trained


def test_it_sends_from_an_offline_shell_and_under_the_id_in_wandb_run_id(
    offline: Path, wandb_server: WandbServer, monkeypatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")  # as in slurm/site.env of a cluster without a network
    monkeypatch.setenv("WANDB_RUN_ID", "another")  # W&B does not accept the id of a deleted run again
    done = sync(offline)
    assert done.returncode == 0, done.stderr
    assert steps(wandb_server, offline) == list(range(1, 16))
    assert run_id(offline) == only_run(wandb_server).id == "another"


def test_a_second_sync_sends_nothing(offline: Path, wandb_server: WandbServer) -> None:
    sync(offline)
    run = only_run(wandb_server)
    before = (run.resumed, len(run.history))
    again = sync(offline)
    assert (run.resumed, len(run.history)) == before
    assert again.returncode == 0 and "W&B already has all 15 rows" in again.stdout
    assert steps(wandb_server, offline) == list(range(1, 16))


def test_rows_missed_by_an_interrupted_sync_are_sent_by_the_next(offline: Path, wandb_server: WandbServer) -> None:
    """The server has half of the rows of a record, and no marker file says so."""
    sync(offline)
    run = only_run(wandb_server)
    kept = run.lines["wandb-history.jsonl"]
    run.lines["wandb-history.jsonl"] = {number: line for number, line in kept.items() if number < 7}
    for marker in (offline / "wandb").glob("*/*.synced"):
        marker.unlink()
    done = sync(offline)
    assert done.returncode == 0, done.stderr
    assert sorted(steps(wandb_server, offline)) == list(range(1, 16))


def test_rows_that_a_lost_connection_left_behind_are_sent(run_dir: Path, wandb_server: WandbServer) -> None:
    attempt(run_dir, range(1, 4), mode="online")
    wandb_server.break_with("reset", "file_stream")
    attempt(run_dir, range(4, 8), at=3, mode="online")
    wandb_server.heal()
    before = steps(wandb_server, run_dir)
    done = sync(run_dir)
    assert done.returncode == 0, done.stderr
    assert before == [1, 2, 3] and steps(wandb_server, run_dir) == list(range(1, 8))


def finish(run_dir: Path, steps: int) -> None:
    """Write the files that the end of a training writes."""
    (run_dir / "DONE").write_text(json.dumps({"steps": steps}))
    for name in ("best.safetensors", "final.safetensors", "MODEL_CARD.md"):
        (run_dir / name).write_text(f"of step {steps}")


def test_a_finished_run_that_is_extended_stays_one_run_with_all_weights(
    run_dir: Path, wandb_server: WandbServer
) -> None:
    finish(run_dir, 3)
    attempt(run_dir, range(1, 4), mode="online")
    (run_dir / "DONE").unlink()  # as the start of a longer training does
    attempt(run_dir, range(4, 6), at=3, mode="online", exit_code=1)
    assert "W&B already has all 5 rows" in sync(run_dir).stdout
    finish(run_dir, 7)
    attempt(run_dir, range(6, 8), at=5, mode="online")
    assert steps(wandb_server, run_dir) == list(range(1, 8))
    assert only_run(wandb_server).state == "finished" and not offline_records(run_dir)
    [model] = [c for c in wandb_server.store.collections.values() if c.name.startswith("model-")]
    assert [version.metadata["steps"] for version in model.versions] == [3, 3, 7, 7]


def test_a_run_is_synced_to_the_entity_where_it_was_created(
    run_dir: Path, wandb_server: WandbServer, monkeypatch
) -> None:
    monkeypatch.setenv("WANDB_ENTITY", "team")
    attempt(run_dir, range(1, 4), mode="online")
    monkeypatch.delenv("WANDB_ENTITY")
    (run_dir / "metrics.jsonl").open("a").write(json.dumps({STEP: 4, "train/loss": 0.1}) + "\n")
    done = sync(run_dir)
    assert done.returncode == 0 and "uploaded 1 of 4 rows" in done.stdout, done.stderr
    run = only_run(wandb_server)
    assert run.entity == "team" and steps(wandb_server, run_dir) == [1, 2, 3, 4]


def test_a_run_in_training_is_refused(offline: Path) -> None:
    with RunLock(offline) as lock:
        lock.acquire()
        refused = sync(offline)
    assert refused.returncode == 2
    assert "is still training; follow it with --live" in refused.stderr


def test_without_arguments_it_sends_all_idle_runs_including_trials(
    offline: Path, tmp_path: Path, wandb_server: WandbServer, monkeypatch
) -> None:
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    busy, trial = tmp_path / "busy", tmp_path / "sweep-abc" / "trial"
    shutil.copytree(offline, busy)
    shutil.move(offline, trial)
    with RunLock(busy) as lock:
        lock.acquire()
        done = sync()
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("uploaded 15 of 15 rows") == 1 and str(busy) not in done.stdout
    assert steps(wandb_server, trial) == list(range(1, 16))
    with RunLock(busy) as lock, RunLock(trial) as other:
        lock.acquire(), other.acquire()
        refused = sync()
    assert refused.returncode == 2 and "are still training (found 2)" in refused.stderr


def test_a_training_that_sends_its_rows_itself_is_left_alone(run_dir: Path) -> None:
    attempt(run_dir, range(1, 3), mode="online")
    with RunLock(run_dir) as lock:
        lock.acquire()
        refused = sync("--live", run_dir)
    assert refused.returncode == 2
    assert "uploads its own rows" in refused.stderr


def test_two_simultaneous_syncs_do_not_send_the_same_rows(offline: Path, wandb_server: WandbServer) -> None:
    command = [sys.executable, "-m", "tinyimnet", "sync", str(offline)]
    both = [subprocess.Popen(command, cwd=REPO, text=True, stderr=subprocess.PIPE) for _ in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], errors
    assert "is already being uploaded" in "".join(errors)
    assert steps(wandb_server, offline) == list(range(1, 16))


def test_a_run_that_trains_offline_is_followed_until_its_end(run_dir: Path, wandb_server: WandbServer) -> None:
    offline = {**os.environ, "WANDB_MODE": "offline"}
    training = subprocess.Popen([sys.executable, "-c", TRAINING, str(run_dir)], cwd=REPO, env=offline)
    wait_until((run_dir / "wandb_run.json").exists)
    followed = subprocess.Popen(
        [sys.executable, "-m", "tinyimnet", "sync", "--live", str(run_dir)], cwd=REPO, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    wait_until(lambda: wandb_server.store.runs and len(steps(wandb_server, run_dir)) > 3)
    (run_dir / "seen").touch()
    output, _ = followed.communicate(timeout=120)
    assert (followed.returncode, training.wait()) == (0, 0), output
    assert steps(wandb_server, run_dir) == [row[STEP] for row in read_lines(run_dir / "metrics.jsonl")]
    run = only_run(wandb_server)
    assert run.state == "finished"


@pytest.mark.parametrize("fault", ["reset", "hang", 500, 404])
def test_a_server_that_rejects_rows_is_an_error_in_bounded_time(
    fault: Any, offline: Path, wandb_server: WandbServer
) -> None:
    wandb_server.break_with(fault, "file_stream")
    started = time.monotonic()
    done = sync("--timeout", 12, offline)
    assert done.returncode == 2 and time.monotonic() - started < 30
    assert str(offline) in done.stderr
    wandb_server.heal()
    assert sync(offline).returncode == 0
    assert sorted(steps(wandb_server, offline)) == list(range(1, 16))


def test_without_a_key_it_says_so(offline: Path, monkeypatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    refused = sync(offline)
    assert refused.returncode == 2 and "WANDB_API_KEY" in refused.stderr
