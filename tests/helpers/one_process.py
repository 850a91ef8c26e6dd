"""The Trainer of a small run in the test process."""

from pathlib import Path

import pytest

from helpers.here import RANK
from tinyimnet import config_cli
from tinyimnet.data.loading import ready_dataset
from tinyimnet.distributed import process_group
from tinyimnet.distributed.preemption import StopRequest
from tinyimnet.distributed.rendezvous import Rendezvous
from tinyimnet.run.attempt import find_run, lock_run, open_run, this_attempt
from tinyimnet.run.checkpoint import Saver
from tinyimnet.run.lock import RunLock
from tinyimnet.tracking.tracker import Tracker
from tinyimnet.training.trainer import Trainer


@pytest.fixture
def trainer(arguments, tmp_path: Path):
    """Return a function that builds the Trainer of a small run on one process."""

    def make(**overrides: object) -> Trainer:
        settings = config_cli.load(arguments(**overrides))
        run_dir = find_run(settings)
        with RunLock(run_dir) as lock:
            saved, number = lock_run(run_dir, settings, lock)
            tracker = Tracker(run_dir, settings.tracking, attempt=number)
            made = Trainer(
                settings,
                process_group.start(settings.train, Rendezvous()),
                ready_dataset(settings.data, Rendezvous()),
                saved=saved,
                tracker=tracker,
                saver=Saver(run_dir / "checkpoints", keep=2, before=tracker.flush),
                stop=StopRequest(run_dir),
            )
            open_run(run_dir, settings, this_attempt([RANK], made.step, made.total_steps))
        tracker.start(made.step)
        return made

    return make
