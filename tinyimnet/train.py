"""A whole run, top-down: configuration -> rendezvous -> data -> process group -> Trainer.fit -> results."""

import logging
from functools import partial
from pathlib import Path

from accelerate import Accelerator

from tinyimnet import config_cli, errors
from tinyimnet.config import Config
from tinyimnet.data.dataset import Dataset
from tinyimnet.data.loading import ready_dataset
from tinyimnet.distributed import launcher, preflight, process_group, slurm
from tinyimnet.distributed.preemption import StopRequest
from tinyimnet.distributed.preflight import RankInfo
from tinyimnet.distributed.process_group import from_main
from tinyimnet.distributed.rendezvous import Rendezvous
from tinyimnet.distributed.watchdog import Watchdog
from tinyimnet.run.attempt import find_run, lock_run, log_to, open_run, this_attempt
from tinyimnet.run.checkpoint import Saver
from tinyimnet.run.folder import is_done, writable
from tinyimnet.run.lock import RunLock
from tinyimnet.tracking.mode import wandb_mode
from tinyimnet.tracking.tracker import CHECK, Tracker, check_start
from tinyimnet.training import memory, outcome, run_info
from tinyimnet.training.trainer import Trainer


def main(argv: list[str], prog: str = "train.py") -> int:
    """Train as `argv` says; the exit code is 0 if the run finished, or stopped and saved."""
    with launcher.errors_of_every_node():
        config = config_cli.load(argv, prog)
        launcher.map_environment()
        stderr = logging.StreamHandler()
        stderr.setLevel(logging.WARNING)  # INFO goes to logs/rank_N.log only
        logging.basicConfig(handlers=[stderr], format="%(levelname)s: %(message)s")
        wandb_mode(config.tracking)  # an invalid WANDB_MODE is an error before anything is written
        run_dir = find_run(config)
    rendezvous = Rendezvous(config.train.timeout)
    with process_group.lost_processes_named():
        if finished_before(run_dir, config, rendezvous):
            return 0
        check_wandb = partial(check_start, config.tracking, run_dir) if rendezvous.is_main else lambda: None
        rendezvous.on_all_ranks("W&B", check_wandb, patience=2 * CHECK)
        ranks = preflight.check(rendezvous, config, run_dir)
        # A folder on the command line may be a typo: only that of the configuration file is created.
        dataset = ready_dataset(config.data, rendezvous, create=not config_cli.overrides("data.root", argv))
        memory.check(config, dataset, rendezvous)
        accelerator = process_group.start(config.train, rendezvous)
        preflight.measure(accelerator, ranks)
        fit(config, run_dir, dataset, accelerator, rendezvous, ranks)
    # `fit` has returned, so the DDP model is gone: it must not outlive the group.
    process_group.close(accelerator)
    return 0


def finished_before(run_dir: Path, config: Config, rendezvous: Rendezvous) -> bool:
    """Whether the run is finished, as rank 0 sees it; if so, print its results."""
    done = rendezvous.on_all_ranks("done", lambda: rendezvous.is_main and is_done(run_dir, config))
    if not rendezvous.gather("rank 0 is done", done)[0]:
        return False
    if rendezvous.is_main:
        outcome.show(run_dir)
    rendezvous.leave()  # rank 0 hosts the store and leaves last, when the others have the answer
    return True


def fit(
    config: Config,
    run_dir: Path,
    dataset: Dataset,
    accelerator: Accelerator,
    rendezvous: Rendezvous,
    ranks: list[RankInfo],
) -> None:
    """Train to the end, or until asked to stop, with the run folder locked."""
    rank, is_main = accelerator.process_index, accelerator.is_main_process
    stop = StopRequest(run_dir, slurm.end_of_job() - config.run.stop_before_end)
    stop.install()
    with RunLock(run_dir) as lock, Watchdog(rendezvous, stop) as watchdog:
        saved, number = from_main(accelerator, lambda: lock_run(run_dir, config, lock))
        mode = from_main(accelerator, lambda: wandb_mode(config.tracking))
        tracker = Tracker(run_dir, config.tracking, rank=rank, attempt=number)

        def before_save() -> None:
            lock.check()
            tracker.flush()

        saver = Saver(run_dir / "checkpoints", keep=config.run.keep_checkpoints, before=before_save)
        trainer = Trainer(config, accelerator, dataset, saved=saved, tracker=tracker, saver=saver, stop=stop)
        # Nothing in the folder has changed up to here.
        attempt = this_attempt(ranks, trainer.step, trainer.total_steps)
        from_main(accelerator, lambda: open_run(run_dir, config, attempt))
        log_to(run_dir, rank, accelerator.num_processes)
        exit_code, reason = 1, ""
        try:
            with writable(run_dir):
                if is_main:
                    outcome.started(run_dir, trainer)
                    run_info.write(run_dir, trainer, ranks)
                tracker.start(trainer.step, mode.name)
            trainer.page.update()  # of a run that resumes
            with memory.out_of_memory_named(config.train, accelerator.num_processes):
                reason = trainer.fit()
            with writable(run_dir):
                results = {} if reason else outcome.finish(run_dir, trainer)
                if is_main and reason:
                    outcome.stopped(run_dir, tracker, reason, trainer.step, attempt)
                elif is_main:
                    outcome.finished(run_dir, tracker, results)
            exit_code = 0
        except errors.UserError as error:
            exit_code = errors.USER_ERROR
            if is_main:  # before W&B, for which Slurm may not wait
                outcome.failed(run_dir, lock, error)
            raise
        finally:
            watchdog.leave(failed=exit_code != 0)
            saver.close()
            if is_main and (reason or exit_code):
                outcome.last_page(run_dir, lock, failed=exit_code != 0)
            tracker.close(exit_code, preempted=bool(reason))  # W&B's word for a run that stopped and can be resumed
