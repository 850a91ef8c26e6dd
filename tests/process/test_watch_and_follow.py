"""`tinyimnet status --watch` and `tinyimnet logs --follow` in a terminal, and how they react to Ctrl-C."""

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from helpers.program import REPO
from helpers.run_folders import sent


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    """Return a function that starts a tool with SIGINT as in a terminal; kill what still runs at the end."""
    started = []

    def start(name: str, *arguments: object, stdout: object) -> subprocess.Popen:
        command = [sys.executable, "-m", "tinyimnet", name, *map(str, arguments)]
        process = subprocess.Popen(
            command, cwd=REPO, stdout=stdout, stderr=subprocess.PIPE, text=True,  # type: ignore[call-overload]
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, f"timed out waiting for {what}"
        time.sleep(0.05)


def interrupt(process: subprocess.Popen) -> None:
    """Press Ctrl-C, and assert that the process exits at once with code 0 and without a message."""
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (0, "")


def test_watch_prints_a_table_each_time_without_a_terminal(make_run, start, tmp_path) -> None:
    out = tmp_path / "out"
    with out.open("w") as file:
        process = start("status", make_run("a"), "--watch", "--interval", 1, stdout=file)
    wait_for(lambda: out.read_text().count("runs at") >= 2, "a second table")
    assert "\x1b" not in out.read_text()
    interrupt(process)


def test_watch_redraws_on_a_terminal_and_sees_a_new_run(make_run, start, tmp_path) -> None:
    make_run("first")
    ours, theirs = pty.openpty()
    process = start("status", tmp_path / "runs", "--watch", "--interval", 1, stdout=theirs)
    os.close(theirs)
    seen = b""
    while b"second" not in seen:  # raises OSError if the process ends
        seen += os.read(ours, 1000)
        if b"first" in seen and not (tmp_path / "runs" / "second").exists():
            make_run("second")
    assert b"\x1b[1A" in seen  # the cursor moved up over the previous table
    interrupt(process)
    os.close(ours)


def test_follow_shows_added_lines_and_new_files_until_the_run_is_done(make_run, start, tmp_path) -> None:
    run, out = make_run("a", job__json=sent("1", output=str(tmp_path / "slurm.out"))), tmp_path / "out"
    (run / "logs" / "rank_0.log").write_text("old\nnew\nha")
    with out.open("w") as file:
        process = start("logs", run, "-f", "--lines", 2, stdout=file)
    wait_for(lambda: "[0] new\n" in out.read_text(), "the lines that were there")
    with (run / "logs" / "rank_0.log").open("a") as file:
        file.write("lf\n")
    (run / "logs" / "rank_1.log").write_text("another process\n")
    (tmp_path / "slurm.out").write_text("from Slurm\n")
    wait_for(lambda: "[slurm] from Slurm\n" in out.read_text(), "a file that appears later")
    (run / "logs" / "rank_0.log").write_text("anew\n")  # shorter: the file was restarted
    wait_for(lambda: "[0] anew\n" in out.read_text(), "a file that was restarted")
    (run / "logs" / "rank_1.log").write_text("another process\nthe end")
    (run / "DONE").write_text("{}")
    assert process.wait(timeout=30) == 0
    lines = out.read_text().splitlines()
    assert sorted(lines) == sorted(
        ["[0] new", "[0] half", "[1] another process", "[slurm] from Slurm", "[0] anew", "[1] the end"]
    )


def test_follow_waits_for_the_first_log_and_ends_with_ctrl_c(make_run, start, tmp_path) -> None:
    run, out = make_run("a", config=None, job__json=sent("1")), tmp_path / "out"
    with out.open("w") as file:
        process = start("logs", run, "--follow", stdout=file)
    assert "has no logs yet" in process.stderr.readline()
    (run / "logs" / "rank_0.log").write_text("at last\n")
    wait_for(lambda: out.read_text() == "[0] at last\n", "the first log")
    interrupt(process)
