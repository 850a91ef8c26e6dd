#!/usr/bin/env python3
"""Train a network of at most 1,000,000 parameters on Tiny ImageNet; the same command starts, resumes or finds it done.

accelerate launch train.py                                   configs/tiny1m.yaml
accelerate launch train.py --config configs/smoke.yaml       no data needed, minutes on a laptop
python train.py --config configs/tiny1m.yaml --optim.lr 0.3 --run.dir runs/lr03
"""

import logging
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

from tinyimnet import commandline, config, data, distributed, errors, prepare, report, runfolder, tracking
from tinyimnet.engine import Trainer
from tinyimnet.preemption import StopRequest

PREPARE_PATIENCE = 3600  # seconds that other processes wait for rank 0 to download and decode


def main(argv: list[str]) -> int:
    """Run the training that `argv` asks for; the exit code is 0 when it is finished or was stopped and saved."""
    settings = commandline.load(argv)
    distributed.map_environment()
    is_main = int(os.environ.get("RANK", "0")) == 0
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    run_dir = runfolder.find_run(settings)
    if runfolder.is_done(run_dir):
        if is_main:
            report.show(run_dir)
        return 0
    dataset = ready_dataset(settings.data, is_main)
    accelerator = distributed.start(settings.train)
    stop = StopRequest(run_dir)
    stop.install()
    trainer = Trainer(settings, accelerator, dataset, run_dir, stop)
    if is_main:  # only now: a start that was refused leaves nothing behind
        runfolder.open_run(run_dir, settings)
        report.started(run_dir, trainer)
    tracker = tracking.Tracker(run_dir, settings.tracking, facts(settings, accelerator), enabled=is_main)
    exit_code = 1
    try:
        reason = trainer.fit(tracker)
        results = {} if reason else trainer.finish()
        exit_code = 0
    finally:
        tracker.close(exit_code)
    if is_main and reason:
        report.stopped(run_dir, reason, trainer.step)
    elif is_main:
        report.finished(run_dir, results)
    del trainer  # the DDP model has to be gone before the process group is
    distributed.close(accelerator)
    return 0


def ready_dataset(settings: config.DataConfig, is_main: bool) -> data.Dataset:
    """Open the data set; where it is not prepared yet, rank 0 makes it first and the others wait."""
    root = Path(settings.root)
    if is_main and not data.is_prepared(root):
        prepare.prepare_missing(root, settings.source)
    deadline = time.monotonic() + PREPARE_PATIENCE
    while not data.is_prepared(root):
        if time.monotonic() > deadline:
            raise errors.UserError(
                f"data.root {root} did not appear on this node within {PREPARE_PATIENCE} s; "
                "put it on a shared file system or prepare it on every node.",
                every_rank=True,
            )
        time.sleep(1)
    return data.open_dataset(root, verify=is_main)


def facts(settings: config.Config, accelerator: distributed.Accelerator) -> dict:
    """What is worth knowing about a run besides its metrics."""
    return {
        **asdict(settings),
        "git_commit": tracking.git_commit(),
        "world_size": accelerator.num_processes,
        "device": str(accelerator.device),
    }


if __name__ == "__main__":
    sys.exit(errors.run(main, sys.argv[1:]))
