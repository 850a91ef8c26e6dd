"""A stop request, under any launcher and on any rank, makes all ranks save once and exit; no process is left."""

import html
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.program import ACCELERATE, REPO, TORCHRUN
from helpers.trainings import assert_same_end, at_step, last_step, run_to_end, start, wait
from tinyimnet.distributed import preemption
from tinyimnet.files import read_lines
from tinyimnet.launch import runs
from tinyimnet.report import one_run
from tinyimnet.run import checkpoint
from tinyimnet.run.record import read_record

BOUND = 10  # seconds from the request to the end of all processes; Slurm's KillWait is 30
# Longer than any test; every second step is logged, so that a test can act in mid-run.
ENDLESS = {"train__epochs": 1000, "run__eval_every": 1000, "run__save_every": 100_000, "run__log_every": 2}
SHORT = {"train__epochs": 16, "run__eval_every": 4, "run__log_every": 2}
SIGNALS = pytest.mark.parametrize("number", preemption.SIGNALS, ids=lambda number: number.name)


def until_step(run: Path, step: int) -> None:
    """Wait until the run has logged a step."""
    deadline = time.monotonic() + 120
    while not any(line["trainer/global_step"] >= step for line in read_lines(run / "metrics.jsonl")):
        assert time.monotonic() < deadline, "the training did not start"
        time.sleep(0.02)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def assert_saved(run: Path, output: str, reason: str) -> None:
    assert f"stopped by {reason}: saved at step {last_step(run)}; rerun the same command to resume" in output
    assert checkpoint.load_newest(run / "checkpoints")["step"] == last_step(run) > 0
    by_a_person = reason in ("SIGINT", "a STOP file in the run folder")
    assert (run / "REQUEUE").exists() != by_a_person
    assert not (run / "DONE").exists() and not (run / "LOCK").exists()
    assert_one_word(run)


def assert_one_word(run: Path) -> None:
    """The run printed "stopped", whoever asked; `tinyimnet status` and the report must not call it something else."""
    record = read_record(run)
    assert runs.state_of(record, {}, {}) == "stopped"
    assert f">stopped</b>, {record.state_in_words()}" in html.unescape(one_run.page(record))


@SIGNALS
def test_a_signal_to_one_rank_stops_all(number: signal.Signals, arguments, tmp_path: Path) -> None:
    ranks = start(arguments(**ENDLESS), tmp_path / "log", processes=2)
    until_step(tmp_path / "run", 4)
    os.kill(ranks[1].pid, number)
    assert wait(ranks, BOUND) == [0, 0]
    output = (tmp_path / "log").read_text()
    assert_saved(tmp_path / "run", output, number.name)


def test_a_stop_file_stops_all_ranks(arguments, tmp_path: Path) -> None:
    ranks = start(arguments(**ENDLESS), tmp_path / "log", processes=2)
    until_step(tmp_path / "run", 4)
    (tmp_path / "run" / "STOP").touch()
    assert wait(ranks, BOUND) == [0, 0]
    assert_saved(tmp_path / "run", (tmp_path / "log").read_text(), "a STOP file in the run folder")


def test_a_stop_file_created_between_two_attempts_is_obeyed(arguments, tmp_path: Path) -> None:
    run, log, job = tmp_path / "run", tmp_path / "log", {"SLURM_JOB_ID": "7"}
    ranks = start(arguments(**ENDLESS), log, environment=job)
    until_step(run, 4)
    ranks[0].terminate()
    assert wait(ranks, BOUND) == [0]
    (run / "STOP").touch()
    assert run_to_end(arguments(**ENDLESS), log, environment=job | {"SLURM_RESTART_COUNT": "1"}) == [0]
    assert_saved(run, log.read_text(), "a STOP file in the run folder")


def job_that_nears_its_end() -> None:
    """Let the job end in 1,000 s; after 6 steps, change the clock so that 90 s remain."""
    os.environ["SLURM_JOB_END_TIME"] = str(int(time.time()) + 1000)
    later = SimpleNamespace(time=lambda: time.time() + 910, monotonic=time.monotonic)
    at_step(6, lambda: setattr(preemption, "time", later))


def test_the_end_of_the_jobs_time_stops_it_ahead_of_it(arguments, tmp_path: Path) -> None:
    options = arguments(**ENDLESS, run__stop_before_end=100)
    assert run_to_end(options, tmp_path / "log", before=job_that_nears_its_end) == [0]
    assert last_step(tmp_path / "run") == 6
    assert_saved(tmp_path / "run", (tmp_path / "log").read_text(), "the job's time limit")


def test_a_stopped_run_resumes_bit_identically(arguments, tmp_path: Path) -> None:
    untouched, run, log = tmp_path / "untouched", tmp_path / "run", tmp_path / "log"
    assert run_to_end(arguments(**SHORT, run__dir=untouched), log) == [0]
    ranks = start(arguments(**SHORT), log)
    until_step(run, 7)
    ranks[0].terminate()
    assert wait(ranks) == [0]
    assert_saved(run, log.read_text(), "SIGTERM")
    assert run_to_end(arguments(**SHORT), log) == [0]
    assert "resumed at step" in log.read_text()
    assert not (run / "REQUEUE").exists()
    assert_same_end(untouched, run)


