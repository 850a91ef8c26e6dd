"""slurm/sweep.sbatch as one array element; srun, scontrol and the agent are scripts on PATH."""

import os
import sys
from pathlib import Path

import pytest

from helpers.program import launch


def program(folder: Path, name: str, text: str) -> None:
    """Put a stub on PATH."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / "bin" / name).chmod(0o755)


@pytest.mark.long
def test_an_element_gives_up_after_three_failed_trials_in_a_row(tmp_path: Path) -> None:
    program(tmp_path, "srun", 'while [[ $1 == --* ]]; do shift; done; exec "$@"')
    program(tmp_path, "scontrol", "echo JobState=RUNNING PreemptTime=None")
    agent = "WANDB_SWEEP_ID=abc WANDB_RUN_ID=$RANDOM python -m tinyimnet.launch.trial --optim.lr=-1; echo given out"
    program(tmp_path, "wandb", agent)
    path = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    slurm = {"SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "1"}
    command = ["bash", "slurm/sweep.sbatch", "lab/t/abc"]
    places = {"HOME": str(tmp_path), "RUNS_ROOT": "~/runs"}  # quoted in site.env
    done = launch(command, PATH=path, VIRTUAL_ENV="active", **places, **slurm)
    assert done.returncode == 2 and "3 trials in a row failed" in done.stderr
    assert done.stdout.count("given out") == 3
    assert done.stderr.count("optim.lr is -1.0 and must be positive") == 3
    assert (tmp_path / "runs" / "sweep-abc").is_dir()
