"""Preflight: finds and names faulty nodes of a job within a second, before the training begins.

Every start of several processes runs it, and `tinyimnet preflight` runs it alone.
"""

import hashlib
import logging
import os
import platform
import secrets
import shutil
import socket
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from tinyimnet import config as configuration
from tinyimnet.config import Config
from tinyimnet.console import console
from tinyimnet.distributed import gpus, reduction
from tinyimnet.distributed.process_group import NETWORK
from tinyimnet.distributed.rendezvous import Rendezvous
from tinyimnet.errors import UserError, one_line
from tinyimnet.files import ROOT

logger = logging.getLogger(__name__)

MAX_SKEW = 30.0  # seconds between two clocks; the job's deadline (run.stop_before_end) is read from a clock
CHECKPOINT = 16  # bytes per parameter: weights, EMA, and the two moments of AdamW
VISIBLE = 10.0  # seconds within which a network file system shows a new file on all nodes
ALL_REDUCE = 1_000_000  # floats: the size of the largest network's gradient
HEADER = ("node", "processes", "device", "cores", "free GPU memory", "free disk space", "clock offset")
RankInfo = dict[str, Any]


def check(rendezvous: Rendezvous, config: Config, run_dir: Path) -> list[RankInfo]:
    """Compare what all ranks report about themselves and their nodes; returns the reports of all ranks, on every rank.

    Raises:
        UserError: a check failed; names the node. Raised on every rank.
    """
    token = _token_beside(run_dir) if rendezvous.is_main and rendezvous.world_size > 1 else None
    try:
        static = rendezvous.gather("ranks", {**_describe_rank(config, run_dir), "token": token and str(token)})
        # All ranks receive the reply above at the same moment, so their clocks can be compared now.
        clocks = rendezvous.gather("clocks", [time.time(), _appears(static[0]["token"])])
    finally:
        if token:
            token.unlink(missing_ok=True)
    ranks = [{**info, "clock": clock, "sees_run": sees} for info, (clock, sees) in zip(static, clocks, strict=True)]
    if found := problems(ranks):
        rendezvous.leave()
        more = f" (and {len(found) - 1} more: {' '.join(found[1:])})" if found[1:] else ""
        raise UserError(found[0] + more)
    for sentence in gpus.idle(ranks) if rendezvous.is_main else []:
        logger.warning(sentence)
    return ranks


def problems(ranks: list[RankInfo]) -> list[str]:
    """One sentence for each problem, with the name of the node; empty if there are none."""
    first, found = ranks[0], []
    same: list[tuple[str, str, str]] = [
        ("code", "different code", "deploy the same files on all nodes"),
        ("config", "a different configuration", "give all processes the same command"),
        ("versions", "different versions", "install requirements.txt on all nodes"),
        ("device", "a different device", "choose nodes of one type, for example with --constraint"),
    ]
    for rank, info in enumerate(ranks):
        node = f"node {info['host']} (rank {rank})"
        for key, what, way_out in same:
            if info[key] != first[key] and not (key == "device" and info["local_rank"] >= info["gpus"] > 0):
                details = _difference(first[key], info[key])
                found.append(f"{node} has {what} from node {first['host']} ({details}); {way_out}.")
        if not info["sees_run"]:
            found.append(
                f"{node} does not see the run folder {first['run_dir']} of node {first['host']}; "
                "put --run.dir on a file system that all nodes share."
            )
        if info["disk"] < info["needs"]:
            found.append(
                f"{node} has {info['disk'] / 1e6:.0f} MB free for {info['run_dir']}, but two checkpoints need "
                f"{info['needs'] / 1e6:.0f} MB; make room, or choose another --run.dir."
            )
        if problem := gpus.problem(info, node):
            found.append(problem)
        if abs(info["clock"] - first["clock"]) > MAX_SKEW:
            found.append(
                f"the clock of {node} differs by {info['clock'] - first['clock']:+.0f} s from that of node "
                f"{first['host']}; synchronise the clocks or exclude the node (sbatch --exclude)."
            )
    return found


def measure(accelerator: Accelerator, ranks: list[RankInfo]) -> None:
    """All-reduce known numbers over all processes, and print a summary of the group if the sums are right.

    Raises:
        UserError: a sum is wrong on some rank; names its node. Raised on every rank.
    """
    world_size = accelerator.num_processes
    if world_size == 1:
        return
    try:
        _timed_sum(accelerator, ranks)  # opens the connections
    except RuntimeError as error:
        raise UserError(
            f"the first all-reduce over {world_size} processes failed ({one_line(error)}); check that none of them has "
            f"died, check {NETWORK}, and set NCCL_DEBUG=INFO for details.",
            every_rank=True,
        ) from error
    seconds = _timed_sum(accelerator, ranks)
    if accelerator.is_main_process:
        # Bus bandwidth as nccl-tests defines it.
        console.print(describe(ranks, 4 * ALL_REDUCE * 2 * (world_size - 1) / world_size / seconds))


