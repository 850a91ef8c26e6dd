"""The program as a user runs it: small runs, launchers, commands."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--quiet"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
# A network and a run that take seconds. 200 training images give 6 steps of 32 per epoch.
SMALL = {
    "config": "configs/smoke.yaml",
    "model.widths": "[16,16]",
    "model.depths": "[1,1]",
    "model.width": "1.0",
    "model.head_width": "0",
    "train.epochs": "2",
    "train.global_batch_size": "32",
    "optim.lr": "0.1",
    "optim.warmup_epochs": "1",
    "run.log_every": "2",
}


def small_run(data_root: Path, run_dir: Path, **overrides: object) -> list[str]:
    """Return train.py's arguments for a run of seconds; overrides are section__key=value."""
    keys = {**SMALL, "data.root": data_root, "run.dir": run_dir}
    keys |= {key.replace("__", "."): value for key, value in overrides.items()}
    return [f"--{key}={value}" for key, value in keys.items()]


def launch(command: list[str], timeout: float = 120, **environment: str) -> subprocess.CompletedProcess:
    """Run a command in the repository and wait for it."""
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, timeout=timeout)


def python(*arguments: str, **options: Any) -> subprocess.CompletedProcess:
    """Run `python ...` in the repository."""
    return launch([sys.executable, *arguments], **options)
