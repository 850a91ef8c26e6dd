"""launch.status, cancel, logs and summary: run folders are real files, Slurm's answers come from stubs on PATH."""

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
from conftest import REPO, python

from launch import cancel, logs, runs, status, summary
from tinyimnet import errors

STEP = "trainer/global_step"
URL = "https://wandb.ai/a-team-with-a-long-name/tiny-imagenet-1m/runs/ab12cd34"


class Slurm:
    """Commands on PATH that answer what a test says and count how often they are asked."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()

    def answer(self, command: str, *lines: str, code: int = 0) -> None:
        (self.folder / f"{command}.answer").write_text("".join(line + "\n" for line in lines))
        stub = self.folder / command
        stub.write_text(
            f"#!/bin/sh\necho \"$*\" >> '{stub}.calls'\n/bin/cat '{stub}.answer'\n"
            f"[ {code} = 0 ] || echo '{command}: error: slurm is away' >&2\nexit {code}\n"
        )
        stub.chmod(0o755)

    def calls(self, command: str) -> list[str]:
        file = self.folder / f"{command}.calls"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """The only folder on PATH: without an `answer` there is no Slurm, whatever the machine has."""
    slurm = Slurm(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(slurm.folder))
    return slurm


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Make a run folder with a configuration; more files are name=content, as text, JSON, or JSON lines."""

    def make(
        name: str, config: str | None = "train: {epochs: 3, global_batch_size: 100}\n", **files: object
    ) -> Path:
        path = tmp_path / "runs" / name
        (path / "logs").mkdir(parents=True)
        if config is not None:
            (path / "config.yaml").write_text(config)
        for file, content in files.items():
            if isinstance(content, list):
                content = "".join(json.dumps(line) + "\n" for line in content)
            text = content if isinstance(content, str) else json.dumps(content)
            (path / file.replace("__", ".")).write_text(text)
        return path

    return make


def life(
    job: str = "", *, started: float = 1000.0, step: int = 0, nodes: tuple[str, ...] = ("n1", "n2")
) -> dict:
    return {"started": started, "job": job, "restart": 0, "nodes": list(nodes), "processes": 4, "step": step,
            "total_steps": 5000}  # fmt: skip


def sent(job: str, *, submitted: float = 500.0, output: str = "") -> dict:
    return {"cluster": "slurm", "job": job, "submitted": submitted, "output": output}


def logged(step: int, **values: float) -> dict:
    return {STEP: step, "perf/images_per_s": 1234.5, "train/loss": 3.0, **values}


def ema(step: int, top1: float) -> dict:
    return {**logged(step), "val/ema_top1": top1}


