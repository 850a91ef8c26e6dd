"""GPUs of a rank and of its Slurm job: what each rank reports for the preflight, and what is wrong with it."""

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch.cuda import nccl

from tinyimnet.distributed import slurm
from tinyimnet.distributed.cpu import cpu_name
from tinyimnet.files import read_text


def describe(local_rank: int) -> dict[str, Any]:
    """The device of this rank, its versions, the GPUs that CUDA shows it, and those that its job has on this node."""
    gpus = torch.cuda.device_count()
    works = _cuda_works() if gpus else False
    usable = works and local_rank < gpus
    return {
        # CPU models too: every rank updates its own weights, and other kernels round norms or products differently.
        "device": torch.cuda.get_device_name(local_rank) if usable else f"no GPU {local_rank}" if gpus else cpu_name(),
        "gpus": gpus,
        "job_gpus": slurm.gpus_on_node(),
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "foreign": foreign(os.environ),
        "usable": works,
        "gpu_versions": _versions() if usable else {},
        "gpu_free": torch.cuda.mem_get_info(local_rank)[0] if usable else 0,
    }


def foreign(environ: Mapping[str, str], reachable: Callable[[str, int], bool] = os.access) -> list[str]:
    """Numbers in CUDA_VISIBLE_DEVICES that are not GPUs of this Slurm job, and that this process can reach.

    With device cgroups Slurm numbers a job's GPUs from 0, and the device files of all others are out of reach.

    Args:
        environ: CUDA_VISIBLE_DEVICES, and SLURM_STEP_GPUS or SLURM_JOB_GPUS.
        reachable: replaces os.access in tests.
    """
    own = environ.get("SLURM_STEP_GPUS") or environ.get("SLURM_JOB_GPUS", "")
    visible = [number for number in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if number.isdigit()]
    others = [number for number in visible if own and number not in own.split(",")]
    return [number for number in others if reachable(f"/dev/nvidia{number}", os.R_OK | os.W_OK)]


def problem(info: dict[str, Any], node: str) -> str | None:
    """The first problem with the GPUs of a rank, as a sentence; `node` names the node and the rank."""
    gpus, job_gpus, visible = info["gpus"], info["job_gpus"], info["visible"]
    if not gpus:
        return None
    if not info["usable"]:
        return (
            f"{node} has {gpus} GPUs that torch {info['versions']['torch']} for CUDA {torch.version.cuda} "
            "cannot use, because the driver or the GPU is too old; install a PyTorch build for an older CUDA."
        )
    mismatch = job_gpus not in (0, gpus)
    if "MIG-" in (visible or "") and (mismatch or info["local_rank"] >= gpus):
        return (
            f"{node} has slices of a GPU (CUDA_VISIBLE_DEVICES is {visible}), of which CUDA shows one to a process; "
            "run one process on one slice (sbatch --nodes=1 --gpus-per-node=1), or request whole GPUs."
        )
    if info["local_rank"] >= gpus:
        return (
            f"{node} sees {gpus} GPUs but has local rank {info['local_rank']}; start one process per GPU, "
            "and let each see all GPUs (srun without --gpu-bind and --gpus-per-task)."
        )
    if mismatch:
        shown = f"CUDA_VISIBLE_DEVICES is {visible}" if visible else "CUDA_VISIBLE_DEVICES is not set"
        return (
            f"{node} sees {gpus} GPUs but its job has {job_gpus} on that node ({shown}), so it would use GPUs of other "
            "jobs or leave its own idle; start srun without --gpu-bind (also none) and --gpus-per-task, and leave "
            "CUDA_VISIBLE_DEVICES to Slurm."
        )
    if info["foreign"]:
        return (
            f"{node} would use GPU {', '.join(info['foreign'])} (CUDA_VISIBLE_DEVICES is {visible}), which its job "
            "does not have; leave CUDA_VISIBLE_DEVICES to Slurm."
        )
    return None


def idle(ranks: list[dict[str, Any]]) -> list[str]:
    """A sentence for each node with GPUs that its job has and that no rank uses."""
    sentences = []
    for host in dict.fromkeys(info["host"] for info in ranks):
        here = [info for info in ranks if info["host"] == host]
        gpus = max(here[0]["job_gpus"], here[0]["gpus"])
        if not here[0]["gpus"] and gpus:
            sentences.append(
                f"torch sees no GPU on node {host}, where the job has {gpus}, so it trains on the CPU; check "
                "that the PyTorch build is one for CUDA, and that nvidia-smi works there."
            )
        elif len(here) < gpus:
            sentences.append(f"{gpus - len(here)} of {gpus} GPUs on node {host} stay idle; start one process per GPU.")
    return sentences


def driver(file: Path = Path("/proc/driver/nvidia/version")) -> str:
    """Version of the GPU driver, such as 535.104.05; empty without the file, which only Linux has."""
    with suppress(OSError):
        if found := re.search(r"\b\d+\.\d+(\.\d+)?\b", read_text(file)):
            return found[0]
    return ""


def _versions() -> dict[str, str]:
    """Versions of the driver, CUDA, cuDNN and NCCL, as far as this process has them."""
    found = {
        "driver": driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, nccl.version())) if torch.distributed.is_nccl_available() else "",
    }
    return {name: str(version) for name, version in found.items() if version}


def _cuda_works() -> bool:
    """Whether the driver works and torch has kernels for the first GPU; NVML counts GPUs either way."""
    if not torch.cuda.is_available():
        return False
    oldest = min((int(arch[3:]) for arch in torch.cuda.get_arch_list() if re.fullmatch(r"sm_\d+", arch)), default=0)
    major, minor = torch.cuda.get_device_capability(0)
    return 10 * major + minor >= oldest
