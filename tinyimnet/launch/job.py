"""The job that submitit pickles: arguments of train.py, and how an attempt ends.

The job holds no state: every attempt reads its state from the run folder. This also works after a lost node, when
Slurm restarts the original pickle. In the batch script, launch.requeue decides whether there is another attempt.
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

from tinyimnet import errors
from tinyimnet.config import RunConfig


@dataclass
class TrainJob:
    """One run, called once on each process of each attempt.

    Attributes:
        arguments: arguments of train.py.
    """

    arguments: list[str]

    def __call__(self) -> dict[str, Any]:
        """Train until the end or a stop request; returns the contents of DONE, {} before the end."""
        errors.exit_on_sigterm()
        from tinyimnet import config_cli, streams, train
        from tinyimnet.distributed import process_group
        from tinyimnet.files import read_text

        streams.prepare()
        environment = submitit.JobEnvironment()
        # submitit's handler, which restarts a job of its local cluster. The training replaces it.
        again = signal.getsignal(environment._usr_sig())
        exit_code = 1
        # Runs before the interpreter shuts down, which can hang in gloo's threads (process_group.exit_process).
        atexit.register(lambda: process_group.exit_process(exit_code))
        if environment.cluster != "slurm" and environment.num_tasks > 1:
            helper = submitit.helpers.TorchDistributedEnvironment()
            helper.export(set_cuda_visible_devices=False, overwrite=True)
        try:
            train.main(self.arguments)
        except errors.UserError:
            exit_code = errors.USER_ERROR
            raise
        run = config_cli.load(self.arguments).run
        if environment.cluster == "local":
            come_back(run, environment, again)
        exit_code = 0
        done = Path(run.dir) / "DONE"
        return json.loads(read_text(done)) if done.exists() else {}

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """The job that submitit starts in the next attempt: this one, unchanged."""
        return submitit.helpers.DelayedSubmission(self)


def come_back(run: RunConfig, environment: submitit.JobEnvironment, again: Any) -> None:
    """Restart all processes on submitit's local cluster if a scheduler's signal stopped the run.

    Raises:
        RuntimeError: such a signal stopped the run, but it must not restart.
    """
    from tinyimnet.distributed.slurm import PATIENCE
    from tinyimnet.launch.requeue import decide

    verdict = decide(run, 0, {}, os.environ)
    print(f"job {environment.job_id}: {verdict.sentence}", flush=True)
    if verdict.requeue:
        if environment.global_rank == 0:
            again(signal.SIGUSR2, None)
        time.sleep(2 * PATIENCE)  # the handler ends all processes meanwhile
    if verdict.exit_code:
        raise RuntimeError(verdict.sentence)
