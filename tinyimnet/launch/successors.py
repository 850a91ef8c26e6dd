"""Submit the successor of a job that Slurm does not requeue: the same job, to start after its end."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tinyimnet.distributed import slurm
from tinyimnet.errors import UserError
from tinyimnet.files import read_text, write_atomically
from tinyimnet.run.folder import trial_file

# sbatch options whose SBATCH_* variable has a different name.
VARIABLES = {"time": "TIMELIMIT", "mem": "MEM_PER_NODE", "array": "ARRAY_INX"}


def submit(script: Sequence[str], environ: Mapping[str, str], trial: Path | None = None) -> tuple[str, str]:
    """Submit the successor of this job; returns its id, and the file of its output, "" if unknown.

    Args:
        script: the batch script of this job, and its arguments; or the folder of `tinyimnet submit`.
        environ: the environment of this job, which the new one inherits.
        trial: the trial of this job, if it is an element of a sweep.

    Raises:
        UserError: sbatch failed, Slurm does not know with which options this job was submitted, or a file for the
            successor cannot be written.
    """
    if Path(script[0]).is_dir():
        return submit_again(Path(script[0]), environ)
    successor = sbatch(script, submitted_with(slurm.job_name(environ), script[0]), environ)
    if trial:
        hand_over(trial, trial_file(trial.parent, successor), successor)
    return successor, ""


def submit_again(folder: Path, environ: Mapping[str, str]) -> tuple[str, str]:
    """Submit the successor of a job of `tinyimnet submit`; returns the id of the new job, and the file of its output.

    Raises:
        UserError: sbatch failed, or the folder of the submission cannot be written.
    """
    from submitit.core.utils import JobPaths  # the Python that decides about other jobs may lack it

    def paths(job: str) -> JobPaths:
        return JobPaths(folder / "%j", job)

    job = slurm.job_name(environ)
    first = [*slurm.predecessors(environ), job][0].partition("_")[0]
    script = paths(first).submission_file  # with all options; submitit writes one for an array
    ignored = overridden(read_text(script))
    successor = sbatch([str(script)], [], {k: v for k, v in environ.items() if k not in ignored})
    hand_over(paths(job).submitted_pickle, paths(successor).submitted_pickle, successor)
    return successor, str(paths(successor).stdout)


def overridden(script: str) -> set[str]:
    """SBATCH_* variables of the options that a script sets.

    sbatch gives them priority over the script, but the profile of `tinyimnet submit` has priority over site.env.
    """
    options = re.findall(r"^#SBATCH --([a-z-]+)", script, re.MULTILINE)
    return {"SBATCH_" + VARIABLES.get(option, option.upper().replace("-", "_")) for option in options}


def hand_over(file: Path, to: Path, successor: str) -> None:
    """Copy a file of this job to the name where its successor looks for it.

    It is there in time: the successor depends on the end of this job, which is still running.

    Raises:
        UserError: it cannot be written; the successor is cancelled.
    """
    try:
        to.parent.mkdir(exist_ok=True)
        write_atomically(to, file.read_bytes())
    except OSError as error:
        slurm.patiently("scancel", successor)
        raise UserError(
            f"the successor is cancelled, because {to} cannot be written ({error.strerror}); the run is saved: submit "
            "it again to resume."
        ) from None


def sbatch(script: Sequence[str], options: Sequence[str], environ: Mapping[str, str]) -> str:
    """Submit this job again, to start after its end, and return the id of the new job.

    Args:
        script: the batch script of this job, and its arguments.
        options: options of sbatch, in addition to those in the script.
        environ: the environment of this job, which the new one inherits.

    Raises:
        UserError: sbatch failed.
    """
    job, element = slurm.job_name(environ), environ.get("SLURM_ARRAY_TASK_ID")
    # Without Slurm's variables of this job, such as its end, which the new one would take for its own. With SBATCH_WAIT
    # sbatch would wait for the end of the new job.
    inherited = {name: value for name, value in environ.items() if not re.match("SLURM_(?!CONF$)|SBATCH_WAIT$", name)}
    inherited["PREDECESSORS"] = " ".join([*slurm.predecessors(environ), job])
    last = [f"--dependency=afterany:{job}", *([f"--array={element}"] if element else []), *script]
    done = slurm.patiently(
        "sbatch", *options, "--parsable", "--export=ALL", *last, env=inherited, cwd=environ["SLURM_SUBMIT_DIR"]
    )
    if done.returncode:
        raise UserError(
            f"the successor of job {job} was not submitted ({' '.join(done.stderr.split())}); the run is saved: submit "
            "it again to resume."
        )
    number = done.stdout.strip().partition(";")[0]  # ID;CLUSTER in a federation
    return f"{number}_{element}" if element else number


def submitted_with(job: str, script: str) -> list[str]:
    """The options of sbatch with which a job was submitted; Slurm's record joins them with spaces, without quotes.

    Raises:
        UserError: the accounting does not have them.
    """
    answer = slurm.patiently("sacct", "-n", "-P", "-X", "-o", "SubmitLine", "-j", job)
    words = answer.stdout.split()
    named = [i for i, word in enumerate(words) if Path(word).name == Path(script).name]
    if not named:
        raise UserError(
            f"the successor of job {job} was not submitted, because sacct does not know how this job was "
            f"({' '.join(answer.stderr.split()) or 'no SubmitLine'}); the run is saved: submit it again to resume."
        )
    return [word for word in words[1 : named[0]] if word not in ("--wait", "-W")]  # it would wait for its own end
