"""`preflight` under the launchers, with the unmodified files of configs/accelerate."""

import sys
from pathlib import Path

import pytest
import torch

from helpers.program import ACCELERATE, launch


@pytest.mark.long
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="this CPU has only one set of kernels")
def test_processes_whose_cpus_round_differently_are_refused(tiny_data: Path) -> None:
    """Each rank computes its own weights; with different kernels they would silently drift apart."""
    rank = f"[ $RANK = 1 ] && export ATEN_CPU_CAPABILITY=default; exec {sys.executable} -m tinyimnet preflight"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--no-python"]
    result = launch([*launcher, "bash", "-c", f"{rank} --data.root={tiny_data}"], OMP_NUM_THREADS="1")
    assert result.returncode != 0
    assert "(rank 1) has a different device from node" in result.stderr and ", DEFAULT, not " in result.stderr


@pytest.mark.parametrize(
    "file",
    [
        "cpu",
        pytest.param("gpu", marks=pytest.mark.long),
        pytest.param("node", marks=pytest.mark.long),
        pytest.param("nodes", marks=pytest.mark.long),
    ],
)
def test_the_accelerate_files_work_unmodified(file: str, tiny_data: Path) -> None:
    """The GPU files run on two CPU processes, and the file for two nodes runs on one node."""
    options = {
        "cpu": [],
        "gpu": [],
        "node": ["--num_processes=2"],
        "nodes": ["--num_machines=1", "--num_processes=2"],
    }
    result = launch(
        [*ACCELERATE, f"--config_file=configs/accelerate/{file}.yaml", *options[file], "-m", "tinyimnet", "preflight",
         f"--data.root={tiny_data}"], ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    assert file == "gpu" or "preflight: 2 processes on" in result.stdout
