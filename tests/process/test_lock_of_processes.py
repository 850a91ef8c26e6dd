"""One process at a time writes to a run folder, and a dead lock holder does not block others."""

import json
import os
import resource
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from helpers.trainings import Death, at_step, last_step, run_to_end, start, wait
from tinyimnet.run import checkpoint
from tinyimnet.run import lock as lock_module
from tinyimnet.run.lock import RunLock

ELSEWHERE = {"token": "t", "host": "gpu07", "pid": 1, "started": "1", "machine": "another boot", "job": "55"}


@pytest.fixture(autouse=True)
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "BEAT", 0.1)
    monkeypatch.setattr(lock_module, "LEASE", 0.6)
    monkeypatch.setattr(lock_module, "SETTLE", 0.1)


def impatient() -> None:
    lock_module.ENDING = 0.2


def test_a_second_run_in_the_same_folder_is_refused_and_the_first_goes_on(arguments, tmp_path: Path) -> None:
    first = start(arguments(train__epochs=12), tmp_path / "first")
    while not last_step(tmp_path / "run"):
        time.sleep(0.02)
    assert run_to_end(arguments(train__epochs=12), tmp_path / "second", before=impatient) == [2]
    waiting, error = (tmp_path / "second").read_text().splitlines()
    assert f"LOCK is held by process {first[0].pid} on " in waiting and "waiting up to 0 s for its end" in waiting
    assert error.startswith("error: run.dir ") and f"is in use by process {first[0].pid} on " in error
    assert wait(first) == [0]
    assert not (tmp_path / "run" / "LOCK").exists()


def test_all_ranks_of_a_second_run_exit_with_the_error(arguments, tmp_path: Path) -> None:
    mine = RunLock(tmp_path / "run")
    mine.path.parent.mkdir()
    mine.acquire()
    assert run_to_end(arguments(), tmp_path / "log", processes=2, before=impatient) == [2, 2]
    assert "is in use by process" in (tmp_path / "log").read_text()
    mine.release()


def stop_at_step_8_while_the_second_start_waits(second: Path) -> None:
    save = checkpoint.save

    def slow_save(*arguments, **options) -> None:
        while options["step"] == 8 and not (
            second.exists() and "waiting up to 15 s for its end" in second.read_text(encoding="utf-8")
        ):
            time.sleep(0.02)
        save(*arguments, **options)

    checkpoint.save = slow_save
    at_step(8, lambda: os.kill(os.getpid(), signal.SIGTERM))


def test_a_second_start_waits_for_a_run_that_is_about_to_end(arguments, tmp_path: Path) -> None:
    second = tmp_path / "second"
    first = start(arguments(), tmp_path / "first", before=partial(stop_at_step_8_while_the_second_start_waits, second))
    while not last_step(tmp_path / "run"):
        time.sleep(0.02)
    assert run_to_end(arguments(), second) == [0]
    assert wait(first) == [0]
    assert "resumed at step 8 of 12" in second.read_text()


def test_the_lock_of_a_killed_process_blocks_nobody(arguments, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(lock_module, "LEASE", 10)
    assert run_to_end(arguments(), tmp_path / "log", death=Death("step", 3)) == [-9]
    assert (tmp_path / "run" / "LOCK").exists()
    started = time.monotonic()
    RunLock(tmp_path / "run").acquire()
    assert time.monotonic() - started < lock_module.LEASE


def test_a_later_attempt_of_a_job_takes_the_lock_from_an_earlier_one(arguments, tmp_path: Path, monkeypatch) -> None:
    """Slurm declares a node lost if its slurmd or network is gone, but the processes there may still run."""
    job = {"SLURM_JOB_ID": "55"}
    earlier = start(arguments(train__epochs=500), tmp_path / "earlier", environment=job, before=quick_beat)
    while not last_step(tmp_path / "run"):
        time.sleep(0.02)
    monkeypatch.setattr(lock_module, "BEAT", 0.5)
    monkeypatch.setenv("SLURM_JOB_ID", "55")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    RunLock(tmp_path / "run").acquire()
    assert wait(earlier) == [2]
    assert "is now locked by process" in (tmp_path / "earlier").read_text()
    assert not (tmp_path / "run" / "ERROR").exists()


def test_a_disk_without_room_for_the_lock_keeps_no_partial_lock(arguments, tmp_path: Path) -> None:
    assert run_to_end(arguments(), tmp_path / "log", before=no_file_of_any_size) == [2]
    assert "cannot be written (File too large)" in (tmp_path / "log").read_text()
    assert not (tmp_path / "run" / "LOCK").exists()


def no_file_of_any_size() -> None:
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    acquire = RunLock.acquire

    def limited(lock: RunLock) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))
        try:
            acquire(lock)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    RunLock.acquire = limited  # type: ignore[method-assign]


def test_a_zombie_lock_holder_counts_as_dead(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    mine = RunLock(tmp_path)
    holder = {
        **mine._me,
        "pid": child,
        "started": (Path(f"/proc/{child}/stat").read_text(encoding="utf-8").split())[21],
    }
    mine.path.write_text(json.dumps(holder))
    mine.acquire()
    os.waitpid(child, 0)


def quick_beat() -> None:
    lock_module.BEAT = 0.1


def test_a_run_whose_folder_was_taken_over_stops_and_writes_nothing_more(arguments, tmp_path: Path) -> None:
    """A suspended job resumes after its lease ran out and another job took the folder."""
    run = tmp_path / "run"
    ranks = start(arguments(train__epochs=500, run__log_every=1000), tmp_path / "log", before=quick_beat)
    while not last_step(run):
        time.sleep(0.02)
    os.kill(ranks[0].pid, signal.SIGSTOP)
    (run / "LOCK").write_text(json.dumps(ELSEWHERE))
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.pt")}
    os.kill(ranks[0].pid, signal.SIGCONT)
    assert wait(ranks) == [2]
    assert "is now locked by process 1 on gpu07 (Slurm job 55)" in (tmp_path / "log").read_text()
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.pt")} == before
    assert json.loads((run / "LOCK").read_text()) == ELSEWHERE
