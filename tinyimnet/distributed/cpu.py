"""The CPU cores of a process, its memory, and the name of the CPU."""

import ctypes
import os
import platform
import re
import time
from contextlib import suppress
from pathlib import Path

import torch
import torch.nn.functional as F

from tinyimnet.distributed.launcher import launcher_command, launcher_environment
from tinyimnet.files import read_text

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from glibc's malloc.h


def share_cores(sharers: int) -> None:
    """Divide the cores of this process among the processes that share them, unless the user set OMP_NUM_THREADS.

    Under srun each process may have its own cores; under other launchers all processes share the cores of the node.

    `accelerate launch` sets OMP_NUM_THREADS=1 if it is unset, even for a single process, which then uses one core of 2
    or 16. The launcher's environment and command line show whether the user set the value.
    """
    threads = os.environ.get("OMP_NUM_THREADS")
    by_launcher = threads == "1" and {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"} & os.environ.keys()
    flag = any(re.match(r"--num[_-]cpu[_-]threads", argument) for argument in launcher_command())
    if threads and (not by_launcher or flag or "OMP_NUM_THREADS" in launcher_environment()):
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cores // sharers)
    # If OMP_NUM_THREADS is unset, Accelerate counts the cores itself.
    os.environ["OMP_NUM_THREADS"] = str(share)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(share))  # torch starts 32 per process
    torch.set_num_threads(share)


def keep_freed_memory() -> None:
    """Make glibc keep freed memory instead of returning it to the kernel, which clears every page again.

    By default, activations of 33 MB and more are mapped anew in every operation: 8 % of the CPU time of a step is spent
    in the kernel. With this setting the sprint network trains 1.04 times (40 px) to 1.13 times (64 px) as fast, on 2
    cores with AVX2, at the same peak memory.
    """
    with suppress(OSError, AttributeError):  # other C libraries have no mallopt
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def quicker_precision() -> str:
    """Of "bf16" and "fp32", the one in which this CPU computes a convolution in less time; measured in 50 ms.

    Its instructions do not tell. Both have AVX512_BF16, but an AMD EPYC (Zen 4) is 1.9 times as fast in bf16, and an
    Intel Xeon (Emerald Rapids) whose virtual machine hides AMX 1.9 times as slow.
    """
    return min(("bf16", "fp32"), key=_convolution_seconds)


def _convolution_seconds(precision: str) -> float:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    images, filters = torch.ones(16, 64, 16, 16, dtype=dtype), torch.ones(64, 64, 3, 3, dtype=dtype)
    images = images.contiguous(memory_format=torch.channels_last)
    seconds = []
    for _ in range(5):  # the first one prepares a kernel
        started = time.perf_counter()
        F.conv2d(images, filters, padding=1)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def cpu_name() -> str:
    """CPU model and instruction set of torch's kernels: 'AMD EPYC 9575F 64-Core Processor, AVX512'."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):  # not Linux
        lines = read_text(Path("/proc/cpuinfo")).splitlines()
        name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), name)
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"
