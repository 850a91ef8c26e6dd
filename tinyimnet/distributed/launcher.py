"""Detects what launched this process (python, accelerate launch, torchrun or srun) and the rank that it assigned.

Each launcher can silently start N independent trainings instead of one training of N processes. `check_launcher`
rejects the cases that the environment reveals, process_group.check_world the others.
"""

import os
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path

from tinyimnet import errors
from tinyimnet.distributed import slurm
from tinyimnet.errors import UserError

_START = "start the processes with accelerate launch --multi_gpu, torchrun or srun, or unset RANK."
# In order: torchrun, accelerate launch, srun, submitit on one machine, wandb agent.
SET_BY_LAUNCHERS = (
    "TORCHELASTIC_RUN_ID",
    "ACCELERATE_MIXED_PRECISION",
    "SLURM_PROCID",
    "SUBMITIT_LOCAL_LOCALID",
    "WANDB_SWEEP_ID",
)


def map_environment(environ: MutableMapping[str, str] = os.environ) -> None:
    """Set the variables of torchrun for the tasks of an `srun` step; a no-op if a launcher has set RANK.

    Raises:
        UserError: a variable is missing or has an invalid value.
    """
    check_launcher(environ)
    if "RANK" in environ:
        check_variables(environ)
        return
    # SLURM_NTASKS is the job's value in an interactive step that preserves the job's environment (salloc -n 4, then
    # python train.py).
    world_size = environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS", "1")
    if "SLURM_STEP_ID" not in environ or int(world_size) <= 1:
        return
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "")
    tasks = environ.get("SLURM_STEP_TASKS_PER_NODE", "1")
    environ["RANK"] = environ["SLURM_PROCID"]
    environ["WORLD_SIZE"] = world_size
    environ["LOCAL_RANK"] = environ["SLURM_LOCALID"]
    environ["LOCAL_WORLD_SIZE"] = str(slurm.tasks_on_node(tasks, int(environ.get("SLURM_NODEID", "0"))))
    environ.setdefault("MASTER_ADDR", slurm.first_host(nodes))
    # Below the ephemeral ports (from 32768) and different for each job and each of its requeues. Jobs with consecutive
    # ids, as in an array, share nodes, so a requeue must not take the port of the next job.
    job = int(environ["SLURM_JOB_ID"]) + 7919 * slurm.restarts(environ)
    environ.setdefault("MASTER_PORT", str(10000 + job % 20000))


@contextmanager
def errors_of_every_node() -> Iterator[None]:
    """Before the processes meet, print errors on the first process of each node: files differ between nodes."""
    try:
        yield
    except UserError as error:
        rank, local = errors.rank_of_process(), os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID")
        error.every_rank = error.every_rank or (local == "0" and rank != "0")
        raise


def check_variables(environ: Mapping[str, str]) -> None:
    """Reject an incomplete env:// environment, which would wait forever or train alone."""
    numbers = {}
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT"):
        value = environ.get(name, "0" if environ.get("WORLD_SIZE") == "1" else "")
        if not value.isdigit():
            raise UserError(f"{name} is {value!r} and must be a number when RANK is set; {_START}", every_rank=True)
        numbers[name] = int(value)
    if not numbers["RANK"] < numbers["WORLD_SIZE"] or numbers["MASTER_PORT"] > 65535:
        raise UserError(
            f"RANK is {environ['RANK']}, WORLD_SIZE {environ['WORLD_SIZE']} and MASTER_PORT "
            f"{environ.get('MASTER_PORT')}, but RANK must be below WORLD_SIZE and MASTER_PORT at most 65535; {_START}",
            every_rank=True,
        )
    if numbers["WORLD_SIZE"] > 1 and not environ.get("MASTER_ADDR"):
        raise UserError(f"MASTER_ADDR is not set but WORLD_SIZE is {environ['WORLD_SIZE']}; {_START}", every_rank=True)


def launcher_environment() -> dict[str, str]:
    """Environment that the parent process was started with; empty without /proc (not Linux)."""
    try:
        entries = Path(f"/proc/{os.getppid()}/environ").read_text(encoding="utf-8", errors="replace").split("\0")
    except OSError:
        return {}
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def launcher_command() -> list[str]:
    """Command line of the parent process; empty without /proc."""
    try:
        return Path(f"/proc/{os.getppid()}/cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
    except OSError:
        return []


def launcher_pid(environ: Mapping[str, str] = os.environ) -> int:
    """PID of the parent if it is a launcher, which ends its workers; 0 for a shell, which may leave them behind.

    A launcher gives this process a variable that it does not have itself. A shell inside an srun step has the variable
    too.
    """
    given = environ.keys() - launcher_environment().keys()
    return os.getppid() if given.intersection(SET_BY_LAUNCHERS) else 0


def check_launcher(environ: MutableMapping[str, str]) -> None:
    """Reject a launch that asked for several processes but started one, or started one group on each node."""
    several = environ.get("MASTER_ADDR") and "ACCELERATE_MIXED_PRECISION" in environ and "RANK" not in environ
    if several and "MASTER_ADDR" not in launcher_environment():
        raise UserError(
            "accelerate launch was asked for several processes but started one; "
            "use `accelerate launch --multi_gpu --num_processes N` (on CPUs too) or torchrun --nproc_per_node N."
        )
    agents, launchers = environ.get("GROUP_WORLD_SIZE"), environ.get("SLURM_STEP_NUM_TASKS")
    if agents and launchers and int(launchers) > 1 and agents != launchers:
        raise UserError(
            f"srun started {launchers} launchers but this group has {agents}, so each would train alone; "
            "give every launcher --num_machines, --machine_rank and --main_process_ip."
        )
