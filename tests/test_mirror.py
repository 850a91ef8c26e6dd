"""W&B follows the run folder, offline here, and is read back with the client's own reader."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO, launch

from tinyimnet import config as configuration
from tinyimnet.config import Config, TrackingConfig
from tinyimnet.mirror import prepare_environment
from tinyimnet.tracking import LEAVE, STEP, Tracker

pytestmark = pytest.mark.wandb
SECRET = "planted-4f1c8e"


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch) -> Path:
    """A run folder as a start leaves it, on a machine without a key."""
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no .netrc there
    folder = tmp_path / "tiny-seed3"
    folder.mkdir()
    (folder / "config.yaml").write_text(configuration.dump(Config()))
    (folder / "facts.json").write_text('{"parameters": 998728}')
    return folder


def tracker(run_dir: Path, at: int = 0, **options: Any) -> Tracker:
    made = Tracker(run_dir, TrackingConfig(**{"finish_timeout": 10, **options}))
    made.start(at)
    return made


def records(run_dir: Path) -> list[dict]:
    """What was recorded of the lives of a run, in their order."""
    found = []
    for folder in sorted((run_dir / "wandb").glob("offline-run-*")):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
        lines = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.splitlines()
        found += [json.loads(line) for line in lines]
    return found


def rows(run_dir: Path) -> list[float]:
    """Global steps of the rows that were recorded, in their order."""
    return [line["history"]["item"][STEP] for line in records(run_dir) if line["type"] == "history"]


def exit_codes(run_dir: Path) -> list[int]:
    return [line["exit"].get("exit_code", 0) for line in records(run_dir) if line["type"] == "exit"]


def within(seconds: float, done: Callable[[], Any]) -> Any:
    """What `done` returns, as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (result := done()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.2)
    return result


