"""The CPU threads of a process under each launcher, and the warning about slow bf16."""

import os
import time
from collections.abc import Iterator
from typing import Any

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


@pytest.mark.parametrize("slow, quicker", [(torch.bfloat16, "fp32"), (torch.float32, "bf16")])
def test_the_quicker_precision_is_that_of_the_faster_convolution(slow, quicker, monkeypatch) -> None:
    convolve = torch.nn.functional.conv2d

    def slowed(images: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        time.sleep(0.2 if images.dtype == slow else 0)
        return convolve(images, *args, **options)

    monkeypatch.setattr(torch.nn.functional, "conv2d", slowed)
    assert cpu.quicker_precision() == quicker


@pytest.mark.parametrize("precision, quicker, told", [("bf16", "fp32", 1), ("bf16", "bf16", 0), ("fp32", "fp32", 0)])
def test_a_cpu_that_is_slower_in_bf16_gets_a_warning(precision, quicker, told, arguments, monkeypatch, caplog) -> None:
    monkeypatch.setattr(cpu, "quicker_precision", lambda: quicker)
    settings = config_cli.load(arguments(train__precision=precision))
    process_group.start(settings.train, Rendezvous())
    assert [r.message.count("--train.precision fp32") for r in caplog.records] == [1] * told
