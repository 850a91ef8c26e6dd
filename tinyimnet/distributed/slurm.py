"""What Slurm tells a process about its job, its step and its nodes."""

import os
import re
import subprocess
from collections.abc import Mapping

from tinyimnet.errors import UserError


def job_name(environ: Mapping[str, str] = os.environ) -> str:
    """The id of this job, empty outside one; of one element of an array, whose plain id can be that of the whole array."""
    array = environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{environ['SLURM_ARRAY_TASK_ID']}" if array else environ.get("SLURM_JOB_ID", "")


def restarts(environ: Mapping[str, str] = os.environ) -> int:
    """How often Slurm has started this job again; it does not set the variable in the first attempt."""
    return int(environ.get("SLURM_RESTART_COUNT", "0"))


def end_of_job(environ: Mapping[str, str] = os.environ) -> float:
    """Unix time at which Slurm ends this job; infinite outside one (it tells since 23.02)."""
    return float(environ.get("SLURM_JOB_END_TIME") or "inf")


def gpus_on_node(environ: Mapping[str, str] = os.environ) -> int:
    """GPUs that this job has of this node; 0 outside a job, and in one without GPUs."""
    return int(environ.get("SLURM_GPUS_ON_NODE") or 0)


def first_host(nodelist: str) -> str:
    """'gpu[07-09,12],cpu1' -> 'gpu07'."""
    match = re.match(r"([^\[,]+)(?:\[(\w+))?", nodelist)
    if not match:
        raise UserError(f"SLURM_STEP_NODELIST is {nodelist!r}; set MASTER_ADDR to the host of rank 0.")
    return match[1] + (match[2] or "")


def tasks_on_node(spec: str, node: int) -> int:
    """Tasks on a node of the step: ('4(x2),1', 2) -> 1 (the form of SLURM_STEP_TASKS_PER_NODE)."""
    counts: list[int] = []
    for part in spec.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if not match:
            raise UserError(f"SLURM_STEP_TASKS_PER_NODE is {spec!r}, which is not of the form 4(x2),1.")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts[node]


def step_hosts(environ: Mapping[str, str]) -> list[str]:
    """The nodes of this Slurm step, by name; empty outside one."""
    nodelist = environ.get("SLURM_STEP_NODELIST", "")
    if not nodelist:
        return []
    try:
        command = ["scontrol", "show", "hostnames", nodelist]
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        return []
