"""accelerate launch: the threads of its processes, and a group that it fails to start."""

import os
import sys
from pathlib import Path

import pytest

from helpers.program import ACCELERATE, REPO, TORCHRUN, launch

THREADS = (
    "import os, torch; from tinyimnet.distributed import cpu; cpu.share_cores(1); "
    "print('threads', torch.get_num_threads())"
)


def accelerate(*arguments: str, **environment: str):
    """Run `accelerate launch`."""
    return launch([sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *arguments], **environment)


@pytest.fixture
def thread_script(tmp_path):
    path = tmp_path / "threads.py"
    path.write_text(f"import sys; sys.path.insert(0, {str(REPO)!r}); {THREADS}")
    return str(path)


def test_accelerate_launch_uses_all_cores(thread_script: str, monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    result = accelerate("--num_processes", "1", thread_script)
    assert f"threads {len(os.sched_getaffinity(0))}" in result.stdout, result.stderr


@pytest.mark.long
def test_a_number_of_threads_that_the_user_set_is_kept(thread_script: str, monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert "threads 1" in accelerate("--num_processes", "1", thread_script, OMP_NUM_THREADS="1").stdout


@pytest.mark.parametrize(
    "launcher",
    [[*TORCHRUN, "--nproc_per_node", "2"], [*ACCELERATE, "--multi_gpu", "--num_processes", "2"]],
    ids=["torchrun", "accelerate"],
)
def test_the_output_of_a_failed_launcher_ends_with_the_sentence(launcher: list[str], arguments) -> None:
    result = launch([*launcher, "train.py", *arguments(run__seed=-1)])
    *_, last, border = result.stderr.splitlines()
    assert last.strip() == "traceback : error: run.seed is -1 and must be between 0 and 2**63 - 1."
    assert set(border) == {"="}


@pytest.mark.parametrize("tool, multi_gpu", [("", False), ("nvidia-smi", True), ("rocm-smi", True)])
def test_make_train_uses_a_launcher_only_where_there_are_gpus(tool: str, multi_gpu: bool, tmp_path: Path) -> None:
    if tool:
        (tmp_path / tool).write_text("#!/bin/sh\n")
        (tmp_path / tool).chmod(0o755)
    result = launch(["make", "--no-print-directory", "--dry-run", "train"], PATH=f"{tmp_path}:/usr/bin:/bin")
    train = result.stdout.rpartition("touch .venv/.installed\n")[2]
    assert ("accelerate launch --quiet --multi_gpu" in train) == multi_gpu
    assert train.rstrip().endswith("python train.py --config configs/smoke.yaml")


def test_accelerate_launch_that_starts_one_process_of_two_is_refused(arguments, monkeypatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    result = accelerate("--quiet", "--cpu", "--num_processes", "2", "train.py", *arguments())
    assert "error: accelerate launch was asked for several processes but started one" in result.stderr
    assert "Traceback" not in result.stderr
