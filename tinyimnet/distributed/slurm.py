"""What Slurm reports to a process about its job, step and nodes, and its commands."""

import os
import re
import subprocess
import time
from collections.abc import Mapping
from typing import Any

from tinyimnet.errors import UserError

# Seconds to retry scontrol, which itself waits 20 to 40 s for a controller; enough for a restart or failover.
PATIENCE = 60
# Errors of scontrol that another try does not change; all others may come from a controller that restarts.
REFUSED = re.compile("disabled|denied|Invalid job id")


def job_name(environ: Mapping[str, str] = os.environ) -> str:
    """Job id, or "" outside a job.

    The id of an array element is ARRAYID_TASKID, because its plain id can be that of the whole array.
    """
    array = environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{environ['SLURM_ARRAY_TASK_ID']}" if array else environ.get("SLURM_JOB_ID", "")


def predecessors(environ: Mapping[str, str] = os.environ) -> list[str]:
    """The jobs that this one continues, oldest first: a job that Slurm does not requeue submits its successor."""
    return environ.get("PREDECESSORS", "").split()


def requeues(environ: Mapping[str, str] = os.environ) -> int:
    """Number of times Slurm has requeued this job; the variable is unset in the first attempt."""
    return int(environ.get("SLURM_RESTART_COUNT", "0"))


def restarts(environ: Mapping[str, str] = os.environ) -> int:
    """Number of attempts before this one, of this job and of its predecessors."""
    return requeues(environ) + len(predecessors(environ))


def end_of_job(environ: Mapping[str, str] = os.environ) -> float:
    """Unix time at which Slurm ends this job; infinite outside a job (Slurm 23.02 and later report it)."""
    return float(environ.get("SLURM_JOB_END_TIME") or "inf")


def gpus_on_node(environ: Mapping[str, str] = os.environ) -> int:
    """Number of this job's GPUs on this node; 0 outside a job or without GPUs."""
    return int(environ.get("SLURM_GPUS_ON_NODE") or 0)


def first_host(nodelist: str) -> str:
    """First host of a node list: 'gpu[07-09,12],cpu1' -> 'gpu07'."""
    match = re.match(r"([^\[,]+)(?:\[(\w+))?", nodelist)
    if not match:
        raise UserError(
            f"SLURM_STEP_NODELIST is {nodelist!r} and names no host; set MASTER_ADDR to the host of rank 0."
        )
    return match[1] + (match[2] or "")


def tasks_on_node(spec: str, node: int) -> int:
    """Tasks on a node of the step, from the format of SLURM_STEP_TASKS_PER_NODE: ('4(x2),1', 2) -> 1."""
    counts: list[int] = []
    for part in spec.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if not match:
            raise UserError(f"SLURM_STEP_TASKS_PER_NODE is {spec!r} and must have the form 4(x2),1.")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts[node]


def step_hosts(environ: Mapping[str, str]) -> list[str]:
    """Host names of the nodes in this Slurm step; empty outside one."""
    nodelist = environ.get("SLURM_STEP_NODELIST", "")
    if not nodelist:
        return []
    try:
        command = ["scontrol", "show", "hostnames", nodelist]
        return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=10).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        return []


def patiently(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a Slurm command and retry it for PATIENCE seconds, so that a lost response does not end a run of days."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            done = subprocess.run(command, capture_output=True, encoding="utf-8", **options)
        except OSError as error:  # not installed, as in a container without Slurm's commands
            return subprocess.CompletedProcess(command, 1, "", f"{command[0]}: {error.strerror}")
        if not done.returncode or REFUSED.search(done.stderr) or time.monotonic() >= deadline:
            return done
        time.sleep(2)