def slow_save() -> None:
    checkpoint.save = lambda *_, **__: time.sleep(60)


def test_a_second_ctrl_c_leaves_at_once(arguments, tmp_path: Path) -> None:
    ranks = start(arguments(**ENDLESS), tmp_path / "log", before=slow_save)
    until_step(tmp_path / "run", 4)
    os.kill(ranks[0].pid, signal.SIGINT)
    time.sleep(1.2)  # within a second, it would count as an echo of the first
    assert ranks[0].is_alive()
    os.kill(ranks[0].pid, signal.SIGINT)
    assert wait(ranks, timeout=2) == [130]
    assert "second Ctrl-C: exiting without saving" in (tmp_path / "log").read_text()


# ---- launchers ----------------------------------------------------------------------------------------------------

ONE = [*ACCELERATE, "--num_processes", "1"]
TWO = [*ACCELERATE, "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
FORWARDING = {"PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGUSR1,SIGUSR2", "PET_SHUTDOWN_TIMEOUT": "120"}
LAUNCHERS = {
    "accelerate, 1 process": (ONE, {}),
    "accelerate, 2 processes": (TWO, {}),
    "accelerate, 2 processes, forwarding": (TWO, FORWARDING),
    "torchrun, 2 processes": ([*TORCHRUN, "--nproc_per_node", "2"], {}),
}


def take_sigint() -> None:
    """Handle SIGINT again: a shell ignores it for background commands and all that they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def signal_launcher(launcher: str, number: signal.Signals, arguments: list[str], run: Path) -> str:
    """Start a training, signal its launcher, wait until all processes have ended, and return their output."""
    command, environment = LAUNCHERS[launcher]
    process = subprocess.Popen(
        [*command, "train.py", *arguments], cwd=REPO, env=os.environ | environment | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, preexec_fn=take_sigint,
    )  # fmt: skip
    try:
        until_step(run, 4)
        process.send_signal(number)
        return process.communicate(timeout=BOUND)[0]  # returns when the last process has closed the pipe
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    "launcher, number",
    [
        ("accelerate, 1 process", signal.SIGKILL),
        # Kills the launcher, which does not forward the signal.
        pytest.param("accelerate, 2 processes", signal.SIGUSR1, marks=pytest.mark.long),
        ("accelerate, 2 processes, forwarding", signal.SIGUSR1),
    ],
)
def test_a_signal_to_the_launcher_saves_and_leaves_no_worker_behind(
    launcher: str, number: signal.Signals, arguments, tmp_path: Path
) -> None:
    output = signal_launcher(launcher, number, arguments(**ENDLESS), tmp_path / "run")
    forwarded = "forwarding" in launcher
    assert_saved(tmp_path / "run", output, number.name if forwarded else "the exit of the launcher")


# ---- a training that outlives its shell ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix", ["nohup", *(pytest.param(prefix, marks=pytest.mark.long) for prefix in ("", "setsid nohup"))]
)
def test_a_training_in_the_background_outlives_the_shell_that_started_it(
    prefix: str, arguments, tmp_path: Path
) -> None:
    """As after `ssh HOST 'nohup python train.py &'`, a log-out, or the end of a script that starts the training."""
    run, log = tmp_path / "run", tmp_path / "log"
    command = shlex.join([sys.executable, "train.py", *arguments(**ENDLESS)])
    shell = subprocess.Popen(
        ["bash", "-c", f'{prefix} {command} >"$1" 2>&1 </dev/null & echo $!; read', "_", str(log)],
        cwd=REPO, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    training = int(shell.stdout.readline())
    until_step(run, 4)
    shell.communicate("")  # ends the shell
    until_step(run, read_lines(run / "metrics.jsonl")[-1]["trainer/global_step"] + 50)
    os.kill(training, signal.SIGTERM)
    wait_for(lambda: not (run / "LOCK").exists())
    assert_saved(run, log.read_text(), "SIGTERM")


@pytest.mark.long
@SIGNALS
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_signal_to_every_launcher_saves_and_leaves_no_worker_behind(
    launcher: str, number: signal.Signals, arguments, tmp_path: Path
) -> None:
    output = signal_launcher(launcher, number, arguments(**ENDLESS), tmp_path / "run")
    assert f"saved at step {last_step(tmp_path / 'run')};" in output
    assert last_step(tmp_path / "run") > 0 and not (tmp_path / "run" / "LOCK").exists()


def test_ctrl_c_under_accelerate_launch_saves(arguments, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(
        [*ONE, "train.py", *arguments(**ENDLESS)], cwd=REPO, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True, preexec_fn=take_sigint,
    )  # fmt: skip
    until_step(run, 3)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the launcher and to the worker
    process.wait(BOUND)
    assert last_step(run) and not (run / "REQUEUE").exists()
