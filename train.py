#!/usr/bin/env python3
"""Train a network of at most 1,000,000 parameters on Tiny ImageNet; the same command starts and resumes a run.

accelerate launch train.py                                   # configs/tiny1m.yaml
accelerate launch train.py --config configs/smoke.yaml       # no data needed, minutes on a laptop
python train.py --config configs/tiny1m.yaml --optim.lr 0.3 --run.dir runs/lr03
"""

import logging
import sys
from functools import partial
from pathlib import Path

from accelerate import Accelerator

from tinyimnet import commandline, distributed, errors, facts, preflight, prepare, report, runfolder, slurm
from tinyimnet.checkpoint import Saver
from tinyimnet.config import Config
from tinyimnet.data import Dataset
from tinyimnet.engine import Trainer
from tinyimnet.lock import RunLock
from tinyimnet.meeting import Meeting
from tinyimnet.preemption import StopRequest, wants_requeue
from tinyimnet.tracking import Tracker, wandb_mode


def main(argv: list[str]) -> int:
    """Run the training that `argv` asks for; the exit code is 0 when it is finished or was stopped and saved."""
    settings = commandline.load(argv)
    distributed.map_environment()
    console = logging.StreamHandler()
    console.setLevel(logging.WARNING)  # INFO goes to logs/rank_N.log alone
    logging.basicConfig(handlers=[console], format="%(levelname)s: %(message)s")
    wandb_mode(settings.tracking)  # refuses a mistake while nothing is changed yet
    run_dir = runfolder.find_run(settings)
    meeting = Meeting(settings.train.timeout)
    with distributed.lost_processes_named():
        if meeting.from_main("done", lambda: runfolder.is_done(run_dir, settings)):
            if meeting.is_main:
                report.show(run_dir)
            meeting.part()  # rank 0 keeps the store: the others have the answer by then
            return 0
        found = preflight.check(meeting, settings, run_dir)
        dataset = prepare.ready_dataset(settings.data, meeting)
        accelerator = distributed.start(settings.train, meeting)
        preflight.measure(accelerator, found)
        fit(settings, run_dir, dataset, accelerator, found)
    # The DDP model went with the end of `fit`, as it has to before the group does.
    distributed.close(accelerator)
    return 0


def fit(
    settings: Config, run_dir: Path, dataset: Dataset, accelerator: Accelerator, found: list[preflight.Facts]
) -> None:
    """Train until the end or until asked to stop, with the run folder locked."""
    is_main, from_main = accelerator.is_main_process, partial(distributed.from_main, accelerator)
    stop = StopRequest(run_dir, slurm.end_of_job() - settings.run.stop_before_end)
    stop.install()
    trainer = Trainer(settings, accelerator, dataset, run_dir, stop)
    with RunLock(run_dir) as lock:
        trainer.begin(from_main(lambda: runfolder.lock_run(run_dir, settings, lock)))
        # Until here nothing in the folder was changed.
        life = runfolder.describe_life(found, trainer.step, trainer.total_steps)
        lives = from_main(lambda: runfolder.open_run(run_dir, settings, life))
        runfolder.log_to(run_dir, accelerator.process_index, accelerator.num_processes)
        if is_main:
            with runfolder.writable(run_dir):
                report.started(run_dir, trainer)
                facts.write(run_dir, trainer, found)
        tracker = Tracker(run_dir, settings.tracking, rank=accelerator.process_index, life=lives)

        def before_save() -> None:
            lock.check()
            tracker.sync()

        saver = Saver(run_dir / "checkpoints", keep=settings.run.keep_checkpoints, before=before_save)
        exit_code, reason = 1, ""
        try:
            reason = trainer.fit(tracker, saver)
            with runfolder.writable(run_dir):
                results = {} if reason else report.finish(run_dir, trainer)
                if is_main and reason:
                    report.stopped(run_dir, tracker, reason, trainer.step, life)
                elif is_main:
                    report.finished(run_dir, tracker, results)
            exit_code = 0
        except errors.UserError as error:
            exit_code = errors.USER_ERROR
            if is_main:  # ahead of W&B, for which Slurm may not wait
                report.mistaken(run_dir, lock, error)
            raise
        finally:
            saver.close()
            tracker.close(exit_code, preempted=bool(reason) and wants_requeue(reason))


if __name__ == "__main__":
    distributed.leave(errors.run(main, sys.argv[1:]))
