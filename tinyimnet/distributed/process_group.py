"""The process group: its start, a check of its size, what rank 0 tells the others, and its end."""

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
from tinyimnet.errors import LostProcess, UserError, one_line

logger = logging.getLogger(__name__)

T = TypeVar("T")
NETWORK = "the network interface between the nodes (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME in slurm/site.env)"
PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def start(config: TrainConfig, rendezvous: Rendezvous) -> Accelerator:
    """Join the process group of the processes that have met.

    Raises:
        UserError: the processes that started are not one group, or the group cannot form.
    """
    cpu.share_cores(rendezvous.core_sharers)
    if not torch.cuda.is_available():
        cpu.keep_freed_memory()
    # The same numbers after a restart: no kernels that add in another order each time (cuDNN's default for some).
    torch.backends.cudnn.deterministic = True
    # Its replacement would copy rank 0's buffers at the start; torch itself says to stay with it for that.
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
            kwargs_handlers=[
                # Each rank keeps its own BatchNorm statistics; they are averaged where they are used (evaluation/evaluator.py).
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
        reason = reason.rpartition("Last error: ")[2] if "Last error: " in reason else reason.partition(". ")[0]
        reason = re.sub(r"^\[\S+\] ", "", reason)[:200]
        raise LostProcess(
            f"another process of the group is gone or stuck ({reason}); the first to fail says why in "
            "logs/rank_*.log of the run folder, and one that was killed is named by its launcher."
        ) from error


def exit_process(exit_code: int) -> NoReturn:
    """End this process with this exit code, without the interpreter's own end, which can lose it.

    There gloo's threads hang or abort (pytorch #190489), a second signal meets the default handlers again, and output
    that a full disk or a closed pipe does not take becomes exit code 120.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(exit_code)


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
