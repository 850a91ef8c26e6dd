"""A stop request sets a flag, on which the training loop acts."""

import os
import signal
import time
from pathlib import Path

import pytest

from tinyimnet.distributed import launcher, preemption, slurm
from tinyimnet.distributed.preemption import StopRequest


class OneProcess:
    num_processes = 1


def test_without_a_job_end_time_there_is_no_deadline() -> None:
    assert slurm.end_of_job({}) == slurm.end_of_job({"SLURM_JOB_END_TIME": ""}) == float("inf")
    assert slurm.end_of_job({"SLURM_JOB_END_TIME": "1700000000"}) == 1.7e9


@pytest.mark.parametrize("number", preemption.SIGNALS, ids=lambda number: number.name)
def test_a_signal_only_sets_the_stop_request(number: signal.Signals, tmp_path: Path) -> None:
    stop = StopRequest(tmp_path)
    stop.install()
    assert stop.agreed(OneProcess()) == ""
    os.kill(os.getpid(), number)
    assert stop.agreed(OneProcess()) == number.name


def test_a_second_ctrl_c_leaves_at_once_unless_it_is_an_echo_of_the_first(tmp_path: Path, monkeypatch) -> None:
    stop = StopRequest(tmp_path)
    stop.install()
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)  # from the launcher's agent, milliseconds later
    now = time.monotonic()
    monkeypatch.setattr(preemption.time, "monotonic", lambda: now + 2)
    left = []
    monkeypatch.setattr(preemption.os, "_exit", left.append)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.1)
    assert left == [130]


def test_a_stop_file_is_a_stop_request(tmp_path: Path, monkeypatch) -> None:
    stop = StopRequest(tmp_path)
    now = time.monotonic()
    monkeypatch.setattr(preemption.time, "monotonic", lambda: now + 2)  # it checks once per second
    assert stop.agreed(OneProcess()) == ""
    (tmp_path / "STOP").touch()
    monkeypatch.setattr(preemption.time, "monotonic", lambda: now + 4)
    assert stop.agreed(OneProcess()) == "a STOP file in the run folder"


@pytest.mark.parametrize(
    "reason, again",
    [("SIGINT", False), ("a STOP file in the run folder", False), ("SIGTERM", True), ("SIGUSR1", True),
     ("SIGUSR2", True), ("SIGHUP", True), ("the exit of the launcher", True), ("the job's time limit", True)],
)  # fmt: skip
def test_a_stop_by_a_person_is_not_requeued(reason: str, again: bool) -> None:
    assert preemption.wants_requeue(reason) == again


def test_sighup_stays_ignored_under_nohup(tmp_path: Path) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = StopRequest(tmp_path)
    stop.install()
    os.kill(os.getpid(), signal.SIGHUP)
    assert stop.agreed(OneProcess()) == ""


@pytest.mark.parametrize("variable", launcher.SET_BY_LAUNCHERS)
def test_a_parent_that_set_a_launchers_variable_is_a_launcher(variable: str) -> None:
    assert launcher.launcher_pid({"PATH": "/bin", variable: "0"}) == os.getppid()
    assert launcher.launcher_pid({"PATH": "/bin"}) == 0


def test_a_shell_in_an_srun_step_is_not_a_launcher(monkeypatch) -> None:
    monkeypatch.setattr(launcher, "launcher_environment", lambda: {"SLURM_PROCID": "0"})
    assert launcher.launcher_pid({"SLURM_PROCID": "0"}) == 0


def test_the_exit_of_the_launcher_is_a_stop_request(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    stop = StopRequest(tmp_path)
    monkeypatch.setattr(preemption.os, "getppid", lambda: 1)
    assert stop.agreed(OneProcess()) == "the exit of the launcher"


# ---- whether a loop responds, for the watchdog -----------------------------------------------------------------------


def loop_with_steps_of(seconds: float, tmp_path: Path, monkeypatch) -> StopRequest:
    """Return the stop request of a loop whose third step began at a time of 2 * seconds."""
    now = 0.0
    monkeypatch.setattr(preemption.time, "monotonic", lambda: now)
    stop = StopRequest(tmp_path)
    for _ in range(2):
        stop.agreed(OneProcess())
        now += seconds
        stop.alive()
    stop.agreed(OneProcess())
    return stop


@pytest.mark.parametrize("step, patience", [(0.1, 10), (3, 10), (20, 60)])
def test_a_request_is_ignored_after_ten_seconds_or_three_steps(step, patience, tmp_path, monkeypatch) -> None:
    stop = loop_with_steps_of(step, tmp_path, monkeypatch)
    requested = 2 * step
    assert not stop.ignored_for(requested, requested + 0.99 * patience, at_least=10)
    assert stop.ignored_for(requested, requested + 1.01 * patience, at_least=10)


def test_without_a_request_nothing_is_ignored(tmp_path: Path, monkeypatch) -> None:
    assert not loop_with_steps_of(0.1, tmp_path, monkeypatch).ignored_for(float("inf"), 1e6, at_least=10)


def test_the_first_step_may_take_any_time_because_it_may_compile(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(preemption.time, "monotonic", lambda: 0.0)
    stop = StopRequest(tmp_path)
    stop.agreed(OneProcess())
    assert not stop.ignored_for(0.0, 1000.0, at_least=10)


def test_after_the_last_step_no_request_is_ignored(tmp_path: Path, monkeypatch) -> None:
    stop = loop_with_steps_of(0.1, tmp_path, monkeypatch)
    stop.end_loop()
    stop.alive()  # a batch of the final evaluation
    assert not stop.ignored_for(0.2, 1000.0, at_least=10)