def _timed_sum(accelerator: Accelerator, ranks: list[RankInfo]) -> float:
    """All-reduce known numbers and check the sums on all ranks; returns the seconds of the all-reduce alone."""
    world_size = accelerator.num_processes
    numbers = torch.full((ALL_REDUCE,), float(accelerator.process_index + 1), device=accelerator.device)
    seconds = _seconds(numbers.is_cuda, lambda: torch.distributed.all_reduce(numbers))
    wrong = (numbers != world_size * (world_size + 1) / 2).any().float()
    failed = reduction.of_all_ranks(wrong[None]).flatten().tolist()
    if any(failed):
        raise UserError(
            f"an all-reduce over {world_size} processes gave a wrong sum on node {ranks[failed.index(1)]['host']}; "
            "exclude it (sbatch --exclude) and report it to the administrators of the cluster."
        )
    return seconds


def _seconds(on_gpu: bool, operation: Callable[[], object]) -> float:
    """Seconds that an operation takes: on a GPU between two events around it, otherwise by the host's clock."""
    if on_gpu:
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        operation()
        after.record()
        after.synchronize()
        return before.elapsed_time(after) / 1000
    started = time.perf_counter()
    operation()
    return time.perf_counter() - started


def describe(ranks: list[RankInfo], bandwidth: float) -> str:
    """One-line summary of a group that passed."""
    clocks = [info["clock"] for info in ranks]
    nodes = list(dict.fromkeys(info["host"] for info in ranks))
    named = ", ".join(nodes[:8]) + (", ..." if len(nodes) > 8 else "")
    return (
        f"preflight: {len(ranks)} processes on {named}: same code, versions and run folder, clocks within "
        f"{max(clocks) - min(clocks):.2f} s, {min(f['disk'] for f in ranks) / 1e9:.1f} GB of disk free, "
        f"all-reduce {bandwidth / 1e9:.2f} GB/s"
    )


def rows(ranks: list[RankInfo]) -> list[tuple[str, ...]]:
    """A table row for each node: name, processes, device, cores, free GPU memory, free disk space, clock offset."""
    first = ranks[0]
    table: list[tuple[str, ...]] = []
    for host in dict.fromkeys(info["host"] for info in ranks):
        here = [info for info in ranks if info["host"] == host]
        gpu = f"{min(f['gpu_free'] for f in here) / 1e9:.1f} GB" if here[0]["gpus"] else "-"
        skew = max((f["clock"] - first["clock"] for f in here), key=abs)
        table.append((host, str(len(here)), here[0]["device"], str(here[0]["cores"]), gpu,
                      f"{min(f['disk'] for f in here) / 1e9:.1f} GB", f"{skew:+.2f} s"))  # fmt: skip
    return table


def _describe_rank(config: Config, run_dir: Path) -> RankInfo:
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "host": socket.gethostname(),
        "local_rank": local_rank,
        "cores": cores,
        "code": _code_digest(),
        "config": configuration.dump(config),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in ("torch", "accelerate", "numpy")},
        **gpus.describe(local_rank),
        "run_dir": str(run_dir),
        "disk": shutil.disk_usage(_existing(run_dir)).free,
        "needs": 2 * CHECKPOINT * config.model.max_parameters,
    }  # fmt: skip


def _code_digest() -> str:
    digest = hashlib.sha256()
    for file in sorted((ROOT / "tinyimnet").rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _existing(path: Path) -> Path:
    """The folder, or its nearest existing parent."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _token_beside(run_dir: Path) -> Path | None:
    """Create a file for other nodes to find, in the run folder or its nearest existing parent; None if not writable."""
    path = _existing(run_dir) / f".preflight-{secrets.token_hex(8)}"
    try:
        path.touch()
    except OSError:
        return None  # reported by run/folder.py
    return path


def _appears(path: str | None) -> bool:
    deadline = time.monotonic() + VISIBLE
    while path and not os.path.exists(path):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _difference(ours: Any, theirs: Any) -> str:
    """Describe a difference: 'torch 2.13.0, not 2.12.0' for dictionaries, changed lines for text, else both values."""
    if isinstance(ours, dict):
        return ", ".join(f"{key} {theirs[key]}, not {ours[key]}" for key in ours if ours[key] != theirs[key])
    if "\n" in ours:
        changed = set(theirs.splitlines()) ^ set(ours.splitlines())
        return "; ".join(sorted(line.strip() for line in changed))
    return f"{theirs}, not {ours}"
