"""The environment variables of processes that import wandb."""

import os
from pathlib import Path

INIT_TIMEOUT = 20  # seconds; a server that refuses or hangs costs 10 more (wandb 0.31)
# The only Slurm variables left in the environment: wandb 0.31 uploads all of them, and SLURM_JWT is a token.
SLURM = ("SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_JOB_NODELIST", "SLURM_JOB_NUM_NODES", "SLURM_ARRAY_JOB_ID",
         "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT")  # fmt: skip


def init_timeout() -> float:
    """Seconds that the server has to accept the run."""
    return float(os.environ.get("WANDB_INIT_TIMEOUT", INIT_TIMEOUT))


def prepare_environment(run_dir: Path) -> None:
    """Hide most Slurm variables from wandb, and move its files out of the home directory, often small or read-only."""
    for name in [name for name in os.environ if name.startswith("SLURM_") and name not in SLURM]:
        del os.environ[name]
    for name in [name for name, value in os.environ.items() if name.startswith("WANDB_") and not value]:
        del os.environ[name]  # the training treats empty as unset, but wandb rejects it
    for place in ("DATA", "CACHE"):
        os.environ.setdefault(f"WANDB_{place}_DIR", str((run_dir / "wandb" / place.lower()).absolute()))
