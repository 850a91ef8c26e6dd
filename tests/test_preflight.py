"""What is wrong with a node is said in a sentence that names it. The real thing: tests/cluster/test_sbatch.py."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ACCELERATE, launch, python

from tinyimnet import preflight
from tinyimnet.preflight import problems

GOOD: dict[str, Any] = {
    "host": "n1", "local_rank": 0, "cores": 8, "code": "abc", "config": "a: 1\nb: 2\n",
    "versions": {"python": "3.11.2", "torch": "2.13.0"}, "device": "NVIDIA H100", "gpus": 8, "job_gpus": 8, "usable": True, "gpu_free": 70 << 30,
    "run_dir": "/runs/a", "disk": 1 << 40, "needs": 32e6, "clock": 1000.0, "sees_run": True,
}  # fmt: skip


def second(**changes: Any) -> list[str]:
    """What is wrong where rank 1, on n2, differs in these facts."""
    return problems([GOOD, {**GOOD, "host": "n2", **changes}])


def test_equal_nodes_are_fine() -> None:
    assert second(clock=1005.0) == []


def test_outside_slurm_nobody_says_how_many_gpus_a_job_has() -> None:
    assert second(job_gpus=0) == []


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"code": "def"}, "has other code than node n1 (def, not abc)"),
        ({"config": "a: 1\nb: 3\n"}, "has another configuration than node n1 (b: 2; b: 3)"),
        (
            {"versions": {"python": "3.11.2", "torch": "2.12.0"}},
            "has other versions than node n1 (torch 2.12.0, not 2.13.0)",
        ),
        (
            {"device": "EPYC, AVX2", "gpus": 0},
            "has another device than node n1 (EPYC, AVX2, not NVIDIA H100)",
        ),
        ({"sees_run": False}, "does not see the run folder /runs/a of node n1"),
        ({"disk": 5e6}, "has 5 MB free for /runs/a, and two checkpoints need 32"),
        ({"local_rank": 8}, "sees 8 GPUs and is process 8 of its node"),
        ({"job_gpus": 2}, "sees 8 GPUs and its job has 2 of that node"),
        ({"usable": False}, "has 8 GPUs that torch 2.13.0 for CUDA"),
        ({"gpu_free": 1 << 30}, "has 1.1 GB free on GPU 0, and a run needs 4.3"),
        ({"clock": 1045.0}, "the clock of node n2 (rank 1) is +45 s off that of node n1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_wrong_names_the_node(changes: dict, sentence: str) -> None:
    (found,) = second(**changes)
    assert "node n2 (rank 1)" in found and sentence in found


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="this CPU has one kind of kernel"
)
def test_processes_whose_cpus_round_differently_are_refused(tiny_data: Path) -> None:
    """Each rank computes its own weights: with other kernels they drift apart, and nothing would show it."""
    rank = (
        f"[ $RANK = 1 ] && export ATEN_CPU_CAPABILITY=default; exec {sys.executable} -m tinyimnet preflight"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--no-python"]
    result = launch([*launcher, "bash", "-c", f"{rank} --data.root={tiny_data}"], OMP_NUM_THREADS="1")
    assert result.returncode != 0
    assert "(rank 1) has another device than node" in result.stderr and ", DEFAULT, not " in result.stderr


def test_by_hand_on_one_process(tiny_data: Path) -> None:
    result = python("-m", "tinyimnet", "preflight", f"--data.root={tiny_data}")
    assert result.returncode == 0, result.stderr
    assert "free for the run" in result.stdout and "passed in" in result.stdout


def test_without_data_it_says_how_to_make_them(tmp_path: Path) -> None:
    result = python("-m", "tinyimnet", "preflight", f"--data.root={tmp_path}")
    assert result.returncode == 2
    assert (
        f"data.root {tmp_path} holds no prepared data set; run `python -m tinyimnet prepare SOURCE --out {tmp_path}`."
        in result.stderr
    )


def test_without_the_soft_labels_too(tiny_data: Path, tmp_path: Path) -> None:
    soft_labels = f"--data.soft_labels={tmp_path / 'none'}"
    result = python("-m", "tinyimnet", "preflight", f"--data.root={tiny_data}", soft_labels)
    assert result.returncode == 2
    assert "none does not exist; write it with `python -m tinyimnet soft-labels`" in result.stderr


@pytest.mark.parametrize(
    "available, capability, works", [(False, (9, 0), False), (True, (7, 0), False), (True, (9, 0), True)]
)
def test_a_driver_or_a_gpu_that_is_too_old_for_this_torch_is_noticed(
    available, capability, works, monkeypatch
) -> None:
    """As NVML and CUDA answer then; no GPU was at hand."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(
        torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_90a", "sm_90", "compute_90"]
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert preflight._cuda_works() == works


def test_a_wrong_sum_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Two:
        num_processes, process_index, device, is_main_process = 2, 0, "cpu", True

        def gather(self, flag):
            import torch

            return torch.cat([torch.tensor([False]), flag])

    monkeypatch.setattr(preflight.torch.distributed, "all_reduce", lambda numbers: numbers.add_(1.0))
    with pytest.raises(preflight.UserError, match="gave a wrong sum on node n2; leave it out"):
        preflight.measure(Two(), [GOOD, {**GOOD, "host": "n2"}])  # type: ignore[arg-type]


@pytest.mark.parametrize("file", ["cpu", "gpu", "node", "nodes"])
def test_the_accelerate_files_work_as_they_stand(file: str, tiny_data: Path) -> None:
    """Those for GPUs on two CPU processes, and what is for two nodes on one."""
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
