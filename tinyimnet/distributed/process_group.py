"""The process group: start, size check, broadcasts from rank 0, shutdown."""

import gc
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from tinyimnet.config import TrainConfig
from tinyimnet.distributed import cpu
from tinyimnet.distributed.rendezvous import Rendezvous
from tinyimnet.errors import LostProcess, UserError, one_line, paths_named

logger = logging.getLogger(__name__)

T = TypeVar("T")
NETWORK = "the network interface between the nodes (GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME in slurm/site.env)"
DDP: dict[str, Any] = {
    "broadcast_buffers": False,  # each rank keeps its own BatchNorm statistics; evaluation/evaluator.py averages them
    "gradient_as_bucket_view": True,
    # All gradients in one bucket, exchanged at once. torch splits those of a million parameters in two.
    "bucket_cap_mb": 64,
}
PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def start(config: TrainConfig, rendezvous: Rendezvous) -> Accelerator:
    """Form the process group of the processes in the rendezvous.

    Raises:
        UserError: the group cannot form, or its size is not the launcher's WORLD_SIZE.
    """
    cpu.share_cores(rendezvous.core_sharers)
    if not torch.cuda.is_available():
        cpu.keep_freed_memory()
    # Bit-identical resume: no kernels whose summation order varies between calls (cuDNN's default for some).
    torch.backends.cudnn.deterministic = True
    # Its replacement still copies rank 0's buffers at the start, and for that case the warning itself says to keep
    # broadcast_buffers=False.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
    timeout = timedelta(seconds=config.timeout)
    try:
        if rendezvous.store:
            torch.distributed.init_process_group(
                "nccl" if torch.cuda.is_available() else "gloo",
                store=rendezvous.store,
                rank=rendezvous.rank,
                world_size=rendezvous.world_size,
                timeout=timeout,
            )
        accelerator = Accelerator(
            # Without this, processes on a machine without GPUs form no group and each trains alone.
            cpu=not torch.cuda.is_available(),
            mixed_precision=PRECISION[config.precision],
            kwargs_handlers=[DistributedDataParallelKwargs(**DDP)],
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the process group could not form ({one_line(error)}); check MASTER_ADDR, MASTER_PORT and {NETWORK}, and "
            f"that all {os.environ.get('WORLD_SIZE')} processes have started.",
            every_rank=True,
        ) from error
    check_world(accelerator.num_processes, os.environ)
    if accelerator.is_main_process and config.precision == "bf16" and _is_slow_in_bf16(accelerator.device):
        logger.warning(
            "train.precision is bf16, but this device is faster in fp32; use --train.precision fp32 for the same "
            "recipe, or fp16 on older GPUs."
        )
    return accelerator


def _is_slow_in_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return not torch.cuda.is_bf16_supported(including_emulation=False)
    return cpu.quicker_precision() == "fp32"


def from_main(accelerator: Accelerator, make: Callable[[], T]) -> T:
    """Run `make` on rank 0 and return its result on every rank; all ranks call it.

    A file that each rank reads itself can differ between nodes while a network file system caches it.

    Raises:
        UserError: `make` raised it on rank 0; raised on every rank.
    """
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            with paths_named():
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
    """Convert errors that only report a lost process to LostProcess; other errors pass through.

    Raises:
        LostProcess: a collective operation failed.
    """
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        # gloo raises plain RuntimeErrors that begin with its source file and line.
        if not isinstance(error, torch.distributed.DistError) and "gloo" not in reason:
            raise
        # NCCL puts the cause after "Last error:".
        reason = reason.rpartition("Last error: ")[2] if "Last error: " in reason else reason.partition(". ")[0]
        reason = re.sub(r"^\[\S+\] ", "", reason)[:200]
        raise LostProcess(
            f"another process of the group is gone or stuck ({reason}); see logs/rank_*.log of the run folder for the "
            "first failure, and the launcher's output for a killed process."
        ) from error


def exit_process(exit_code: int) -> NoReturn:
    """End this process without the interpreter's own shutdown, which can replace the exit code.

    During shutdown gloo's threads hang or abort (pytorch #190489), a second signal meets the default handlers, and
    output that a full disk or a closed pipe does not accept turns into exit code 120.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(exit_code)


def check_world(num_processes: int, environ: MutableMapping[str, str]) -> None:
    """Reject a process group whose size differs from the launcher's WORLD_SIZE."""
    expected = int(environ.get("WORLD_SIZE", "1"))
    if num_processes != expected:
        raise UserError(
            f"WORLD_SIZE is {expected} but the process group has size {num_processes}, so the processes would train "
            "independently; start them with accelerate launch --multi_gpu, torchrun or srun."
        )


def close(accelerator: Accelerator) -> None:
    """Leave the process group; the caller has dropped its references to the model and the optimizer.

    If DDP's reducer is still alive at exit, gloo of torch 2.13 aborts in 25-50 % of runs ("terminate called without an
    active exception", pytorch #190489), so everything is freed before the group is destroyed.
    """
    accelerator.free_memory()
    gc.collect()
    accelerator.end_training()
