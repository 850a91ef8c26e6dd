"""The process group: rank environment from any launcher, before `Accelerator()`; a world-size check; a clean end.

`python`, `accelerate launch`, `torchrun` and `srun` start the same train.py. Each of them can silently start N
independent trainings instead of one of N processes; `check_world` refuses that.
"""

import ctypes
import gc
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from tinyimnet import slurm
from tinyimnet.config import TrainConfig
from tinyimnet.errors import LostProcess, UserError, one_line
from tinyimnet.meeting import Meeting

logger = logging.getLogger(__name__)
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of glibc

T = TypeVar("T")
NETWORK = "the network interface between the nodes (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME in slurm/site.env)"
_START = "start the processes with accelerate launch --multi_gpu, torchrun or srun, or unset RANK."
# torchrun, accelerate launch, srun, submitit on one machine, wandb agent.
SET_BY_LAUNCHERS = (
    "RANK",
    "ACCELERATE_MIXED_PRECISION",
    "SLURM_PROCID",
    "SUBMITIT_LOCAL_LOCALID",
    "WANDB_SWEEP_ID",
)
PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


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
            raise UserError(
                f"{name} is {value!r} and must be a number where RANK is set; {_START}", every_rank=True
            )
        numbers[name] = int(value)
    if not numbers["RANK"] < numbers["WORLD_SIZE"] or numbers["MASTER_PORT"] > 65535:
        raise UserError(
            f"RANK is {environ['RANK']}, WORLD_SIZE {environ['WORLD_SIZE']} and MASTER_PORT "
            f"{environ.get('MASTER_PORT')}, which is impossible; {_START}",
            every_rank=True,
        )
    if numbers["WORLD_SIZE"] > 1 and not environ.get("MASTER_ADDR"):
        raise UserError(
            f"MASTER_ADDR is not set and WORLD_SIZE is {environ['WORLD_SIZE']}; {_START}", every_rank=True
        )


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


def share_cores(sharers: int) -> None:
    """Use the cores of this process, shared out among those that have the same ones, unless the user set a number.

    Under srun each process may have cores of its own, under other launchers all have those of the node.

    `accelerate launch` sets OMP_NUM_THREADS=1 where nobody did, for a single process too: one core of 2 or of 16. What
    the user set is told from that by the environment and the command line of the launcher.
    """
    threads = os.environ.get("OMP_NUM_THREADS")
    by_launcher = threads == "1" and {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"} & os.environ.keys()
    flag = any(re.match(r"--num[_-]cpu[_-]threads", argument) for argument in launcher_command())
    if threads and (not by_launcher or flag or "OMP_NUM_THREADS" in launcher_environment()):
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cores // sharers)
    # Accelerate counts the cores itself where this is missing.
    os.environ["OMP_NUM_THREADS"] = str(share)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(share))  # torch starts 32 for each process
    torch.set_num_threads(share)


def keep_freed_memory() -> None:
    """Have glibc keep what tensors give back instead of handing it to the kernel, which clears every page once more.

    Activations of 33 MB and more were mapped anew in every operation: 8 % of the processor time of a step was the kernel's,
    and the sprint network trains 1.04 (40 px) to 1.13 times as fast (64 px, 2 cores, AVX2) at the same peak memory.
    """
    with suppress(OSError, AttributeError):  # another C library knows no mallopt
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def start(config: TrainConfig, meeting: Meeting) -> Accelerator:
    """Join the process group of the processes that have met.

    Raises:
        UserError: the processes that started are not one group, or the group cannot form.
    """
    share_cores(meeting.core_sharers)
    if not torch.cuda.is_available():
        keep_freed_memory()
    # The same numbers after a restart: no kernels that add in another order each time (cuDNN's default for some).
    torch.backends.cudnn.deterministic = True
    # Its replacement would copy rank 0's buffers at the start; torch itself says to stay with it for that.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
    timeout = timedelta(seconds=config.timeout)
    try:
        if meeting.store:
            torch.distributed.init_process_group(
                "nccl" if torch.cuda.is_available() else "gloo",
                store=meeting.store,
                rank=meeting.rank,
                world_size=meeting.world_size,
                timeout=timeout,
            )
        accelerator = Accelerator(
            # Without this, processes on a machine without GPUs form no group and each trains alone.
            cpu=not torch.cuda.is_available(),
            mixed_precision=PRECISION[config.precision],
            kwargs_handlers=[
                # Each rank keeps its own BatchNorm statistics; they are averaged where they are used (engine.py).
                DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            ],
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the process group could not form ({one_line(error)}); check MASTER_ADDR, MASTER_PORT, whether all "
            f"{os.environ.get('WORLD_SIZE')} processes have started, and {NETWORK}.",
            every_rank=True,
        ) from error
    check_world(accelerator.num_processes, os.environ)
    if accelerator.is_main_process and config.precision == "bf16" and _imitates_bf16(accelerator.device):
        logger.warning(
            "train.precision is bf16 and this device has no instructions for it: they are emulated, several times slower than "
            "fp32; --train.precision fp32 is the same recipe, fp16 one for older GPUs."
        )
    return accelerator


def _imitates_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return not torch.cuda.is_bf16_supported(including_emulation=False)
    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def from_main(accelerator: Accelerator, make: Callable[[], T]) -> T:
    """What `make` gives on rank 0, on every rank; all of them call it.

    A file that ranks read for themselves can differ between nodes for as long as a network file system caches it.

    Raises:
        UserError: `make` raised it on rank 0; then on every rank.
    """
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome = [make(), None]
        except UserError as error:
            outcome = [None, error]
    if accelerator.num_processes > 1:
        torch.distributed.broadcast_object_list(outcome, device=accelerator.device)
    if outcome[1]:
        raise outcome[1]
    return outcome[0]


@contextmanager
def lost_processes_named() -> Iterator[None]:
    """Tell an error of this process from one that only says that another process is gone.

    Raises:
        LostProcess: a collective operation failed.
    """
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        # gloo raises plain RuntimeErrors with its file and line in front.
        if not isinstance(error, torch.distributed.DistError) and "gloo" not in reason:
            raise
        # NCCL says what happened behind "Last error:".
        reason = (
            reason.rpartition("Last error: ")[2] if "Last error: " in reason else reason.partition(". ")[0]
        )
        reason = re.sub(r"^\[\S+\] ", "", reason)[:200]
        raise LostProcess(
            f"another process of the group is gone or stuck ({reason}); the first to fail says why in "
            "logs/rank_*.log of the run folder, and one that was killed is named by its launcher."
        ) from error


def leave(exit_code: int) -> NoReturn:
    """End this process with this exit code, without the interpreter's own end, which can lose it.

    There gloo's threads hang or abort (pytorch #190489), a second signal meets the default handlers again, and output
    that a full disk or a closed pipe does not take becomes exit code 120.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(exit_code)


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


def check_world(num_processes: int, environ: MutableMapping[str, str]) -> None:
    """Refuse a group that is not as large as the launcher said."""
    expected = int(environ.get("WORLD_SIZE", "1"))
    if num_processes != expected:
        raise UserError(
            f"WORLD_SIZE is {expected} and the process group has {num_processes}: the processes would train "
            "independently; start them with accelerate launch --multi_gpu, torchrun or srun."
        )


def close(accelerator: Accelerator) -> None:
    """Leave the process group; the caller has dropped its references to the model and the optimizer.

    With DDP's reducer alive, gloo of torch 2.13 aborts at exit in 25-50 % of the runs ("terminate called without an
    active exception", pytorch #190489), so everything goes before the group does.
    """
    accelerator.free_memory()
    gc.collect()
    accelerator.end_training()
