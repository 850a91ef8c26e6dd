"""The lease on a run folder: acquired once, renewed, taken over from a dead holder, and released."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tinyimnet.errors import UserError
from tinyimnet.run import lock as lock_module
from tinyimnet.run.lock import RunLock, is_held

ELSEWHERE = {"token": "t", "host": "gpu07", "pid": 1, "started": "1", "machine": "another boot", "job": "55"}


@pytest.fixture(autouse=True)
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "BEAT", 0.1)
    monkeypatch.setattr(lock_module, "LEASE", 0.6)
    monkeypatch.setattr(lock_module, "ENDING", 0.3)
    monkeypatch.setattr(lock_module, "SETTLE", 0.1)


@contextmanager
def renewed(path: Path) -> Iterator[None]:
    """Renew a lock as a live holder on another machine does."""
    gone = threading.Event()

    def beat() -> None:
        while not gone.wait(0.05):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        gone.set()
        thread.join()


def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition is true; the deadline of 20 s allows for a busy machine."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_lock_that_another_machine_renews_is_respected(tmp_path: Path) -> None:
    (tmp_path / "LOCK").write_text(json.dumps(ELSEWHERE))
    refused = pytest.raises(UserError, match=r"in use by process 1 on gpu07 \(Slurm job 55\)")
    with renewed(tmp_path / "LOCK"), refused:
        RunLock(tmp_path).acquire()
    assert json.loads((tmp_path / "LOCK").read_text()) == ELSEWHERE


@pytest.mark.parametrize("content", [json.dumps(ELSEWHERE), "", "[1]", "{half"])
def test_a_lock_that_nobody_renews_is_taken_after_the_lease(content: str, tmp_path: Path) -> None:
    (tmp_path / "LOCK").write_text(content)
    started = time.monotonic()
    RunLock(tmp_path).acquire()
    assert time.monotonic() - started >= lock_module.LEASE
    assert json.loads((tmp_path / "LOCK").read_text())["pid"] == os.getpid()


def test_a_lock_released_during_the_wait_is_taken_at_once(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(lock_module, "LEASE", 30)
    (tmp_path / "LOCK").write_text(json.dumps(ELSEWHERE))
    threading.Timer(0.2, (tmp_path / "LOCK").unlink).start()
    started = time.monotonic()
    RunLock(tmp_path).acquire()
    assert time.monotonic() - started < lock_module.LEASE


def test_an_earlier_attempt_does_not_take_the_lock_back(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "LOCK").write_text(json.dumps({**ELSEWHERE, "restart": 1}))
    monkeypatch.setenv("SLURM_JOB_ID", "55")
    with renewed(tmp_path / "LOCK"), pytest.raises(UserError, match="in use by process 1"):
        RunLock(tmp_path).acquire()


def test_the_holder_renews_the_lock(tmp_path: Path) -> None:
    with RunLock(tmp_path) as lock:
        lock.acquire()
        for _ in range(2):
            before = lock.path.stat().st_mtime_ns
            until(lambda before=before: lock.path.stat().st_mtime_ns > before)


def test_a_reused_process_id_is_not_the_holder(tmp_path: Path) -> None:
    mine = RunLock(tmp_path)
    mine.acquire()
    holder = json.loads(mine.path.read_text())
    mine.release()
    mine.path.write_text(json.dumps({**holder, "started": "1"}))
    RunLock(tmp_path).acquire()


def test_a_live_holder_on_this_machine_has_some_time_to_end(tmp_path: Path, caplog) -> None:
    with RunLock(tmp_path) as holder:
        holder.acquire()
        started = time.monotonic()
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} on "):
            RunLock(tmp_path).acquire()
        assert time.monotonic() - started >= lock_module.ENDING
    assert f"LOCK is held by process {os.getpid()} on " in caplog.text
    assert "waiting up to 0 s for its end" in caplog.text


def test_a_lock_that_its_holder_releases_soon_is_taken(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(lock_module, "ENDING", 30)
    holder, mine = RunLock(tmp_path), RunLock(tmp_path)
    holder.acquire()
    threading.Timer(0.3, holder.release).start()
    mine.acquire()
    mine.check()


def test_a_lock_that_a_third_process_took_during_the_wait_is_respected(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(lock_module, "ENDING", 30)
    (tmp_path / "LOCK").write_text(json.dumps({**RunLock(tmp_path)._me, "token": "other"}))
    alive = iter([True, False])

    def taken_meanwhile(_holder: dict) -> bool:
        if still := next(alive):
            (tmp_path / "LOCK").write_text(json.dumps(ELSEWHERE))
        return still

    monkeypatch.setattr(lock_module, "_is_alive", taken_meanwhile)
    with pytest.raises(UserError, match="in use by process 1 on gpu07"):
        RunLock(tmp_path).acquire()


def test_only_one_of_several_simultaneous_takeovers_succeeds(tmp_path: Path) -> None:
    (tmp_path / "LOCK").write_text(json.dumps({**ELSEWHERE, "machine": lock_module._machine()}))
    locks = [RunLock(tmp_path) for _ in range(4)]
    refused: list[UserError] = []

    def acquire(lock: RunLock) -> None:
        try:
            lock.acquire()
        except UserError as error:
            refused.append(error)

    threads = [threading.Thread(target=acquire, args=[lock]) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 3


# ---- release ------------------------------------------------------------------------------------------------------


def test_a_released_lock_removes_an_empty_folder_that_it_created(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()  # created by someone else
    for name in ("empty", "refused", "begun"):
        with RunLock(tmp_path / name) as lock:
            lock.acquire()
            assert is_held(tmp_path / name)
            if name == "begun":
                (tmp_path / name / "config.yaml").touch()
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "begun", "begun/config.yaml", "empty",
    ]  # fmt: skip


def test_a_lock_that_was_never_acquired_leaves_the_file_of_another(tmp_path: Path) -> None:
    (tmp_path / "LOCK").write_text(json.dumps(ELSEWHERE))
    with RunLock(tmp_path):
        pass
    assert json.loads((tmp_path / "LOCK").read_text()) == ELSEWHERE


def test_a_lock_is_free_as_soon_as_its_holder_on_this_machine_is_dead(tmp_path: Path) -> None:
    with RunLock(tmp_path) as lock:
        lock.acquire()
        assert is_held(tmp_path)
        holder = json.loads((tmp_path / "LOCK").read_text())
        (tmp_path / "LOCK").write_text(json.dumps(holder | {"started": "1"}))  # its process id is that of another now
        assert not is_held(tmp_path)


@pytest.mark.parametrize("age, held", [(0, True), (0.4, True), (2, False)])
def test_a_lock_is_held_as_long_as_it_is_renewed(age: float, held: bool, tmp_path: Path) -> None:
    assert not is_held(tmp_path)
    (tmp_path / "LOCK").write_text(json.dumps(ELSEWHERE))
    os.utime(tmp_path / "LOCK", (time.time() - age, time.time() - age))
    assert is_held(tmp_path) == held


def test_a_removed_lock_is_noticed_and_stops_the_run(tmp_path: Path, monkeypatch) -> None:
    signals: list[tuple[int, int]] = []
    monkeypatch.setattr(lock_module.os, "kill", lambda *sent: signals.append(sent))
    with RunLock(tmp_path) as lock:
        lock.acquire()
        (tmp_path / "LOCK").unlink()
        with pytest.raises(UserError, match="is now locked by no process .its LOCK file was removed"):
            lock.check()
        until(lambda: bool(signals))
    assert signals == [(os.getpid(), signal.SIGTERM)]


def test_a_release_in_the_middle_of_a_renewal_sends_no_signal(tmp_path: Path, monkeypatch) -> None:
    signals: list[tuple[int, int]] = []
    monkeypatch.setattr(lock_module.os, "kill", lambda *sent: signals.append(sent))
    lock = RunLock(tmp_path)
    lock.acquire()
    check = lock.check

    def released_meanwhile() -> None:
        lock._released.set()
        lock.path.unlink(missing_ok=True)
        check()

    monkeypatch.setattr(lock, "check", released_meanwhile)
    lock._renew()
    assert signals == []
