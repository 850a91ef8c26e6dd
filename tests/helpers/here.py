"""A training in the process of the tests, for fixtures that outlive one test."""

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
OF_A_SITE = ("RANK", "WORLD_SIZE", "RUNS_ROOT", "DATA_ROOT", "STAGE_TO")


@contextmanager
def clean_process() -> Iterator[None]:
    """Without W&B, the variables of a launcher or a site, and Accelerate's global state; what was there before is back after it."""
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
        logging.getLogger("tinyimnet").handlers.clear()  # logs/rank_0.log of a run in this process
        for number, handler in handlers.items():
            signal.signal(number, handler)
        AcceleratorState._reset_state(reset_partial_state=True)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)


def train_here(data_root: Path, run_dir: Path, **overrides: object) -> Path:
    """A small run to its end, or to where it is stopped; its folder."""
    with clean_process():
        assert train.main(small_run(data_root, run_dir, **overrides)) == 0
    return run_dir
