"""One script under every launcher; what would be N silent trainings is refused."""

import os
import sys

import pytest
import torch
from conftest import REPO, launch, python

from tinyimnet import commandline, distributed, slurm
from tinyimnet.errors import UserError
from tinyimnet.meeting import Meeting

SRUN = {
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_ID": "12345",
    "SLURM_NTASKS": "5",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "gpu[07-08,12]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
}


TORCHRUN = {
    "RANK": "0",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}


def test_tasks_of_srun_get_the_variables_of_torchrun() -> None:
    environ = dict(SRUN)
    distributed.map_environment(environ)
    expected = {
        "RANK": "3",
        "WORLD_SIZE": "5",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "gpu07",
    }
    assert expected.items() <= environ.items()
    assert 10000 <= int(environ["MASTER_PORT"]) < 30000


def test_a_requeued_job_takes_another_port() -> None:
    first, second = dict(SRUN), {**SRUN, "SLURM_RESTART_COUNT": "1"}
    next_job = {**SRUN, "SLURM_JOB_ID": str(int(SRUN["SLURM_JOB_ID"]) + 1)}
    for environ in (first, second, next_job):
        distributed.map_environment(environ)
    assert len({environ["MASTER_PORT"] for environ in (first, second, next_job)}) == 3


@pytest.mark.parametrize(
    "changes",
    [TORCHRUN, {"SLURM_NTASKS": "1"}, {"SLURM_STEP_ID": None}, {"SLURM_STEP_NUM_TASKS": "1"}],
    ids=["launcher", "one-task", "no-step", "salloc's own step"],
)
def test_otherwise_nothing_is_mapped(changes: dict) -> None:
    environ = {key: value for key, value in {**SRUN, **changes}.items() if value is not None}
    before = dict(environ)
    distributed.map_environment(environ)
    assert environ == before


@pytest.mark.parametrize(
    "nodelist, host", [("gpu[07-09,12],cpu1", "gpu07"), ("node1", "node1"), ("a,b", "a"), ("n[3]", "n3")]
)
def test_the_first_host_is_rank_zeros(nodelist: str, host: str) -> None:
    assert slurm.first_host(nodelist) == host


def test_an_empty_nodelist_is_refused() -> None:
    with pytest.raises(UserError, match="SLURM_STEP_NODELIST is ''; set MASTER_ADDR"):
        slurm.first_host("")


def test_tasks_on_a_node() -> None:
    assert [slurm.tasks_on_node("4(x2),1", node) for node in range(3)] == [4, 4, 1]
    with pytest.raises(UserError, match="SLURM_STEP_TASKS_PER_NODE is 'many'"):
        slurm.tasks_on_node("many", 0)


def test_a_group_smaller_than_the_launcher_said_is_refused() -> None:
    with pytest.raises(UserError, match="WORLD_SIZE is 4 and the process group has 1"):
        distributed.check_world(1, {"WORLD_SIZE": "4"})
    distributed.check_world(4, {"WORLD_SIZE": "4"})
    distributed.check_world(1, {})


def test_one_group_for_each_node_is_refused() -> None:
    with pytest.raises(UserError, match="srun started 2 launchers and this group has 1"):
        distributed.check_launcher({"GROUP_WORLD_SIZE": "1", "SLURM_STEP_NUM_TASKS": "2", "RANK": "0"})
    distributed.check_launcher({"GROUP_WORLD_SIZE": "2", "SLURM_STEP_NUM_TASKS": "2", "RANK": "0"})


THREADS = "import os, torch; from tinyimnet import distributed; distributed.share_cores(1); print('threads', torch.get_num_threads())"


def accelerate(*arguments: str, **environment: str):
    """`accelerate launch` of a line of Python: how it is called by the launcher is what matters."""
    return launch(
        [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *arguments], **environment
    )


@pytest.fixture
def thread_script(tmp_path):
    path = tmp_path / "threads.py"
    path.write_text(f"import sys; sys.path.insert(0, {str(REPO)!r}); {THREADS}")
    return str(path)


def test_accelerate_launch_uses_all_cores(thread_script: str, monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    result = accelerate("--num_processes", "1", thread_script)
    assert f"threads {len(os.sched_getaffinity(0))}" in result.stdout, result.stderr


def test_a_number_of_threads_that_the_user_set_is_kept(thread_script: str, monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert "threads 1" in accelerate("--num_processes", "1", thread_script, OMP_NUM_THREADS="1").stdout


@pytest.mark.parametrize("flag, kept", [("--num_cpu_threads_per_process", True), ("--num_processes", False)])
def test_a_number_of_threads_on_the_launchers_command_line_is_kept(
    flag: str, kept: bool, monkeypatch
) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setattr(distributed, "launcher_environment", dict)
    monkeypatch.setattr(distributed, "launcher_command", lambda: ["accelerate", "launch", flag, "1"])
    try:
        distributed.share_cores(1)
        assert os.environ["OMP_NUM_THREADS"] == ("1" if kept else str(len(os.sched_getaffinity(0))))
    finally:
        torch.set_num_threads(threads)


def test_processes_with_the_same_cores_share_them(monkeypatch) -> None:
    threads = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    try:
        distributed.share_cores(2)
        assert torch.get_num_threads() == max(1, len(os.sched_getaffinity(0)) // 2)
    finally:
        torch.set_num_threads(threads)


def test_accelerate_launch_that_starts_one_process_of_two_is_refused(arguments, monkeypatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    result = accelerate("--quiet", "--cpu", "--num_processes", "2", "train.py", *arguments())
    assert "error: accelerate launch was asked for several processes and started one" in result.stderr
    assert "Traceback" not in result.stderr


def test_memory_that_tensors_give_back_is_not_cleared_by_the_kernel_again() -> None:
    code = (
        "import pathlib, resource, torch; from tinyimnet import cli, distributed; {}\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(3): torch.zeros(2**24)\n"
        "before = faults()\n"
        "for _ in range(5): torch.zeros(2**24)\n"
        "print((faults() - before) // 5)"
    )
    evaluating = "cli._load_trained(pathlib.Path('results/tiny1m_sprint.safetensors'))"
    calls = ("distributed.keep_freed_memory()", evaluating, "pass")
    *kept, given_back = (int(python("-c", code.format(call)).stdout) for call in calls)
    assert given_back > 20 > max(kept)  # 64 MiB: 16,384 pages of 4 KiB or 32 of 2 MiB


@pytest.mark.parametrize(
    "precision, native, told", [("bf16", False, 1), ("bf16", True, 0), ("fp32", False, 0)]
)
def test_a_cpu_that_imitates_bf16_is_named(precision, native, told, arguments, monkeypatch, caplog) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
    settings = commandline.load(arguments(train__precision=precision))
    distributed.start(settings.train, Meeting())
    assert [r.message.count("--train.precision fp32") for r in caplog.records] == [1] * told
