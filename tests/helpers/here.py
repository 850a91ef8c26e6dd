"""Train inside the test process, for fixtures that outlive one test."""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate.state import AcceleratorState

from helpers.program import small_run
from tinyimnet import train
from tinyimnet.distributed import preemption

OF_LAUNCHERS = ("SLURM_", "ACCELERATE_", "TORCHELASTIC_", "MASTER_", "LOCAL_", "WANDB_")
OF_A_SITE = ("RANK", "WORLD_SIZE", "RUNS_ROOT", "DATA_ROOT", "STAGE_TO", "VIRTUAL_ENV")

# What one rank reports to the preflight, as far as the start of an attempt reads it.
RANK = {"host": "here", "code": "", "device": "CPU", "gpus": 0, "versions": {"torch": "2.13.0"}, "gpu_versions": {}}


@contextmanager
def clean_process() -> Iterator[None]:
    """Run a block without W&B, launcher or site variables and Accelerate's global state, then restore them."""
    handlers = {number: signal.getsignal(number) for number in preemption.SIGNALS}
    environment = dict(os.environ)
    for name in environment:
        if name.startswith(OF_LAUNCHERS) or name in OF_A_SITE:
            del os.environ[name]
    os.environ["WANDB_MODE"] = "disabled"
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests run under nohup
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        yield
    finally:
        logging.getLogger("tinyimnet").handlers.clear()  # the handler of logs/rank_0.log in this process
        for number, handler in handlers.items():
            signal.signal(number, handler)
        AcceleratorState._reset_state(reset_partial_state=True)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)


def train_here(data_root: Path, run_dir: Path, **overrides: object) -> Path:
    """Train a small run until it finishes or is stopped, and return its folder."""
    with clean_process():
        assert train.main(small_run(data_root, run_dir, **overrides)) == 0
    return run_dir
