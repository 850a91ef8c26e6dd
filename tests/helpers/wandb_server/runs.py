"""Tracked runs without a training: a run folder, attempts that log rows, and what the server stores of them."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from helpers.program import python
from helpers.wandb_server.clients import child_of, wait_until
from helpers.wandb_server.records import StoredRun
from helpers.wandb_server.server import WandbServer
from tinyimnet import config as configuration
from tinyimnet.config import Config, TrackingConfig
from tinyimnet.run.metrics import STEP
from tinyimnet.tracking.tracker import MirrorProcess, Tracker

FINISH = 5  # tracking.finish_timeout
# A training that logs some steps and kills itself with SIGKILL. {log} is replaced by unindented lines of Python.
KILLED = """
import os, sys, time
from pathlib import Path
from tinyimnet.config import TrackingConfig
from tinyimnet.tracking.tracker import Tracker
tracker = Tracker(Path(sys.argv[1]), TrackingConfig(finish_timeout={finish}))
tracker.start(0)
{log}
os.kill(os.getpid(), 9)
"""


def new_folder(parent: Path, **options: Any) -> Path:
    """Create a run folder as the start of a training leaves it; `options` are keys of the tracking section."""
    folder = parent / "tiny-seed3"
    folder.mkdir()
    settings = Config(tracking=TrackingConfig(**{"finish_timeout": FINISH, **options}))
    (folder / "config.yaml").write_text(configuration.dump(settings))
    return folder


def start(run_dir: Path, at: int = 0, **options: Any) -> Tracker:
    """Start the tracker of an attempt that resumes from step `at`."""
    tracker = Tracker(run_dir, TrackingConfig(**{"finish_timeout": FINISH, **options}))
    tracker.start(at)
    return tracker


def log(tracker: Tracker, *steps: int) -> None:
    """Log some steps."""
    for step in steps:
        tracker.log(step, {"train/loss": 1 / (step + 1)})


def log_without_the_mirror(tracker: Tracker, *steps: int) -> None:
    """Log some steps, and check that each is in the file at once and that logging does not touch the mirror."""

    class Untouchable:
        def __getattr__(self, name: str) -> None:
            raise AssertionError(f"logging a step accessed {name} of the mirror")

    mirror, tracker._mirror = tracker._mirror, Untouchable()  # type: ignore[assignment]
    for step in steps:
        log(tracker, step)
        assert steps_on_disk(tracker.run_dir)[-1] == step
    tracker._mirror = mirror


def killed_training(run_dir: Path, lines: str) -> int:
    """Run a training that executes `lines`, Python code that can use `tracker`, and is killed; return its exit code."""
    return python("-c", KILLED.format(log=lines, finish=FINISH), str(run_dir)).returncode


def mirror_of(tracker: Tracker) -> MirrorProcess:
    """Mirror process of a training."""
    assert tracker._mirror
    return tracker._mirror


def service_of(tracker: Tracker) -> int:
    """Process id of the wandb-core service that the mirror starts."""
    return wait_until(lambda: child_of(mirror_of(tracker).process.pid, "wandb-core"))


def run_id(run_dir: Path) -> str:
    """W&B run id in the run folder."""
    return json.loads((run_dir / "wandb_run.json").read_text())["id"]


def on_server(server: WandbServer, run_dir: Path) -> StoredRun:
    """Wait until the server has the run of a folder, and return it."""

    def find() -> StoredRun | None:
        try:
            return server.run(run_id(run_dir))
        except (OSError, KeyError):
            return None

    return wait_until(find)


def steps(run: StoredRun) -> list[float]:
    """Global steps of the rows that arrived, in order."""
    return [row[STEP] for row in run.history if STEP in row]


def steps_on_disk(run_dir: Path) -> list[float]:
    """Global steps of the rows in metrics.jsonl, in order."""
    return [json.loads(line)[STEP] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def offline_records(run_dir: Path) -> list[Path]:
    """Record folders of offline attempts, oldest first."""
    return sorted((run_dir / "wandb").glob("offline-run-*"))


def without_a_key(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Set up the environment of a user who has never used W&B."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))  # no .netrc there
