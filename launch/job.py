"""The job that submitit pickles: the arguments of train.py, and how a life of it ends.

It holds no state: every life finds its own in the run folder. That is what makes it right after a lost node too, where
Slurm starts the pickle of the submission again.
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


@dataclass
class TrainJob:
    """One run; called once on each process of each life.

    Attributes:
        arguments: of train.py.
    """

    arguments: list[str]

    def __call__(self) -> dict[str, Any]:
        """Train until the end, and return what DONE holds, or until asked to stop, and be requeued."""
        from launch.requeue import PATIENCE, decide, requeue, show_job
        from tinyimnet import commandline, distributed, slurm
        from tinyimnet.errors import LostProcess

        environment = submitit.JobEnvironment()
        # submitit's own, which starts a job of its local cluster again. The training takes the signal over.
        again = signal.getsignal(environment._usr_sig())
        exit_code = 1
        # Ahead of the interpreter's own end, which can hang in gloo's threads (distributed.leave).
        atexit.register(lambda: distributed.leave(exit_code))
        if environment.cluster != "slurm" and environment.num_tasks > 1:
            helper = submitit.helpers.TorchDistributedEnvironment()
            helper.export(set_cuda_visible_devices=False, overwrite=True)
        import train

        lost: LostProcess | None = None
        try:
            train.main(self.arguments)
        except LostProcess as error:
            print(lost := error, flush=True)
        run = commandline.load(self.arguments).run
        verdict = decide(run, int(bool(lost)), show_job(slurm.job_name()), os.environ)
        print(f"job {environment.job_id}: {verdict.sentence}", flush=True)
        if verdict.requeue and environment.cluster != "debug":  # which has no other life
            # After a loss rank 0 may be what was lost: then each of the others asks, and the first one is heard.
            if environment.cluster == "slurm" and (environment.global_rank == 0 or lost):
                requeue(slurm.job_name())
            elif environment.global_rank == 0 and callable(again):
                again(signal.SIGUSR2, None)
            time.sleep(2 * PATIENCE)  # the requeue ends all of them
        if verdict.exit_code:
            raise RuntimeError(verdict.sentence) from lost
        exit_code = 0
        done = Path(run.dir) / "DONE"
        return json.loads(done.read_text()) if done.exists() else {}

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What submitit starts in the next life: the same."""
        return submitit.helpers.DelayedSubmission(self)
