"""The CPU threads of a process under each launcher, and the warning about emulated bf16."""

import os
from collections.abc import Iterator

import pytest
import torch

from tinyimnet import config_cli
from tinyimnet.distributed import cpu, process_group
from tinyimnet.distributed.rendezvous import Rendezvous


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("flag, kept", [("--num_cpu_threads_per_process", True), ("--num_processes", False)])
def test_a_thread_count_on_the_launchers_command_line_is_kept(flag: str, kept: bool, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setattr(cpu, "launcher_environment", dict)
    monkeypatch.setattr(cpu, "launcher_command", lambda: ["accelerate", "launch", flag, "1"])
    cpu.share_cores(1)
    assert os.environ["OMP_NUM_THREADS"] == ("1" if kept else str(len(os.sched_getaffinity(0))))


def test_a_thread_count_in_the_launchers_environment_is_kept(monkeypatch) -> None:
    """process/test_launchers.py runs the real launcher."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setattr(cpu, "launcher_command", list)
    monkeypatch.setattr(cpu, "launcher_environment", lambda: {"OMP_NUM_THREADS": "1"})
    cpu.share_cores(1)
    assert os.environ["OMP_NUM_THREADS"] == "1"


def test_processes_with_the_same_cores_share_them(monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cpu.share_cores(2)
    assert torch.get_num_threads() == max(1, len(os.sched_getaffinity(0)) // 2)


@pytest.mark.parametrize("precision, native, told", [("bf16", False, 1), ("bf16", True, 0), ("fp32", False, 0)])
def test_a_cpu_that_emulates_bf16_gets_a_warning(precision, native, told, arguments, monkeypatch, caplog) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
    settings = config_cli.load(arguments(train__precision=precision))
    process_group.start(settings.train, Rendezvous())
    assert [r.message.count("--train.precision fp32") for r in caplog.records] == [1] * told
