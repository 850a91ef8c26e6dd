"""The folder of a submission, and the ways to start its jobs: sbatch, or processes on this machine."""

import io
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path

import submitit
from submitit.core.utils import FailedJobError

from tinyimnet.config import Config
from tinyimnet.errors import UserError
from tinyimnet.launch.job import TrainJob
from tinyimnet.launch.runs import call
from tinyimnet.run.folder import record_job, writable

POLL = 0.5  # seconds between looks at the processes on this machine


def folder_of(runs: Sequence[Config]) -> Path:
    """Folder for code, configurations and logs: in the run folder, or beside the run folders of an array.

    Any folder of the array may be deleted, also while its other elements run.
    """
    name = f"submit-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"  # submissions in one second differ in the process
    if len(runs) == 1:
        return Path(runs[0].run.dir, name)
    return Path(os.path.commonpath([Path(config.run.dir).parent for config in runs]), name)


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Make a folder and its parents; remove what was made if nothing is submitted because of a user error.

    Raises:
        UserError: it cannot be written.
    """
    made = [parent for parent in folder.parents if not parent.exists()]
    try:
        with writable(folder.parent):
            folder.mkdir(parents=True)
            yield
    except UserError:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            for parent in made:
                parent.rmdir()
        raise


def arrays(runs: int, parallel: int) -> list[slice]:
    """The runs of each Slurm array; says so if there are several, because the cluster's MaxArraySize is smaller.

    Args:
        runs: number of runs.
        parallel: jobs of an array that run at the same time.
    """
    largest = (_max_array_size() if runs > 1 else 0) or runs
    parts = [slice(start, start + largest) for start in range(0, runs, largest)]
    if len(parts) > 1:  # not on stdout, which is the script in a dry run
        print(
            f"{runs:,} runs in {len(parts):,} arrays, because MaxArraySize of this cluster is {largest}; "
            f"of each array {parallel} run at the same time",
            file=sys.stderr,
        )
    return parts


def _max_array_size() -> int:
    """Elements that the cluster allows in an array, whose largest index is one less; 0 if Slurm does not say."""
    with suppress(UserError, UnicodeDecodeError):
        if found := re.search(r"^MaxArraySize\s*=\s*([0-9]+)\s*$", call("scontrol", "show", "config"), re.MULTILINE):
            return int(found[1])
    return 0


def send(batches: Sequence[tuple[submitit.AutoExecutor, Sequence[TrainJob]]]) -> list[submitit.Job]:
    """Submit all jobs to Slurm or none: those of each batch as an array, or as a single job.

    Raises:
        UserError: sbatch failed; the sentence has its reason.
    """
    sent: list[submitit.Job] = []
    try:
        with redirect_stderr(io.StringIO()):  # submitit prints what it raises
            for executor, jobs in batches:
                sent += executor.submit_array(jobs)
        return sent
    except FailedJobError as error:
        lines = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in str(error).splitlines()]
        left = _take_back(sent)
        raise UserError(
            f"{'not all' if left else 'nothing'} was submitted, because sbatch failed "
            f"({'; '.join(lines).rstrip('.')}); change the profile, the options or slurm/site.env, or retry when Slurm "
            f"responds{f', but first: {left}' if left else ''}."
        ) from None


def _take_back(sent: Sequence[submitit.Job]) -> str:
    """Cancel jobs; returns the command that failed, or ""."""
    if not sent:
        return ""
    command = ["scancel", *dict.fromkeys(job.job_id.partition("_")[0] for job in sent)]
    try:
        call(*command)
        return ""
    except UserError:
        return " ".join(command)


def start_here(executor: submitit.AutoExecutor, jobs: Sequence[TrainJob], parallel: int) -> Iterator[submitit.Job]:
    """Run jobs on this machine, at most `parallel` at a time; yields each when it starts, and waits for the last.

    Raises:
        Exception: the error of the first job that failed, when all have ended.
    """
    started: list[submitit.Job] = []
    for job in jobs:
        while sum(not each.done() for each in started) >= parallel:
            time.sleep(POLL)
        started.append(executor.submit(job))
        yield started[-1]
    for each in started:
        each.wait()
    for each in started:
        each.results()


def record(config: Config, cluster: str, job: submitit.Job) -> None:
    """Print the job of a run and write job.json, which also has the earlier Slurm jobs: they may still be queued.

    Raises:
        UserError: the run folder cannot be written.
    """
    run_dir = Path(config.run.dir)
    print(f"{run_dir}: job {job.job_id}", flush=True)
    record_job(run_dir, job.job_id, cluster, str(job.paths.stdout))
