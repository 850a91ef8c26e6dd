"""The mirror of a run folder on W&B, here offline, read back with the client's own reader."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from helpers.program import launch
from helpers.wandb_server.clients import wait_until
from helpers.wandb_server.runs import (
    killed_training,
    log,
    log_without_the_mirror,
    mirror_of,
    new_folder,
    offline_records,
    run_id,
    service_of,
    start,
    without_a_key,
)
from tinyimnet import config as configuration
from tinyimnet.console import command
from tinyimnet.run.metrics import STEP
from tinyimnet.tracking.tracker import LEAVE, RESTARTS

SECRET = "planted-4f1c8e"


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch) -> Path:
    """A run folder as the start of a run leaves it, on a machine without a key."""
    without_a_key(monkeypatch, tmp_path)
    folder = new_folder(tmp_path)
    (folder / "run_info.json").write_text('{"parameters": 998728}')
    return folder


def records(run_dir: Path) -> list[dict]:
    """Return the records of all attempts of a run, in order."""
    found = []
    for folder in offline_records(run_dir):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
        lines = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout.splitlines()
        found += [json.loads(line) for line in lines]
    return found


def rows(run_dir: Path) -> list[float]:
    """Return the global steps of the recorded rows, in order."""
    return [line["history"]["item"][STEP] for line in records(run_dir) if line["type"] == "history"]


def exit_codes(run_dir: Path) -> list[int]:
    return [line["exit"].get("exit_code", 0) for line in records(run_dir) if line["type"] == "exit"]


def test_without_a_key_it_is_offline_and_one_line_says_how_to_send_it(run_dir: Path, capsys) -> None:
    tracker = start(run_dir)
    log(tracker, 5)
    tracker.close(0)
    assert rows(run_dir) == [5]
    [said] = [line for line in wait_until(lambda: capsys.readouterr().out).splitlines() if "W&B" in line]
    assert "No API key" in said and f"tinyimnet sync {run_dir}" in said


def test_rows_replayed_after_a_resume_are_recorded_once_under_one_id(run_dir: Path) -> None:
    first = start(run_dir, wandb="offline")
    log(first, 5, 10, 15)
    first.close(1)
    second = start(run_dir, at=5, wandb="offline")
    log(second, 10, 15, 20)
    second.close(0)
    assert rows(run_dir) == [5, 10, 15, 20]
    assert exit_codes(run_dir) == [1, 0]
    assert {line["run"]["run_id"] for line in records(run_dir) if line["type"] == "run"} == {run_id(run_dir)}


def test_the_run_has_its_configuration_its_info_and_the_group_of_its_seeds(run_dir: Path) -> None:
    start(run_dir, wandb="offline").close(0)
    [run] = [line["run"] for line in records(run_dir) if line["type"] == "run"]
    [config] = [line["config"]["update"] for line in records(run_dir) if line["type"] == "config"]
    assert (run["display_name"], run["run_group"], run["project"]) == (
        "tiny-seed3",
        "tiny",
        "tiny-imagenet-1m",
    )
    assert config.pop("parameters") == 998728
    assert config.pop("run_folder") == str(run_dir)
    written = configuration.flatten(yaml.safe_load((run_dir / "config.yaml").read_text()))
    assert configuration.flatten(config) == written


@pytest.mark.parametrize("step", [0, 3])
def test_a_service_process_that_is_killed_costs_no_row(step: int, run_dir: Path) -> None:
    tracker = start(run_dir, wandb="offline")
    service = service_of(tracker)
    wait_until(lambda: offline_records(run_dir))
    for i in range(6):
        log(tracker, i)
        if i == step:
            time.sleep(1.5)
            os.kill(service, signal.SIGTERM)
            time.sleep(1.5)
    tracker.close(0)
    assert sorted(rows(run_dir)) == list(range(6))


def test_a_mirror_that_is_killed_is_started_again_and_costs_no_row(run_dir: Path) -> None:
    tracker = start(run_dir, wandb="offline")
    wait_until(lambda: offline_records(run_dir))
    killed = mirror_of(tracker).process
    log(tracker, 1)
    killed.kill()
    wait_until(lambda: mirror_of(tracker).process is not killed)
    log(tracker, 2)
    tracker.close(0)
    assert sorted(rows(run_dir)) == [1, 2]


def test_a_mirror_that_always_exits_is_restarted_three_times(
    run_dir: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho start >> {tmp_path / 'starts'}\necho heard\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    tracker = start(run_dir, wandb="offline")
    [listener] = [thread for thread in threading.enumerate() if thread.name == "W&B mirror"]
    listener.join(10)
    tracker.close(0)
    starts = (tmp_path / "starts").read_text().split()
    assert len(starts) == capsys.readouterr().out.count("heard") == 1 + RESTARTS


def test_after_sigkill_of_the_training_the_run_has_every_row_and_failed(run_dir: Path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    lines = "[tracker.log(step, {'train/loss': 1.0}) for step in range(300)]; time.sleep(4)\n"
    lines += "tracker.log(300, {'train/loss': 1.0})"
    assert killed_training(run_dir, lines) == -signal.SIGKILL
    wait_until(lambda: exit_codes(run_dir) == [137])
    assert rows(run_dir) == list(range(301))


def test_a_job_that_ends_soon_leaves_time_for_its_requeue(run_dir: Path, monkeypatch, caplog) -> None:
    tracker = start(run_dir, wandb="offline")
    process = mirror_of(tracker).process
    os.kill(process.pid, signal.SIGSTOP)
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + LEAVE + 3))
    started = time.monotonic()
    tracker.close(0)
    assert 1 < time.monotonic() - started < LEAVE  # and not FINISH + MARGIN, 50 s
    assert process.wait(10) == -signal.SIGKILL
    assert f"upload the missing rows with: {command('sync', run_dir)}" in caplog.text


def test_an_unreachable_server_delays_no_step_and_the_end_by_seconds(run_dir: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # connections are refused
    tracker = start(run_dir)
    log_without_the_mirror(tracker, *range(100))
    started = time.monotonic()
    tracker.close(0)
    assert time.monotonic() - started < 45
    assert rows(run_dir) == list(range(100))
    assert "Recording offline" in capsys.readouterr().out


def test_no_secret_reaches_the_run_folder(run_dir: Path, monkeypatch, arguments) -> None:
    for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD"):
        monkeypatch.setenv(name, SECRET.ljust(40, "x"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    command = [sys.executable, "train.py", *arguments(run__dir=run_dir / "real", train__epochs=1)]
    assert launch(command).returncode == 0
    searched = [path for path in (run_dir / "real").rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in searched)
    assert [path for path in searched if SECRET.encode() in path.read_bytes()] == []
