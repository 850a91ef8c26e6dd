"""`tinyimnet status --watch`, `logs --follow` and `tensorboard --follow`, and how they react to Ctrl-C."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.program import REPO
from helpers.run_folders import logged, sent
from tinyimnet.files import write_atomically


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    """Return a function that starts a tool with SIGINT as in a terminal.

    At the end, kill what still runs and print its messages: they say why a test waited in vain.
    """
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
        if not process.stderr.closed:
            print(process.stderr.read(), file=sys.stderr)


def finish(run: Path) -> None:
    """Write DONE as the program does; one that the tool reads before it has its content counts as damaged."""
    write_atomically(run / "DONE", "{}")


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, f"timed out waiting for {what}"
        time.sleep(0.05)


def interrupt(process: subprocess.Popen) -> None:
    """Press Ctrl-C, and assert that the process exits at once with code 0 and without a message."""
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
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
    with (run / "logs" / "rank_1.log").open("a") as file:
        file.write("the end")
    finish(run)
    assert process.wait(timeout=120) == 0
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


def steps_in(folder: Path) -> list[int]:
    """The steps of the training loss in the event files of a folder."""
    events = EventAccumulator(str(folder)).Reload() if folder.exists() else None
    return [event.step for event in events.Scalars("train/loss")] if events and events.Tags()["scalars"] else []


def test_event_files_follow_two_runs_until_both_are_finished(make_run, start, tmp_path) -> None:
    runs, tb = [make_run(name, metrics__jsonl=[logged(10)]) for name in ("a", "b")], tmp_path / "tb"
    process = start("tensorboard", *runs, "--out", tb, "--follow", stdout=subprocess.PIPE)
    assert process.stdout.readline() == f"{tb}: 2 runs; show with: tensorboard --logdir {tb}\n"
    finish(runs[0])
    with (runs[1] / "metrics.jsonl").open("a") as rows:
        rows.write(json.dumps(logged(20)) + "\n" + json.dumps(logged(30))[:9])  # the last row is not whole yet
    wait_for(lambda: steps_in(tb / "b") == [10, 20], "a new row")
    assert process.poll() is None
    with (runs[1] / "metrics.jsonl").open("a") as rows:
        rows.write(json.dumps(logged(30))[9:] + "\n")
    finish(runs[1])
    assert process.wait(timeout=120) == 0
    assert (steps_in(tb / "a"), steps_in(tb / "b")) == ([10], [10, 20, 30])


def test_event_files_wait_for_the_first_row_and_end_with_ctrl_c(make_run, start, tmp_path) -> None:
    run = make_run("a")
    process = start("tensorboard", run, "--out", tmp_path / "tb", "-f", stdout=subprocess.PIPE)
    assert process.stdout.readline()
    (run / "metrics.jsonl").write_text(json.dumps(logged(10)) + "\n")
    wait_for(lambda: steps_in(tmp_path / "tb" / "a") == [10], "the first row")
    interrupt(process)
