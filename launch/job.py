"""The job that submitit pickles: the arguments of train.py, and how an attempt of it ends.

It holds no state: every attempt finds its own in the run folder. That is what makes it right after a lost node too, where
Slurm starts the pickle of the submission again. Whether there is another attempt, launch.requeue decides in the batch script.
"""

import atexit
import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit

from tinyimnet.config import RunConfig


@dataclass
class TrainJob:
    """One run; called once on each process of each attempt.

    Attributes:
        arguments: of train.py.
    """

    arguments: list[str]

    def __call__(self) -> dict[str, Any]:
        """Train until the end, and return what DONE holds, or until asked to stop."""
        from tinyimnet import config_cli, train
        from tinyimnet.distributed import process_group
        from tinyimnet.errors import USER_ERROR, UserError

        environment = submitit.JobEnvironment()
        # submitit's own, which starts a job of its local cluster again. The training takes the signal over.
        again = signal.getsignal(environment._usr_sig())
        exit_code = 1
        # Ahead of the interpreter's own end, which can hang in gloo's threads (process_group.exit_process).
        atexit.register(lambda: process_group.exit_process(exit_code))
        if environment.cluster != "slurm" and environment.num_tasks > 1:
            helper = submitit.helpers.TorchDistributedEnvironment()
            helper.export(set_cuda_visible_devices=False, overwrite=True)
        try:
            train.main(self.arguments)
        except UserError:
            exit_code = USER_ERROR
            raise
        run = config_cli.load(self.arguments).run
        if environment.cluster == "local":
            come_back(run, environment, again)
        exit_code = 0
        done = Path(run.dir) / "DONE"
        return json.loads(done.read_text()) if done.exists() else {}

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What submitit starts in the next attempt: the same."""
        return submitit.helpers.DelayedSubmission(self)


def come_back(run: RunConfig, environment: submitit.JobEnvironment, again: Any) -> None:
    """On submitit's local cluster: end all processes and start them again where the run was stopped as by a scheduler.

    Raises:
        RuntimeError: it was, and is not to be started again.
    """
    from launch.requeue import PATIENCE, decide

    verdict = decide(run, 0, {}, os.environ)
    print(f"job {environment.job_id}: {verdict.sentence}", flush=True)
    if verdict.requeue:
        if environment.global_rank == 0:
            again(signal.SIGUSR2, None)
        time.sleep(2 * PATIENCE)  # it ends all of them
    if verdict.exit_code:
        raise RuntimeError(verdict.sentence)
