"""Runs that are tracked, without a training: a folder, attempts that log rows, and what the server has of them."""

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
# A training that logs some steps and dies of SIGKILL: {log} is lines of Python, indented by nothing.
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
    """The folder of a run as a start leaves it; `options` are those of `tracking`."""
    folder = parent / "tiny-seed3"
    folder.mkdir()
    settings = Config(tracking=TrackingConfig(**{"finish_timeout": FINISH, **options}))
    (folder / "config.yaml").write_text(configuration.dump(settings))
    return folder


def start(run_dir: Path, at: int = 0, **options: Any) -> Tracker:
    """The tracker of an attempt that goes on from step `at`."""
    tracker = Tracker(run_dir, TrackingConfig(**{"finish_timeout": FINISH, **options}))
    tracker.start(at)
    return tracker


def log(tracker: Tracker, *steps: int) -> None:
    """Log some steps."""
    for step in steps:
        tracker.log(step, {"train/loss": 1 / (step + 1)})


def log_without_the_mirror(tracker: Tracker, *steps: int) -> None:
    """Log some steps, each of which has to be in the file at once, and must have nothing to do with the mirror."""

    class Untouchable:
        def __getattr__(self, name: str) -> None:
            raise AssertionError(f"a step that is logged reaches for {name} of the mirror")

    mirror, tracker._mirror = tracker._mirror, Untouchable()  # type: ignore[assignment]
    for step in steps:
        log(tracker, step)
        assert steps_on_disk(tracker.run_dir)[-1] == step
    tracker._mirror = mirror


def killed_training(run_dir: Path, lines: str) -> int:
    """Run a training that logs and is killed; its exit code. `lines` are Python that has a `tracker`."""
    return python("-c", KILLED.format(log=lines, finish=FINISH), str(run_dir)).returncode


def mirror_of(tracker: Tracker) -> MirrorProcess:
    """The process beside a training."""
    assert tracker._mirror
    return tracker._mirror


def service_of(tracker: Tracker) -> int:
    """Process id of wandb's own service, which the mirror has started."""
    return wait_until(lambda: child_of(mirror_of(tracker).process.pid, "wandb-core"))


def run_id(run_dir: Path) -> str:
    """The id on W&B, as the folder has it."""
    return json.loads((run_dir / "wandb_run.json").read_text())["id"]


def on_server(server: WandbServer, run_dir: Path) -> StoredRun:
    """The run of a folder, as soon as the server has it."""

    def find() -> StoredRun | None:
        try:
            return server.run(run_id(run_dir))
        except (OSError, KeyError):
            return None

    return wait_until(find)


def steps(run: StoredRun) -> list[float]:
    """The axis of the rows that arrived, in their order."""
    return [row[STEP] for row in run.history if STEP in row]


def steps_on_disk(run_dir: Path) -> list[float]:
    """The same of metrics.jsonl."""
    return [json.loads(line)[STEP] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def offline_records(run_dir: Path) -> list[Path]:
    """Folders of the attempts that were offline, the oldest first."""
    return sorted((run_dir / "wandb").glob("offline-run-*"))


def without_a_key(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Be on a machine of somebody who never used W&B."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))  # no .netrc there