def child(parent: int, name: str) -> int:
    """Process id of a child with this name, 0 where there is none."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")
        except OSError:
            continue
        if int(fields[2].split()[1]) == parent and name in fields[0]:
            return int(entry.name)
    return 0


def test_without_a_key_it_is_offline_by_itself_and_says_so_in_one_line_with_the_way_to_send_it(
    run_dir: Path, capsys
) -> None:
    log = tracker(run_dir)
    log.log(5, {"train/loss": 2.5})
    log.close(0)
    assert rows(run_dir) == [5]
    said = [line for line in within(5, lambda: capsys.readouterr().out).splitlines() if "W&B" in line]
    assert len(said) == 1 and "No API key" in said[0] and f"tinyimnet sync {run_dir}" in said[0]


def test_rows_that_are_replayed_after_a_resume_are_recorded_once_and_under_one_id(run_dir: Path) -> None:
    first = tracker(run_dir, wandb="offline")
    for step in (5, 10, 15):
        first.log(step, {"train/loss": 2.5})
    first.close(1)
    second = tracker(run_dir, at=5, wandb="offline")
    for step in (10, 15, 20):
        second.log(step, {"train/loss": 2.5})
    second.close(0)
    assert rows(run_dir) == [5, 10, 15, 20]
    assert exit_codes(run_dir) == [1, 0]
    kept = json.loads((run_dir / "wandb_run.json").read_text())["id"]
    assert {line["run"]["run_id"] for line in records(run_dir) if line["type"] == "run"} == {kept}


def test_the_run_has_the_configuration_and_the_facts_and_belongs_to_the_group_of_its_seeds(
    run_dir: Path,
) -> None:
    tracker(run_dir, wandb="offline").close(0)
    run = json.dumps([line for line in records(run_dir) if line["type"] in ("run", "config")])
    for shown in ('"tiny-seed3"', '"tiny"', "global_batch_size", "998728"):
        assert shown in run


@pytest.mark.parametrize("step", [0, 3])
def test_a_service_process_that_is_killed_costs_no_row(step: int, run_dir: Path) -> None:
    log = tracker(run_dir, wandb="offline")
    core = within(20, lambda: child(log._mirror.process.pid, "wandb-core"))  # type: ignore[union-attr]
    within(20, lambda: list((run_dir / "wandb").glob("offline-run-*")))
    for i in range(6):
        log.log(i, {"train/loss": 2.5})
        if i == step:
            time.sleep(1.5)
            os.kill(core, signal.SIGTERM)
            time.sleep(1.5)
    log.close(0)
    assert sorted(rows(run_dir)) == list(range(6))


def test_a_mirror_that_is_killed_is_started_again_and_costs_no_row(run_dir: Path) -> None:
    log = tracker(run_dir, wandb="offline")
    within(20, lambda: list((run_dir / "wandb").glob("offline-run-*")))
    killed = log._mirror.process  # type: ignore[union-attr]
    log.log(1, {"train/loss": 2.5})
    killed.kill()
    within(10, lambda: log._mirror.process is not killed)  # type: ignore[union-attr]
    log.log(2, {"train/loss": 2.5})
    log.close(0)
    assert sorted(rows(run_dir)) == [1, 2]


def test_after_sigkill_of_the_training_the_run_has_every_row_and_failed(run_dir: Path) -> None:
    program = (
        "import os, sys, time; from pathlib import Path; from tinyimnet.tracking import *;"
        "log = Tracker(Path(sys.argv[1]), TrackingConfig(wandb='offline')); log.start(0);"
        "[log.log(step, {'train/loss': 1.0}) for step in range(300)]; time.sleep(4);"
        "log.log(300, {'train/loss': 1.0}); os.kill(os.getpid(), 9)"
    )
    killed = launch([sys.executable, "-c", program, str(run_dir)])
    assert killed.returncode == -signal.SIGKILL
    within(20, lambda: exit_codes(run_dir) == [137])
    assert rows(run_dir) == list(range(301))


def test_a_job_that_ends_soon_waits_no_longer_than_it_can_still_be_requeued(
    run_dir: Path, monkeypatch
) -> None:
    log = tracker(run_dir, wandb="offline")
    os.kill(log._mirror.process.pid, signal.SIGSTOP)  # type: ignore[union-attr]
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + LEAVE + 3))
    started = time.monotonic()
    log.close(0)
    assert 1 < time.monotonic() - started < 6


def test_a_server_that_does_not_answer_costs_a_step_nothing_and_the_end_a_bounded_time(
    run_dir: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # refused
    log = tracker(run_dir)
    slowest = 0.0
    for step in range(100):
        started = time.perf_counter()
        log.log(step, {"train/loss": 2.5})
        slowest = max(slowest, time.perf_counter() - started)
        time.sleep(0.01)
    started = time.monotonic()
    log.close(0)
    assert time.monotonic() - started < 45
    assert rows(run_dir) == list(range(100))
    assert "Recording offline" in capsys.readouterr().out
    assert slowest < 0.02  # a write to a file; beside a busy machine


def test_no_secret_reaches_the_run_folder(run_dir: Path, monkeypatch, arguments) -> None:
    for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD"):
        monkeypatch.setenv(name, SECRET.ljust(40, "x"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    command = [sys.executable, "train.py", *arguments(run__dir=run_dir / "real", train__epochs=1)]
    assert launch(command).returncode == 0
    searched = [path for path in (run_dir / "real").rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in searched)
    assert [path for path in searched if SECRET.encode() in path.read_bytes()] == []


def test_the_training_does_not_import_wandb_nor_the_mirror_torch() -> None:
    for module, foreign in (("train", {"wandb", "submitit"}), ("tinyimnet.mirror", {"torch", "matplotlib"})):
        program = f"import sys, {module}; assert not {foreign} & set(sys.modules)"
        assert launch([sys.executable, "-c", program], PYTHONPATH=str(REPO)).returncode == 0, module


def test_an_empty_mode_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"WANDB_MODE": ""})
    prepare_environment(tmp_path)
    assert "WANDB_MODE" not in os.environ
