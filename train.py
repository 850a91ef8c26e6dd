#!/usr/bin/env python3
"""Train a network of at most 1,000,000 parameters on Tiny ImageNet; the same command starts, resumes or finds it done.

accelerate launch train.py                                   configs/tiny1m.yaml
accelerate launch train.py --config configs/smoke.yaml       no data needed, minutes on a laptop
python train.py --config configs/tiny1m.yaml --optim.lr 0.3 --run.dir runs/lr03
"""

import logging
import os
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

from tinyimnet import commandline, config, data, distributed, errors, prepare, report, runfolder, tracking
from tinyimnet.checkpoint import Saver
from tinyimnet.engine import Trainer
from tinyimnet.lock import RunLock
from tinyimnet.preemption import StopRequest, job_deadline


def main(argv: list[str]) -> int:
    """Run the training that `argv` asks for; the exit code is 0 when it is finished or was stopped and saved."""
    settings = commandline.load(argv)
    distributed.map_environment()
    is_main = int(os.environ.get("RANK", "0")) == 0
    console = logging.StreamHandler()
    console.setLevel(logging.WARNING)  # what is below goes to the log of the rank alone
    logging.basicConfig(handlers=[console], format="%(levelname)s: %(message)s")
    run_dir = runfolder.find_run(settings)
    if runfolder.is_done(run_dir, settings):
        if is_main:
            report.show(run_dir)
        return 0
    dataset = prepare.ready_dataset(settings.data, is_main)
    accelerator = distributed.start(settings.train)
    with distributed.lost_processes_named():
        fit(settings, run_dir, dataset, accelerator)
    # The DDP model went with the end of `fit`, as it has to before the group does.
    distributed.close(accelerator)
    return 0


def fit(
    settings: config.Config, run_dir: Path, dataset: data.Dataset, accelerator: distributed.Accelerator
) -> None:
    """Train until the end or until asked to stop, with the run folder locked."""
    is_main, from_main = accelerator.is_main_process, partial(distributed.from_main, accelerator)
    stop = StopRequest(run_dir, job_deadline(settings.run.stop_before_end))
    stop.install()
    trainer = Trainer(settings, accelerator, dataset, run_dir, stop)
    with RunLock(run_dir) as lock:
        if saved := from_main(lambda: runfolder.lock_run(run_dir, settings, lock)):
            trainer.state.restore(saved)
        # Until here nothing in the folder was changed.
        from_main(lambda: runfolder.open_run(run_dir, settings))
        runfolder.log_to(run_dir, accelerator.process_index, accelerator.num_processes)
        if is_main:
            report.started(run_dir, trainer)
        tracker = tracking.Tracker(run_dir, settings.tracking, facts(settings, accelerator), enabled=is_main)

        def before_save() -> None:
            lock.check()
            tracker.sync()

        saver = Saver(run_dir / "checkpoints", keep=settings.run.keep_checkpoints, before=before_save)
        exit_code = 1
        try:
            reason = trainer.fit(tracker, saver)
            with runfolder.writable(run_dir):
                results = {} if reason else trainer.finish()
                if is_main and reason:
                    report.stopped(run_dir, reason, trainer.step)
                elif is_main:
                    report.finished(run_dir, results)
            exit_code = 0
        finally:
            saver.close()
            tracker.close(exit_code)


def facts(settings: config.Config, accelerator: distributed.Accelerator) -> dict:
    """What is worth knowing about a run besides its metrics."""
    return {
        **asdict(settings),
        "git_commit": tracking.git_commit(),
        "world_size": accelerator.num_processes,
        "device": str(accelerator.device),
    }


if __name__ == "__main__":
    distributed.leave(errors.run(main, sys.argv[1:]))
