"""What started this process: python, accelerate launch, torchrun or srun, and the rank that it gave.

Each of them can silently start N independent trainings instead of one of N processes; `check_launcher` refuses those that
the environment shows, and process_group.check_world the others.
"""

import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from tinyimnet.distributed import slurm
from tinyimnet.errors import UserError

_START = "start the processes with accelerate launch --multi_gpu, torchrun or srun, or unset RANK."
# torchrun, accelerate launch, srun, submitit on one machine, wandb agent.
SET_BY_LAUNCHERS = (
    "TORCHELASTIC_RUN_ID",
    "ACCELERATE_MIXED_PRECISION",
    "SLURM_PROCID",
    "SUBMITIT_LOCAL_LOCALID",
    "WANDB_SWEEP_ID",
)


def map_environment(environ: MutableMapping[str, str] = os.environ) -> None:
    """Give the tasks of an `srun` step the variables of torchrun; a launcher that set RANK has done it already.

    Raises:
        UserError: a variable is missing or has no possible value.
    """
    check_launcher(environ)
    if "RANK" in environ:
        check_variables(environ)
        return
    # SLURM_NTASKS is the job's where an interactive step of it preserves its environment: salloc -n 4, then python train.py.
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
    # Below the ephemeral ports (from 32768), another one for each job and for each requeue of it. Jobs with ids in a
    # row, as in an array, share nodes: a requeue may not take the port of the next.
    job = int(environ["SLURM_JOB_ID"]) + 7919 * slurm.restarts(environ)
    environ.setdefault("MASTER_PORT", str(10000 + job % 20000))


def check_variables(environ: Mapping[str, str]) -> None:
    """Refuse a half-set env:// environment, which would wait for ever or train alone."""
    numbers = {}
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT"):
        value = environ.get(name, "0" if environ.get("WORLD_SIZE") == "1" else "")
        if not value.isdigit():
            raise UserError(f"{name} is {value!r} and must be a number where RANK is set; {_START}", every_rank=True)
        numbers[name] = int(value)
    if not numbers["RANK"] < numbers["WORLD_SIZE"] or numbers["MASTER_PORT"] > 65535:
        raise UserError(
            f"RANK is {environ['RANK']}, WORLD_SIZE {environ['WORLD_SIZE']} and MASTER_PORT "
            f"{environ.get('MASTER_PORT')}, which is impossible; {_START}",
            every_rank=True,
        )
    if numbers["WORLD_SIZE"] > 1 and not environ.get("MASTER_ADDR"):
        raise UserError(f"MASTER_ADDR is not set and WORLD_SIZE is {environ['WORLD_SIZE']}; {_START}", every_rank=True)


def launcher_environment() -> dict[str, str]:
    """The environment that the parent process was started with; empty where /proc does not tell (not Linux)."""
    try:
        entries = Path(f"/proc/{os.getppid()}/environ").read_text(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def launcher_command() -> list[str]:
    """The command line of the parent process; empty where /proc does not tell."""
    try:
        return Path(f"/proc/{os.getppid()}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return []


def launcher_pid(environ: Mapping[str, str] = os.environ) -> int:
    """The parent process, where it is a launcher that ends its workers; 0: it is a shell, which may leave them behind.

    A launcher has given this process a variable that it does not have itself. A shell within a step of srun has it, too.
    """
    given = environ.keys() - launcher_environment().keys()
    return os.getppid() if given.intersection(SET_BY_LAUNCHERS) else 0


def check_launcher(environ: MutableMapping[str, str]) -> None:
    """Refuse a launch that asked for several processes and started one, or one group for each node."""
    several = environ.get("MASTER_ADDR") and "ACCELERATE_MIXED_PRECISION" in environ and "RANK" not in environ
    if several and "MASTER_ADDR" not in launcher_environment():
        raise UserError(
            "accelerate launch was asked for several processes and started one; "
            "use `accelerate launch --multi_gpu --num_processes N` (on CPUs too) or torchrun --nproc_per_node N."
        )
    agents, launchers = environ.get("GROUP_WORLD_SIZE"), environ.get("SLURM_STEP_NUM_TASKS")
    if agents and launchers and int(launchers) > 1 and agents != launchers:
        raise UserError(
            f"srun started {launchers} launchers and this group has {agents}: each would train alone; "
            "give every launcher --num_machines, --machine_rank and --main_process_ip."
        )