def states(tmp_path: Path, capsys: pytest.CaptureFixture) -> dict[str, str]:
    """{run: state} as the table in tmp_path/runs shows it."""
    assert status.main([str(tmp_path / "runs")]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    names = {path.name for path in (tmp_path / "runs").iterdir()}
    return {row[0]: row[1] for row in rows if row and row[0] in names}


def row(path: Path, capsys: pytest.CaptureFixture) -> str:
    """The line of a run in the table, with single spaces."""
    assert status.main([str(path)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    return next(line for line in lines if line.startswith(path.name))


# ---- status: the state --------------------------------------------------------------------------------------


def test_without_slurm_the_folder_says_the_state(slurm, make_run, tmp_path, capsys) -> None:
    make_run("finished", DONE={}, LOCK={}, lives__jsonl=[life()])
    make_run("running", LOCK={}, REQUEUE="", lives__jsonl=[life()])
    make_run("stopped", REQUEUE="", lives__jsonl=[life()])
    make_run("asked", STOP="", lives__jsonl=[life()])
    dead = make_run("dead", LOCK={}, lives__jsonl=[life()])
    os.utime(dead / "LOCK", (time.time() - 40, time.time() - 40))
    make_run("submitted", config=None, job__json=sent("7"))
    assert states(tmp_path, capsys) == {
        "finished": "finished",
        "running": "running",
        "stopped": "stopped",
        "asked": "stopped",
        "dead": "ended",
        "submitted": "unknown",
    }


def test_slurm_says_the_state_of_its_jobs_array_ids_too(slurm, make_run, tmp_path, capsys) -> None:
    slurm.answer("squeue", "12_0|RUNNING|gpu-[1-2]", "12_1|PENDING|(Resources)", "12_10|CONFIGURING|gpu-3")
    slurm.answer("sacct", "12_2|CANCELLED by 1000", "12_3|NODE_FAIL", "12_4|COMPLETED", "13|PREEMPTED")
    for job in ("12_0", "12_1", "12_10", "12_2", "12_3", "12_4", "13"):
        make_run(f"r{job}", job__json=sent(job))
    assert states(tmp_path, capsys) == {
        "r12_0": "running",
        "r12_1": "pending",
        "r12_10": "configuring",
        "r12_2": "cancelled",
        "r12_3": "node_fail",
        "r12_4": "ended",
        "r13": "preempted",
    }


def test_a_job_that_waits_again_is_requeued(slurm, make_run, capsys) -> None:
    slurm.answer("squeue", "12|PENDING|(BeginTime)")
    assert "requeued (BeginTime)" in row(
        make_run("a", job__json=sent("12"), lives__jsonl=[life("12")]), capsys
    )


def test_finished_wins_over_slurm(slurm, make_run, tmp_path, capsys) -> None:
    slurm.answer("squeue", "12|RUNNING|n1", "14|RUNNING|n2")
    slurm.answer("sacct", "13|FAILED")
    make_run("a", DONE={}, job__json=sent("12"))
    make_run("b", DONE={}, job__json=sent("13"))
    make_run("c", job__json=sent("14"))  # for its sake Slurm is asked
    assert states(tmp_path, capsys) == {"a": "finished", "b": "finished", "c": "running"}


def test_cancelled_is_one_word(slurm, make_run, capsys) -> None:
    slurm.answer("squeue")
    slurm.answer("sacct", "12|CANCELLED by 1000")
    assert row(make_run("a", job__json=sent("12")), capsys) == "a cancelled - - - - - -"


def test_a_completed_job_that_is_not_finished_was_stopped(slurm, make_run, capsys) -> None:
    slurm.answer("squeue")
    slurm.answer("sacct", "12|COMPLETED")
    assert "stopped" in row(make_run("a", job__json=sent("12"), REQUEUE=""), capsys)


def test_the_later_of_submission_and_life_counts(slurm, make_run, capsys) -> None:
    slurm.answer("squeue", "13|PENDING|(Priority)")
    slurm.answer("sacct", "12|FAILED")
    by_hand = make_run("a", job__json=sent("12", submitted=500), lives__jsonl=[life("")], LOCK={})
    sent_again = make_run("b", job__json=sent("13", submitted=2000), lives__jsonl=[life("12")])
    assert "running" in row(by_hand, capsys)
    assert "pending" in row(sent_again, capsys)


def test_a_job_of_submitit_on_this_machine_is_not_looked_for_in_slurm(slurm, make_run, capsys) -> None:
    slurm.answer("squeue", "12|PENDING|(Priority)")
    assert "running" in row(make_run("a", job__json={**sent("12"), "cluster": "local"}, LOCK={}), capsys)
    assert slurm.calls("squeue") == []


def test_many_runs_are_one_call_of_squeue_and_one_of_sacct(slurm, make_run, tmp_path, capsys) -> None:
    slurm.answer("squeue", *[f"5_{i}|RUNNING|n{i}" for i in range(10)])
    slurm.answer("sacct", "6_0|TIMEOUT")
    for i in range(10):
        make_run(f"live{i}", job__json=sent(f"5_{i}"))
        make_run(f"over{i}", job__json=sent(f"6_{i}"))
    assert len(states(tmp_path, capsys)) == 20
    assert slurm.calls("squeue") == ["-h -r --me -o %i|%T|%R"]
    assert slurm.calls("sacct") == ["-X -n -P -o JobID,State -j " + ",".join(f"6_{i}" for i in range(10))]


def test_a_squeue_that_fails_is_named_and_the_folder_decides(slurm, make_run, capsys) -> None:
    slurm.answer("squeue", code=1)
    run = make_run("a", job__json=sent("12"), LOCK={})
    assert status.main([str(run)]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "running" in output
    assert "squeue failed (squeue: error: slurm is away)" in output


# ---- status: the other columns ------------------------------------------------------------------------------


def test_a_row_has_what_the_files_say(slurm, make_run, capsys) -> None:
    lives = [life("12", started=1000), life("12", started=2000, step=1000)]
    metrics = [logged(50), ema(1000, 44.5), ema(1200, 43.25), logged(1234)]
    run = make_run("a", lives__jsonl=lives, metrics__jsonl=metrics)
    assert row(run, capsys) == "a ended n1, n2 2 1,234 / 5,000 (24 %) 1,234 43.25 / 44.50 -"


def test_the_time_left_is_at_the_pace_of_this_life(make_run) -> None:
    run = runs.read_run(
        make_run(
            "a", lives__jsonl=[life(started=0), life(started=5000, step=1000)], metrics__jsonl=[logged(1500)]
        )
    )
    assert status.seconds_left(run, now=5100) == 3500 * 100 / 500


def test_before_the_first_step_of_a_life_the_time_left_is_from_images_a_second(make_run) -> None:
    metrics = [{STEP: 1000, "perf/images_per_s": 200.0}]
    run = runs.read_run(make_run("a", lives__jsonl=[life(step=1000)], metrics__jsonl=metrics))
    assert status.seconds_left(run, now=5100) == 4000 * 100 / 200


def test_the_time_left_counts_the_pixels_of_the_steps_to_come(make_run) -> None:
    config = "{train: {global_batch_size: 100}, augment: {start_size: 32, full_size_from: 0.5}}"
    files = {
        "lives__jsonl": [life(started=5000)],
        "metrics__jsonl": [{STEP: 600, "perf/images_per_s": 200.0}],
    }
    run = runs.read_run(make_run("a", config, **files))
    rest = 32**2 * 25 + 625 * (40**2 + 48**2 + 56**2) + 2500 * 64**2
    assert status.seconds_left(run, now=5600) == 600 * rest / (32**2 * 600)
    assert status.seconds_left(run, now=4000) == 100 / 200 * rest / 32**2


def test_the_time_left_is_hours_minutes_seconds(slurm, make_run, capsys) -> None:
    lives = [life(started=time.time() - 1000, step=0)]
    run = make_run("a", LOCK={}, lives__jsonl=lives, metrics__jsonl=[logged(1000)])
    assert row(run, capsys).endswith(" 1:06:40")


@pytest.mark.parametrize(
    "lives", [[life(nodes=("n1",))], [life(nodes=tuple(f"node{i:03}" for i in range(64)))]]
)
def test_the_url_is_whole_and_on_one_line(slurm, make_run, capsys, lives) -> None:
    run = make_run("a", wandb_run__json={"id": "ab12cd34", "url": URL}, lives__jsonl=lives)
    status.main([str(run)])
    assert any(URL in line for line in capsys.readouterr().out.splitlines())


def test_without_urls_there_is_no_word_of_wandb(slurm, make_run, capsys) -> None:
    status.main([str(make_run("a", wandb_run__json={"id": "ab12cd34"}))])
    assert "W&B" not in capsys.readouterr().out


DAMAGE = {
    "half lines": {
        "metrics__jsonl": json.dumps(logged(10)) + '\n{"trainer/global_st',
        "lives__jsonl": json.dumps(life()) + '\n{"started": 1',
    },
    "half files": {"job__json": '{"cluster": "slu', "wandb_run__json": '{"id', "DONE": "{", "LOCK": ""},
    "other things": {
        "metrics__jsonl": f'[1]\n3\n{{"{STEP}": null}}\n{{"{STEP}": 3, "perf/images_per_s": "fast"}}\n',
        "lives__jsonl": '{"started": null, "job": 1, "nodes": 3, "step": 0, "total_steps": 0}\n[]\n',
        "job__json": '{"cluster": "slurm", "job": null, "submitted": "now", "output": 3}',
        "wandb_run__json": "[]",
    },
    "no text": {"metrics__jsonl": "\x00\x00\n", "lives__jsonl": "\x00", "config": "\x00"},
    "no more files": {},
}


@pytest.mark.parametrize("files", DAMAGE.values(), ids=DAMAGE)
def test_what_a_crash_leaves_behind_is_passed_over(files: dict, slurm, make_run, capsys) -> None:
    assert row(make_run("a", **files), capsys)


def test_a_half_line_does_not_hide_the_whole_ones(slurm, make_run, capsys) -> None:
    assert "1 10 / 5,000 (0 %) 1,234" in row(make_run("a", **DAMAGE["half lines"]), capsys)


def test_runs_of_the_same_name_are_told_apart(slurm, make_run, capsys) -> None:
    status.main([str(make_run("x/a")), str(make_run("y/a"))])
    output = capsys.readouterr().out
    assert "x/a" in output and "y/a" in output


# ---- status: --watch ----------------------------------------------------------------------------------------


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    """Start `python -m launch.X ...`, with SIGINT as a terminal gives it; what still runs at the end is killed."""
    started = []

    def start(module: str, *arguments: object, stdout: object) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-m", f"launch.{module}", *map(str, arguments)], cwd=REPO, stdout=stdout,  # type: ignore[call-overload]
            stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
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
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.05)


def interrupt(process: subprocess.Popen) -> None:
    """Ctrl-C ends it at once, with exit code 0 and no word."""
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (0, "")


def test_watch_prints_a_table_each_time_where_there_is_no_terminal(slurm, make_run, start, tmp_path) -> None:
    out = tmp_path / "out"
    with out.open("w") as file:
        process = start("status", make_run("a"), "--watch", "--interval", 1, stdout=file)
    wait_for(lambda: out.read_text().count("runs at") >= 2, "a second table")
    assert "\x1b" not in out.read_text()
    interrupt(process)


def test_watch_redraws_on_a_terminal_and_sees_a_new_run(slurm, make_run, start, tmp_path) -> None:
    make_run("first")
    ours, theirs = pty.openpty()
    process = start("status", tmp_path / "runs", "--watch", "--interval", 1, stdout=theirs)
    os.close(theirs)
    seen = b""
    while b"second" not in seen:  # ends with OSError where the process does
        seen += os.read(ours, 1000)
        if b"first" in seen and not (tmp_path / "runs" / "second").exists():
            make_run("second")
    assert b"\x1b[1A" in seen  # the cursor went up over the table before
    interrupt(process)
    os.close(ours)


# ---- cancel -------------------------------------------------------------------------------------------------


def test_cancel_gives_a_job_of_slurm_to_scancel(slurm, make_run, capsys) -> None:
    slurm.answer("squeue", "12_3|RUNNING|n1")
    slurm.answer("scancel")
    run = make_run("a", job__json=sent("12_3"), LOCK={})
    assert cancel.main([str(run)]) == 0
    assert slurm.calls("scancel") == ["12_3"]
    assert not (run / "STOP").exists()
    assert "a: cancelled Slurm job 12_3 (running)" in capsys.readouterr().out


def test_the_job_of_a_sweep_belongs_to_the_trial_that_it_trains_now(
    slurm, make_run, tmp_path, capsys
) -> None:
    """Its earlier ones were in the same job: to cancel one of them is not to end another in its midst."""
    slurm.answer("squeue", "7_0|RUNNING|n1")
    slurm.answer("scancel")
    over, now = (make_run(f"sweep-x/{name}", lives__jsonl=[life("7_0")]) for name in ("over", "now"))
    (over.parent / ".trial-7-0").write_text(json.dumps({"run_dir": str(now)}))
    assert errors.run(cancel.main, [str(over)]) == 2
    assert "no live job to cancel: over (not running)" in capsys.readouterr().err
    assert slurm.calls("scancel") == []
    assert [runs.state_of(runs.read_run(run), runs.live_jobs(), {}) for run in (over, now)] == [
        "ended",
        "running",
    ]
    assert cancel.main([str(now)]) == 0
    assert slurm.calls("scancel") == ["7_0"]


def test_cancel_asks_squeue_once_for_all(slurm, make_run) -> None:
    slurm.answer("squeue", "1|RUNNING|n1", "2|PENDING|(Priority)")
    slurm.answer("scancel")
    assert (
        cancel.main([str(make_run("a", job__json=sent("1"))), str(make_run("b", job__json=sent("2")))]) == 0
    )
    assert len(slurm.calls("squeue")) == 1


def test_cancel_leaves_a_stop_file_where_a_run_lives_outside_slurm(slurm, make_run, capsys) -> None:
    run = make_run("a", LOCK={})
    assert cancel.main([str(run)]) == 0
    assert (run / "STOP").exists()
    assert "a: asked to stop with a file STOP" in capsys.readouterr().out


def test_cancel_stops_the_others_before_it_names_those_without_a_job(slurm, make_run, capsys) -> None:
    slurm.answer("squeue", "2|RUNNING|n1")
    slurm.answer("scancel")
    named = [make_run("a", DONE={}, job__json=sent("1")), make_run("b", job__json=sent("2")), make_run("c")]
    assert errors.run(cancel.main, list(map(str, named))) == 2
    assert slurm.calls("scancel") == ["2"]
    assert "error: no live job to cancel: a (finished), c (not running);" in capsys.readouterr().err
    assert not (named[2] / "STOP").exists()


def test_cancel_does_nothing_where_slurm_does_not_answer(slurm, make_run, capsys) -> None:
    slurm.answer("squeue", code=1)
    run = make_run("a", job__json=sent("1"), LOCK={})
    assert errors.run(cancel.main, [str(run)]) == 2
    assert "error: squeue failed (squeue: error: slurm is away)" in capsys.readouterr().err
    assert not (run / "STOP").exists()


def test_cancel_says_that_scancel_failed(slurm, make_run, capsys) -> None:
    slurm.answer("squeue", "1|RUNNING|n1")
    slurm.answer("scancel", code=1)
    assert errors.run(cancel.main, [str(make_run("a", job__json=sent("1")))]) == 2
    assert "error: scancel failed (scancel: error: slurm is away)" in capsys.readouterr().err


def test_cancel_takes_no_folder_of_runs(slurm, make_run, capsys) -> None:
    run = make_run("a", LOCK={})
    assert errors.run(cancel.main, [str(run.parent)]) == 2
    assert not (run / "STOP").exists()


# ---- logs ---------------------------------------------------------------------------------------------------


def test_logs_are_the_last_lines_of_each_process_and_of_slurm(make_run, tmp_path, capsys) -> None:
    output = tmp_path / "slurm.out"
    output.write_text("started\nended\n")
    run = make_run("a", job__json=sent("1", output=str(output)))
    for rank in (0, 2, 10):
        (run / "logs" / f"rank_{rank}.log").write_text(f"{rank} one\n{rank} two\n{rank} three")
    assert logs.main([str(run), "--lines", "2"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "[0] 0 two", "[0] 0 three", "[2] 2 two", "[2] 2 three", "[10] 10 two", "[10] 10 three",
        "[slurm] started", "[slurm] ended",
    ]  # fmt: skip


def test_follow_sees_lines_that_are_added_and_files_that_appear_until_done(make_run, start, tmp_path) -> None:
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
    (run / "logs" / "rank_0.log").write_text("anew\n")  # shorter: it was begun again
    wait_for(lambda: "[0] anew\n" in out.read_text(), "a file that was begun again")
    (run / "logs" / "rank_1.log").write_text("another process\nthe end")
    (run / "DONE").write_text("{}")
    assert process.wait(timeout=30) == 0
    lines = out.read_text().splitlines()
    assert sorted(lines) == sorted(
        ["[0] new", "[0] half", "[1] another process", "[slurm] from Slurm", "[0] anew", "[1] the end"]
    )


def test_follow_prints_what_comes_right_after_done(make_run, monkeypatch, capsys) -> None:
    run = make_run("a", DONE={})
    log = run / "logs" / "rank_0.log"
    log.write_text("one\n")
    (run / "logs" / "rank_1.log").write_text("")
    late = iter(["two\n", "three\n", ""])

    def sleep(_seconds: float) -> None:
        with log.open("a") as file:
            file.write(next(late))

    monkeypatch.setattr(logs.time, "sleep", sleep)
    logs.follow(run, {log: logs.Tail(log, "[0] ")})
    assert capsys.readouterr().out == "[0] one\n[0] two\n[0] three\n"


def test_follow_waits_for_the_first_log_and_ends_with_ctrl_c(make_run, start, tmp_path) -> None:
    run, out = make_run("a", config=None, job__json=sent("1")), tmp_path / "out"
    with out.open("w") as file:
        process = start("logs", run, "--follow", stdout=file)
    assert "has no logs yet" in process.stderr.readline()
    (run / "logs" / "rank_0.log").write_text("at last\n")
    wait_for(lambda: out.read_text() == "[0] at last\n", "the first log")
    interrupt(process)


def test_logs_pass_on_what_is_no_text(make_run, capfdbinary) -> None:
    run = make_run("a")
    (run / "logs" / "rank_0.log").write_bytes(b"\xff\xfe\n")
    assert logs.main([str(run)]) == 0
    assert capfdbinary.readouterr().out == b"[0] \xff\xfe\n"


# ---- summary ------------------------------------------------------------------------------------------------


def finished(make_run, name: str, top1: float, *, seed: int, lr: float = 0.1) -> Path:
    config = (
        f"run: {{dir: runs/{name}, seed: {seed}}}\ndata: {{root: /data/{name}}}\noptim: {{lr: {lr}, name: sgd}}\n"
        f"tracking: {{project: {name}}}\n"
    )
    return make_run(name, config, DONE={"val/ema_top1": top1, "val/ema_top1_flip": top1 + 0.5})


def cells(output: str, first: str) -> list[str]:
    """The cells of a row of the table or of the markdown."""
    line = next(line for line in output.splitlines() if first in line)
    return [cell.strip() for cell in line.replace("│", "|").strip("|").split("|")]


def test_summary_has_mean_and_spread_of_each_configuration(make_run, tmp_path, capsys) -> None:
    for name, top1, seed, lr in (
        ("a0", 50.0, 0, 0.1),
        ("a1", 52.0, 1, 0.1),
        ("a2", 57.0, 2, 0.1),
        ("b0", 40.0, 0, 0.2),
    ):
        finished(make_run, name, top1, seed=seed, lr=lr)
    out = tmp_path / "new" / "summary.md"
    assert summary.main([str(tmp_path / "runs"), "--out", str(out)]) == 0
    # Mean (50 + 52 + 57) / 3 = 53; squares of -3, -1, 4 are 26, over n - 1 = 2 are 13, whose root is 3.61.
    three = ["optim.lr=0.1", "3", "53.00", "3.61", "50.00", "57.00"]
    one = ["optim.lr=0.2", "1", "40.00", "-", "40.00", "40.00"]
    for output in (capsys.readouterr().out, out.read_text()):
        assert cells(output, "lr=0.1") == three
        assert cells(output, "lr=0.2") == one


def test_summary_calls_the_only_configuration_by_the_name_of_its_runs(make_run, tmp_path, capsys) -> None:
    finished(make_run, "tiny1m-s10", 50.0, seed=10)
    finished(make_run, "tiny1m-s11", 52.0, seed=11)
    assert summary.main([str(tmp_path / "runs")]) == 0
    assert cells(capsys.readouterr().out, "tiny1m")[:3] == ["tiny1m", "2", "51.00"]


def test_summary_does_not_count_a_seed_twice_without_a_word(make_run, tmp_path, capsys) -> None:
    finished(make_run, "a", 50.0, seed=0)
    finished(make_run, "b", 50.0, seed=0)
    assert summary.main([str(tmp_path / "runs")]) == 0
    assert "1 (2 runs)" in capsys.readouterr().out


def test_summary_names_the_runs_that_do_not_count(make_run, tmp_path, capsys) -> None:
    finished(make_run, "a", 50.0, seed=0)
    make_run("b")
    make_run("c", DONE="{")
    make_run("d", config=None, job__json=sent("1"), DONE={"val/ema_top1": 1.0})
    out = tmp_path / "summary.md"
    assert summary.main([str(tmp_path / "runs"), "--out", str(out)]) == 0
    note = "not counted: b (not finished), c (its DONE is damaged), d (its config.yaml is damaged or missing)"
    assert note in capsys.readouterr().out
    assert note in out.read_text()


# ---- all of them --------------------------------------------------------------------------------------------

MISTAKES = {
    ("status", "no/such"): "no/such is no run folder and holds none",
    ("status", "--interval=0"): "--interval is 0 and must be between 1 and 86400 seconds",
    (
        "status",
        "--interval=soon",
    ): "argument --interval: invalid float value: 'soon'; see `python -m launch.status",
    ("status", "--wat"): "unrecognized arguments: --wat; see `python -m launch.status --help`",
    ("cancel",): "the following arguments are required: RUN; see `python -m launch.cancel --help`",
    ("cancel", "no/such"): "no/such is no run folder: a run has config.yaml or job.json in it",
    ("logs", "no/such"): "no/such is no run folder: a run has",
    ("logs", "RUN", "--lines=-1"): "--lines is -1 and must be 0 or more",
    ("logs", "RUN"): "has no logs yet; --follow waits for them",
    ("summary", "RUN"): "nothing to sum up: a (not finished)",
    ("summary", "DONE", "--out=/dev/null/x.md"): "--out /dev/null/x.md cannot be written",
}


@pytest.mark.parametrize(("arguments", "sentence"), MISTAKES.items(), ids=map(" ".join, MISTAKES))
def test_a_mistake_is_a_sentence_and_exit_code_2(arguments, sentence, slurm, make_run, capsys) -> None:
    paths = {"RUN": str(make_run("a")), "DONE": str(finished(make_run, "b", 50.0, seed=0))}
    tool = {"status": status, "cancel": cancel, "logs": logs, "summary": summary}[arguments[0]]
    assert errors.run(tool.main, [paths.get(argument, argument) for argument in arguments[1:]]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert sentence in error


@pytest.mark.parametrize("tool", ["status", "cancel", "logs", "summary"])
def test_help_is_there_without_torch(tool: str) -> None:
    code = f"import sys, runpy; sys.argv[1:] = ['--help']\ntry: runpy.run_module('launch.{tool}', run_name='__main__')\nexcept SystemExit: print('torch' in sys.modules, 'submitit' in sys.modules)"
    done = python("-c", code)
    assert f"usage: python -m launch.{tool} " in done.stdout
    assert done.stdout.endswith("False False\n")


def test_without_a_name_status_shows_the_runs_of_the_site(make_run, tmp_path, capsys, monkeypatch) -> None:
    make_run("only_here")
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path / "runs"))
    assert status.main([]) == 0
    assert "only_here" in capsys.readouterr().out
