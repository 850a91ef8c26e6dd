"""Preflight reports each problem in a sentence that names the node; tests/cluster runs it on a real Slurm."""

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.clock import Clock
from tinyimnet import cli, errors
from tinyimnet.console import command
from tinyimnet.distributed import gpus, preflight
from tinyimnet.distributed.preflight import problems

GOOD: dict[str, Any] = {
    "host": "n1", "local_rank": 0, "cores": 8, "code": "abc", "config": "a: 1\nb: 2\n",
    "versions": {"python": "3.11.2", "torch": "2.13.0"}, "device": "NVIDIA H100",
    "gpus": 8, "job_gpus": 8, "visible": "0,1,2,3,4,5,6,7", "foreign": [], "usable": True, "gpu_free": 70 << 30,
    "run_dir": "/runs/a", "disk": 1 << 40, "needs": 32e6, "clock": 1000.0, "sees_run": True,
}  # fmt: skip


def second(**changes: Any) -> list[str]:
    """Return the problems if rank 1, on n2, differs in these facts."""
    return problems([GOOD, {**GOOD, "host": "n2", **changes}])


def test_equal_nodes_are_fine() -> None:
    assert second(clock=1005.0) == []


def test_outside_slurm_the_gpu_count_of_a_job_is_unknown() -> None:
    assert second(job_gpus=0) == []


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"code": "def"}, "has different code from node n1 (def, not abc)"),
        ({"config": "a: 1\nb: 3\n"}, "has a different configuration from node n1 (b: 2; b: 3)"),
        (
            {"versions": {"python": "3.11.2", "torch": "2.12.0"}},
            "has different versions from node n1 (torch 2.12.0, not 2.13.0)",
        ),
        (
            {"device": "EPYC, AVX2", "gpus": 0},
            "has a different device from node n1 (EPYC, AVX2, not NVIDIA H100)",
        ),
        ({"sees_run": False}, "does not see the run folder /runs/a of node n1"),
        ({"disk": 5e6}, "has 5 MB free for /runs/a, but two checkpoints need 32"),
        ({"local_rank": 8}, "sees 8 GPUs but has local rank 8"),
        ({"job_gpus": 2}, "sees 8 GPUs but its job has 2 on that node"),
        ({"job_gpus": 2, "visible": None}, "its job has 2 on that node (CUDA_VISIBLE_DEVICES is not set)"),
        (
            {"foreign": ["4", "5"]},
            "would use GPU 4, 5 (CUDA_VISIBLE_DEVICES is 0,1,2,3,4,5,6,7), which its job does not",
        ),
        ({"gpus": 1, "local_rank": 1, "visible": "MIG-6a5"}, "has slices of a GPU (CUDA_VISIBLE_DEVICES is MIG-6a5)"),
        ({"gpus": 1, "job_gpus": 2, "visible": "MIG-6a5,MIG-7"}, "run one process on one slice"),
        ({"usable": False}, "has 8 GPUs that torch 2.13.0 for CUDA"),
        ({"clock": 1045.0}, "the clock of node n2 (rank 1) differs by +45 s from that of node n1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_problem_names_the_node(changes: dict, sentence: str) -> None:
    (found,) = second(**changes)
    assert "node n2 (rank 1)" in found and sentence in found


@pytest.mark.parametrize(
    "available, capability, works", [(False, (9, 0), False), (True, (7, 0), False), (True, (9, 0), True)]
)
def test_a_driver_or_a_gpu_that_is_too_old_for_this_torch_is_noticed(available, capability, works, monkeypatch) -> None:
    """The answers of NVML and CUDA are imitated, because no GPU was available."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_90a", "sm_90", "compute_90"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert gpus._cuda_works() == works


@pytest.mark.parametrize(
    "visible, own, reachable, found",
    [
        ("0,1", "2,3", True, ["0", "1"]),  # no device cgroups: GPUs of another job
        ("0,1", "2,3", False, []),  # device cgroups: Slurm numbers the job's GPUs from 0
        ("2,3", "2,3", True, []),
        ("2,3", "", True, []),  # outside Slurm
        ("MIG-6a5", "0", True, []),
    ],
)
def test_gpus_of_other_jobs_are_those_within_reach(visible, own, reachable, found) -> None:
    environ = {"CUDA_VISIBLE_DEVICES": visible, "SLURM_JOB_GPUS": own}
    assert gpus.foreign(environ, lambda _path, _mode: reachable) == found


@pytest.mark.parametrize(
    "facts, said",
    [
        ({"gpus": 2, "job_gpus": 2}, ["1 of 2 GPUs on node n1 stay idle"]),
        ({"gpus": 0, "job_gpus": 2}, ["torch sees no GPU on node n1, where the job has 2"]),
        ({"gpus": 1, "job_gpus": 1}, []),
        ({"gpus": 0, "job_gpus": 0}, []),
    ],
)
def test_gpus_that_no_process_uses_are_named(facts, said) -> None:
    sentences = gpus.idle([{**GOOD, **facts}])
    assert len(sentences) == len(said) and all(map(str.__contains__, sentences, said))


@pytest.mark.parametrize(
    "name, number",
    [("x86_64 Kernel Module", "535.104.05"), ("Open Kernel Module for x86_64", "560.35.03"), ("", "580.95")],
)
def test_the_driver_is_read_from_the_kernel(name: str, number: str, tmp_path: Path) -> None:
    file = tmp_path / "version"
    assert gpus.driver(file) == ""
    file.write_text(f"NVRM version: NVIDIA UNIX {name}  {number}  Release Build\nGCC version:  gcc version 12.2.0\n")
    assert gpus.driver(file) == number


def test_a_process_reports_only_the_gpu_versions_that_it_has(monkeypatch) -> None:
    """cuDNN and NCCL are imitated, because no GPU was available."""
    monkeypatch.setattr(gpus, "driver", lambda: "")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    monkeypatch.setattr(gpus.nccl, "version", lambda: (2, 27, 3))
    assert gpus._versions() == {"cuda": "13.0", "cudnn": "91002", "nccl": "2.27.3"}
    assert gpus.describe(0)["gpu_versions"] == {}  # it computes on the CPU


# ---- the all-reduce of known numbers ----------------------------------------------------------------------------


class Two:
    """Accelerate's view of a group of two on rank 0, for which `all_reduce` and `of_all_ranks` are imitated."""

    num_processes, process_index, device, is_main_process = 2, 0, "cpu", True


TWO: Any = Two()


@pytest.mark.parametrize("sums", [[2.0], [3.0, 2.0]], ids=["the first", "the second"])
def test_a_wrong_sum_is_found(sums: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.reduction, "of_all_ranks", lambda wrong: torch.stack([torch.zeros(1), wrong]))
    monkeypatch.setattr(preflight.torch.distributed, "all_reduce", lambda numbers: numbers.fill_(sums.pop(0)))
    with pytest.raises(preflight.UserError, match="gave a wrong sum on node n2; exclude it"):
        preflight.measure(TWO, [GOOD, {**GOOD, "host": "n2"}])
    assert not sums


def test_the_speed_is_that_of_a_second_all_reduce_alone(clock: Clock, monkeypatch, capsys) -> None:
    full, seconds = torch.full, [30.0, 0.002]

    def filling(*arguments: Any, **options: Any) -> torch.Tensor:
        clock.passes(5)
        return full(*arguments, **options)

    def all_reduce(numbers: torch.Tensor) -> None:
        clock.passes(seconds.pop(0))
        numbers.fill_(3)

    def gathering(wrong: torch.Tensor) -> torch.Tensor:
        clock.passes(20)
        return torch.stack([wrong, wrong])

    monkeypatch.setattr(preflight.torch, "full", filling)
    monkeypatch.setattr(preflight.torch.distributed, "all_reduce", all_reduce)
    monkeypatch.setattr(preflight.reduction, "of_all_ranks", gathering)
    preflight.measure(TWO, [GOOD, GOOD])
    assert "all-reduce 2.00 GB/s" in capsys.readouterr().out  # 4 MB in 2 ms


def test_on_a_gpu_the_time_is_that_between_two_events(clock: Clock, monkeypatch) -> None:
    """The events are imitated, because no GPU was available."""

    class Event:
        def __init__(self, enable_timing: bool):
            assert enable_timing

        def record(self) -> None:
            self.at = clock()

        def synchronize(self) -> None:
            clock.passes(7)

        def elapsed_time(self, after: "Event") -> float:
            return 1000 * (after.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert preflight._seconds(True, lambda: clock.passes(3)) == pytest.approx(3)


def test_preflight_by_hand_on_one_process(tiny_data: Path, capsys) -> None:
    assert cli.main(["preflight", f"--data.root={tiny_data}"]) == 0
    output = capsys.readouterr().out
    assert "free disk space" in output and "passed in" in output


def test_without_data_it_says_how_to_prepare_them(tmp_path: Path, capsys) -> None:
    assert errors.run(cli.main, ["preflight", f"--data.root={tmp_path}"]) == 2
    assert capsys.readouterr().err == (
        f"error: data.root {tmp_path} holds no prepared data set; "
        f"run `{command('prepare', 'SOURCE', '--out', tmp_path)}`, or correct the path.\n"
    )


def test_without_soft_labels_it_says_how_to_write_them(tiny_data: Path, tmp_path: Path, capsys) -> None:
    soft_labels = f"--data.soft_labels={tmp_path / 'none'}"
    assert errors.run(cli.main, ["preflight", f"--data.root={tiny_data}", soft_labels]) == 2
    assert "none does not exist; write it with `" in capsys.readouterr().err
