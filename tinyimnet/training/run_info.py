"""run_info.json: facts about a run beyond its configuration and metrics; W&B shows it with both."""

import json
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import torch

import tinyimnet
from tinyimnet.distributed import slurm
from tinyimnet.distributed.cpu import cpu_name
from tinyimnet.distributed.preflight import RankInfo
from tinyimnet.files import ROOT, as_utf8, read_text, write_atomically
from tinyimnet.model.network import Network, count_macs, count_parameters
from tinyimnet.training.trainer import Trainer

OTHER_PACKAGES = ("wandb", "submitit")  # on which no weight depends; each rank reports the others


def write(run_dir: Path, trainer: Trainer, ranks: list[RankInfo]) -> None:
    """Write run_info.json for this attempt: selected values, never the environment, which may hold secrets."""
    write_atomically(run_dir / "run_info.json", json.dumps(describe(trainer, ranks), indent=1).encode())


def describe(trainer: Trainer, ranks: list[RankInfo]) -> dict[str, Any]:
    """Collect the network's size and cost, the batch split, hardware, versions, commit and job.

    Args:
        trainer: the trainer of this process.
        ranks: what each rank reported to the preflight (preflight.check).
    """
    commit, modified = git_state()
    resolution = trainer.batches.resolution(trainer.total_steps)
    return {
        "parameters": count_parameters(trainer.bare),
        "image_size": trainer.batches.image_size,
        "resolution": resolution,  # at which the network is used
        # For one image. Counted on the EMA copy: a network that torch.compile meets during operation counting is
        # not compiled again in this process (pytorch issue 190286).
        "macs": count_macs(cast(Network, trainer.ema.module), resolution),
        # Not "data": W&B shows this value beside the configuration, which has a section of that name.
        "dataset": as_utf8(Path(trainer.config.data.root).name),
        "dataset_digest": trainer.state.metadata["data"],
        "classes": len(trainer.state.metadata["classes"]),
        "fit": trainer.state.metadata["fit"],
        "train_images": len(trainer.batches.images),
        "val_images": len(trainer.evaluator.images),
        "steps_per_epoch": trainer.steps_per_epoch,
        "total_steps": trainer.total_steps,
        "world_size": trainer.accelerator.num_processes,
        "micro_batch_size": trainer.state.micro_batch_size,
        "accumulation_steps": len(trainer.micro_batches),
        "device": trainer.accelerator.device.type,
        "cpu": f"{cpu_name()}, threads per process: {torch.get_num_threads()}",
        "gpus": [rank["device"] for rank in ranks if rank["gpus"]],
        "nodes": list(dict.fromkeys(rank["host"] for rank in ranks)),
        "versions": {
            **ranks[0]["versions"],
            **ranks[0]["gpu_versions"],
            "tinyimnet": tinyimnet.__version__,
            **_installed(OTHER_PACKAGES),
        },
        "git_commit": commit,
        "git_modified": modified,
        "job": slurm.job_name(),
        "restart": slurm.restarts(),
    }


def _installed(packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of those packages that are installed; no training needs the others."""
    versions = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def git_state() -> tuple[str, bool]:
    """Commit of the code that runs and whether it has uncommitted changes; empty for an installed package."""
    snapshot, changes = ROOT / "COMMIT", ROOT / "UNCOMMITTED.diff"
    if snapshot.exists():
        return read_text(snapshot).strip(), bool(changes.exists() and changes.stat().st_size)
    if not (ROOT / ".git").exists():  # an installed package, perhaps inside a checkout of something else
        return "", False
    return _git("rev-parse", "HEAD"), bool(_git("status", "--porcelain", "--untracked-files=no"))


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
