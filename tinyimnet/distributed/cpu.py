"""The CPU of a process: its cores, its memory, its name."""

import ctypes
import os
import platform
import re
from contextlib import suppress
from pathlib import Path

import torch

from tinyimnet.distributed.launcher import launcher_command, launcher_environment

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of glibc


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


def cpu_name() -> str:
    """Model of the CPU and the instructions that torch's kernels use: 'AMD EPYC 9575F 64-Core Processor, AVX512'."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):  # not Linux
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), name)
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"
