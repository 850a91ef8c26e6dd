"""If one process of a group dies, fails or hangs, the others soon exit with an error, and a log names the first."""

import ctypes
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from helpers.program import ACCELERATE, REPO, TORCHRUN, launch
from helpers.trainings import Death, assert_same_end, at_step, run_to_end, start, wait
from tinyimnet.distributed import watchdog
from tinyimnet.run import checkpoint

BOUND = 30  # seconds within which all processes must have started and ended


def raise_there() -> None:
    def out_of_memory() -> None:
        raise MemoryError("no memory for a test")

    if os.environ["RANK"] == "1":
        at_step(5, out_of_memory)


def fail_on_rank_0() -> None:
    if os.environ["RANK"] == "0":
        at_step(5, failing)


def hang_there() -> None:
    if os.environ["RANK"] == "1":
        at_step(5, lambda: os.kill(os.getpid(), signal.SIGSTOP))


def logs(run: Path) -> dict[int, str]:
    return {rank: (run / "logs" / f"rank_{rank}.log").read_text() for rank in range(2)}


def test_a_killed_process_ends_the_group(arguments, tmp_path: Path) -> None:
    codes = run_to_end(arguments(), tmp_path / "log", processes=2, death=Death("step", 5, rank=1), timeout=BOUND)
    assert codes == [1, -9]
    assert "another process of the group is gone or stuck" in logs(tmp_path / "run")[0]
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_an_exception_ends_the_group_and_its_own_log_has_the_traceback(arguments, tmp_path: Path) -> None:
    codes = run_to_end(arguments(), tmp_path / "log", processes=2, before=raise_there, timeout=BOUND)
    assert codes == [1, 1]
    assert "MemoryError: no memory for a test" in logs(tmp_path / "run")[1]
    assert "another process of the group is gone" in logs(tmp_path / "run")[0]
    assert (tmp_path / "log").read_text().count("Traceback") == 1


def test_the_error_of_rank_0_is_not_buried_under_stack_traces_of_its_store(arguments, tmp_path: Path) -> None:
    codes = run_to_end(arguments(), tmp_path / "log", processes=2, before=fail_on_rank_0, timeout=BOUND)
    assert codes == [1, 1]
    assert "TCPStore" not in (tmp_path / "log").read_text()


def test_a_process_that_hangs_ends_the_others_after_the_timeout(arguments, tmp_path: Path) -> None:
    ranks = start(arguments(train__timeout=2), tmp_path / "log", processes=2, before=hang_there)
    try:
        assert wait(ranks[:1], timeout=BOUND + 2) == [1]
        assert "gone or stuck (Timed out" in logs(tmp_path / "run")[0]
    finally:
        ranks[1].kill()
        ranks[1].join()


def test_after_an_exception_the_same_command_finishes_the_run(arguments, tmp_path: Path) -> None:
    run_to_end(arguments(), tmp_path / "log", processes=2, before=raise_there, timeout=BOUND)
    assert run_to_end(arguments(), tmp_path / "log", processes=2) == [0, 0]
    assert (tmp_path / "run" / "DONE").exists()


def test_a_group_records_a_profile_of_rank_0_and_keeps_its_bits(arguments, tmp_path: Path) -> None:
    for name, steps in (("plain", 0), ("profiled", 1)):
        command = arguments(run__dir=tmp_path / name, run__profile=steps)
        assert run_to_end(command, tmp_path / "log", processes=2) == [0, 0]
    assert_same_end(tmp_path / "plain", tmp_path / "profiled")
    assert (tmp_path / "log").read_text().count("profile of 1 step: data ") == 1


# ---- a main thread that waits in C for a process that is gone, as with NCCL -----------------------------------------


def wait_in_c() -> None:
    """Wait for ever in C: neither a signal nor the end of another process ends the call."""
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    print("waiting in C", flush=True)
    for _ in range(2):
        libc.pthread_mutex_lock(mutex)


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def failing() -> None:
    raise MemoryError("no memory for a test")


def asked_to_stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def rank_0_waits_in_c_and_rank_1_is(event: Callable[[], None], lease: float = 3.0) -> None:
    watchdog.BEAT, watchdog.LEASE, watchdog.GRACE, watchdog.STUCK = 0.1, lease, 0.5, 2.0
    at_step(9, event if os.environ["RANK"] == "1" else wait_in_c)


@pytest.mark.parametrize(
    "event, codes, sentence",
    [
        (failing, [1, 1], "rank 1 failed"),
        (killed, [1, -9], "rank 1 sent no heartbeat for 3 s"),
        (asked_to_stop, [1, 1], "rank 1 does not respond to a stop request"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_main_thread_that_waits_in_c_does_not_keep_its_process(event, codes, sentence, arguments, tmp_path) -> None:
    before = partial(rank_0_waits_in_c_and_rank_1_is, event)
    assert run_to_end(arguments(), tmp_path / "log", processes=2, before=before, timeout=BOUND) == codes
    assert f"another process of the group is gone or stuck ({sentence}" in logs(tmp_path / "run")[0]


def test_a_stop_request_ends_a_process_that_waits_in_c_for_one_that_hangs(arguments, tmp_path: Path) -> None:
    before = partial(rank_0_waits_in_c_and_rank_1_is, wait_in_c, lease=60.0)
    ranks = start(arguments(), tmp_path / "log", processes=2, before=before)
    while not (tmp_path / "log").exists() or (tmp_path / "log").read_text().count("waiting in C") < 2:
        time.sleep(0.02)
    os.kill(ranks[0].pid, signal.SIGTERM)
    assert wait(ranks, timeout=BOUND) == [1, 1]
    assert "rank 0 does not respond to a stop request" in logs(tmp_path / "run")[0]


def test_after_it_the_same_command_comes_to_the_same_end(arguments, tmp_path: Path) -> None:
    before = partial(rank_0_waits_in_c_and_rank_1_is, killed)
    assert run_to_end(arguments(), tmp_path / "log", processes=2, before=before, timeout=BOUND) == [1, -9]
    assert not list((tmp_path / "run").rglob("*.partial")) and checkpoint.load_newest(tmp_path / "run/checkpoints")
    assert run_to_end(arguments(), tmp_path / "log", processes=2) == [0, 0]
    assert run_to_end(arguments(run__dir=tmp_path / "untouched"), tmp_path / "log", processes=2) == [0, 0]
    assert_same_end(tmp_path / "untouched", tmp_path / "run")


SCRIPT = """
import os, sys
sys.path[:0] = ["{repo}", "{repo}/tests"]
from helpers.trainings import at_step
from process import test_group
from tinyimnet import errors, train
from tinyimnet.distributed.process_group import exit_process
at_step(9, test_group.{event} if os.environ["RANK"] == "1" else test_group.wait_in_c)
exit_process(errors.run(train.main, sys.argv[1:]))
"""


@pytest.mark.long
@pytest.mark.parametrize(
    "launcher",
    [
        [*TORCHRUN, "--nproc_per_node", "2"],
        [*ACCELERATE, "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"],
    ],
)
@pytest.mark.parametrize("event", ["failing", "killed", "asked_to_stop"])
def test_under_a_launcher_too_before_it_resorts_to_sigkill(event: str, launcher, arguments, tmp_path: Path) -> None:
    """After 30 s, torchrun and accelerate launch kill the processes that did not respond to their SIGTERM."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(repo=REPO, event=event))
    result = launch([*launcher, str(script), *arguments()], WANDB_MODE="disabled")
    assert result.returncode == 1
    assert "rank 0: another process of the group is gone or stuck" in result.stderr
    assert "Sending process" not in result.stderr or "via SIGKILL" not in result.stderr
