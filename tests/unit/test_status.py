"""`tinyimnet status`: nodes, progress, speed, accuracy and a one-word state of each run."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from helpers.run_folders import attempt, logged, sent
from tinyimnet import cli
from tinyimnet.config import Config, dump
from tinyimnet.files import read_lines
from tinyimnet.launch import status
from tinyimnet.run.metrics import STEP
from tinyimnet.run.record import read_record

URL = "https://wandb.ai/a-team-with-a-long-name/tiny-imagenet-1m/runs/ab12cd34"


def ema(step: int, top1: float) -> dict:
    return {**logged(step), "val/ema_top1": top1}


def states(tmp_path: Path, capsys: pytest.CaptureFixture) -> dict[str, str]:
    """Return {run: state} from the table of tmp_path/runs."""
    assert cli.main(["status", str(tmp_path / "runs")]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    names = {path.name for path in (tmp_path / "runs").iterdir()}
    return {row[0]: row[1] for row in rows if row and row[0] in names}


def state(path: Path, capsys: pytest.CaptureFixture) -> str:
    """Return the state of a run from the table."""
    return row(path, capsys).split()[1]


def row(path: Path, capsys: pytest.CaptureFixture) -> str:
    """Return the row of a run from the table, with single spaces."""
    assert cli.main(["status", str(path)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    return next(line for line in lines if line.startswith(path.name))


# ---- status: the state --------------------------------------------------------------------------------------


def test_without_slurm_the_state_comes_from_the_folder(slurm, make_run, tmp_path, capsys) -> None:
    make_run("finished", DONE={}, LOCK={}, attempts__jsonl=[attempt()])
    make_run("running", LOCK={}, REQUEUE="", attempts__jsonl=[attempt()])
    make_run("stopped", REQUEUE="", attempts__jsonl=[attempt()])
    make_run("asked", STOP="", attempts__jsonl=[attempt()])
    dead = make_run("dead", LOCK={}, attempts__jsonl=[attempt()])
    os.utime(dead / "LOCK", (time.time() - 40, time.time() - 40))
    make_run("submitted", config=None, job__json=sent("7"))
    assert states(tmp_path, capsys) == {
        "finished": "finished",
        "running": "running",
        "stopped": "stopped",
        "asked": "stopped",
        "dead": "killed",
        "submitted": "unknown",
    }


def test_slurm_gives_the_state_of_its_jobs_and_array_elements(slurm, make_run, tmp_path, capsys) -> None:
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
        "r12_4": "new",
        "r13": "preempted",
    }


def test_a_pending_job_that_has_an_attempt_is_requeued(slurm, make_run, capsys) -> None:
    slurm.answer("squeue", "12|PENDING|(BeginTime)")
    run = make_run("a", job__json=sent("12"), attempts__jsonl=[attempt("12")])
    assert row(run, capsys) == "a requeued (BeginTime) 1 0 / 5,000 (0 %) - - -"


def test_a_finished_run_is_finished_whatever_slurm_says(slurm, make_run, tmp_path, capsys) -> None:
    slurm.answer("squeue", "12|RUNNING|n1", "14|RUNNING|n2")
    slurm.answer("sacct", "13|FAILED")
    make_run("a", DONE={}, job__json=sent("12"))
    make_run("b", DONE={}, job__json=sent("13"))
    make_run("c", job__json=sent("14"))  # makes `status` call squeue
    assert states(tmp_path, capsys) == {"a": "finished", "b": "finished", "c": "running"}


def test_cancelled_is_one_word(slurm, make_run, capsys) -> None:
    slurm.answer("squeue")
    slurm.answer("sacct", "12|CANCELLED by 1000")
    assert row(make_run("a", job__json=sent("12")), capsys) == "a cancelled - - - - - -"


def test_elements_of_an_array_that_was_cancelled_whole_are_cancelled(slurm, make_run, tmp_path, capsys) -> None:
    slurm.answer("squeue")
    for job in ("12_0", "12_1", "12_10"):
        make_run(f"r{job}", job__json=sent(job))
    slurm.answer("sacct", "12_1|COMPLETED", "12_[0,2-10]|CANCELLED by 0", "13|CANCELLED by 0")
    make_run("r13_0", job__json=sent("13_0"))  # of an array whose elements were cancelled one by one
    expected = {"r12_0": "cancelled", "r12_1": "new", "r12_10": "cancelled", "r13_0": "cancelled"}
    assert states(tmp_path, capsys) == expected
    assert slurm.calls("sacct") == ["-X -n -P -o JobID,State -j 12,13"]  # of single elements it prints nothing


def test_a_job_that_started_the_run_leaves_the_state_to_the_folder(slurm, make_run, tmp_path, capsys) -> None:
    """Otherwise a report would call a run stopped that status calls cancelled."""
    slurm.answer("squeue")
    slurm.answer("sacct", "12|CANCELLED by 0", "13|TIMEOUT", "14|OUT_OF_MEMORY")
    stopped = make_run("stopped", attempts__jsonl=[attempt("12")], REQUEUE='{"reason": "SIGTERM"}')
    make_run("killed", attempts__jsonl=[attempt("13")], LOCK={})  # the lease lasts 30 s longer than the process
    make_run("failed", attempts__jsonl=[attempt("14")], ERROR="no disk")
    assert states(tmp_path, capsys) == {"stopped": "stopped", "killed": "killed", "failed": "failed"}
    assert row(stopped, capsys).startswith("stopped stopped n1, n2 (cancelled)")


def test_a_run_that_has_left_a_live_allocation_is_not_running(slurm, make_run, capsys) -> None:
    slurm.answer("squeue", "9|RUNNING|n1|(null)")
    assert state(make_run("a", attempts__jsonl=[attempt("9")]), capsys) == "stopped"


def test_a_completed_job_that_is_not_finished_was_stopped(slurm, make_run, capsys) -> None:
    slurm.answer("squeue")
    slurm.answer("sacct", "12|COMPLETED")
    assert state(make_run("a", job__json=sent("12"), REQUEUE=""), capsys) == "stopped"


def test_the_later_of_submission_and_attempt_counts(slurm, make_run, capsys) -> None:
    slurm.answer("squeue", "13|PENDING|(Priority)")
    slurm.answer("sacct", "12|FAILED")
    by_hand = make_run("a", job__json=sent("12", submitted=500), attempts__jsonl=[attempt("")], LOCK={})
    sent_again = make_run("b", job__json=sent("13", submitted=2000), attempts__jsonl=[attempt("12")])
    assert (state(by_hand, capsys), state(sent_again, capsys)) == ("running", "pending")


def test_a_local_submitit_job_is_not_looked_up_in_slurm(slurm, make_run, capsys) -> None:
    slurm.answer("squeue", "12|PENDING|(Priority)")
    assert state(make_run("a", job__json={**sent("12"), "cluster": "local"}, LOCK={}), capsys) == "running"
    assert slurm.calls("squeue") == []


def test_many_runs_take_one_call_of_squeue_and_one_of_sacct(slurm, make_run, tmp_path, capsys) -> None:
    slurm.answer("squeue", *[f"5_{i}|RUNNING|n{i}" for i in range(10)])
    slurm.answer("sacct", "6_0|TIMEOUT")
    for i in range(10):
        make_run(f"live{i}", job__json=sent(f"5_{i}"))
        make_run(f"over{i}", job__json=sent(f"6_{i}"))
    assert len(states(tmp_path, capsys)) == 20
    assert slurm.calls("squeue") == ["-h -r --me -o %i|%T|%R|%o"]
    assert slurm.calls("sacct") == ["-X -n -P -o JobID,State -j 6"]


def test_if_squeue_fails_it_is_named_and_the_folder_decides(slurm, make_run, capsys) -> None:
    slurm.answer("squeue", code=1)
    run = make_run("a", job__json=sent("12"), LOCK={})
    assert cli.main(["status", str(run)]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "running" in output
    assert "squeue failed (squeue: error: slurm is away)" in output


def test_a_note_is_whole_in_a_pipe(slurm, make_run, capsys) -> None:
    slurm.answer("squeue", code=1)
    run = make_run("a" * 100, job__json=sent("12"), wandb_run__json={"id": "ab12cd34", "url": URL})
    assert cli.main(["status", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "squeue failed (squeue: error: slurm is away); retry when Slurm responds. Until then, states come from the "\
        "run folders." in lines  # fmt: skip
    assert f"{'a' * 100}  {URL}" in lines


# ---- status: the other columns ------------------------------------------------------------------------------


def test_a_row_has_the_values_of_the_files(slurm, make_run, capsys) -> None:
    attempts = [attempt("12", started=1000), attempt("12", started=2000, step=1000)]
    metrics = [logged(50), ema(1000, 44.5), ema(1200, 43.25), logged(1234)]
    run = make_run("a", attempts__jsonl=attempts, metrics__jsonl=metrics)
    assert row(run, capsys) == "a stopped n1, n2 2 1,234 / 5,000 (24 %) 1,234 43.25 / 44.50 -"


def test_the_time_left_follows_from_the_speed_of_this_attempt(make_run) -> None:
    run = read_record(
        make_run(
            "a",
            attempts__jsonl=[attempt(started=0), attempt(started=5000, step=1000)],
            metrics__jsonl=[logged(1500)],
        )
    )
    assert status.seconds_left(run, now=5100) == 3500 * 100 / 500


def test_before_the_first_step_it_follows_from_images_per_second(make_run) -> None:
    metrics = [{STEP: 1000, "perf/images_per_s": 200.0}]
    run = read_record(make_run("a", attempts__jsonl=[attempt(step=1000)], metrics__jsonl=metrics))
    assert status.seconds_left(run, now=5100) == 4000 * 100 / 200


def test_the_time_left_counts_the_pixels_of_the_remaining_steps(make_run) -> None:
    growing = "start_resolution: 32, full_resolution_from: 0.5, end_resolution: 80"
    config = f"{{train: {{global_batch_size: 100}}, augment: {{{growing}}}}}"
    files = {
        "attempts__jsonl": [attempt(started=5000)],
        "metrics__jsonl": [{STEP: 600, "perf/images_per_s": 200.0}],
    }
    run = read_record(make_run("a", config, **files))
    rest = 32**2 * 25 + 625 * (40**2 + 48**2 + 56**2) + 2000 * 64**2 + 500 * 80**2
    assert status.seconds_left(run, now=5600) == 600 * rest / (32**2 * 600)
    assert status.seconds_left(run, now=4000) == 100 / 200 * rest / 32**2


def test_the_time_left_is_shown_as_hours_minutes_seconds(slurm, make_run, capsys, monkeypatch) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    attempts = [attempt(started=now - 1000, step=0)]
    run = make_run("a", LOCK={}, attempts__jsonl=attempts, metrics__jsonl=[logged(1000)])
    assert row(run, capsys).endswith(" 1:06:40")


@pytest.mark.parametrize(
    "attempts", [[attempt(nodes=("n1",))], [attempt(nodes=tuple(f"node{i:03}" for i in range(64)))]]
)
def test_the_url_is_complete_and_on_one_line(slurm, make_run, capsys, attempts) -> None:
    run = make_run("a", wandb_run__json={"id": "ab12cd34", "url": URL}, attempts__jsonl=attempts)
    cli.main(["status", str(run)])
    assert any(URL in line for line in capsys.readouterr().out.splitlines())


def test_without_urls_wandb_is_not_mentioned(slurm, make_run, capsys) -> None:
    cli.main(["status", str(make_run("a", wandb_run__json={"id": "ab12cd34"}))])
    assert "W&B" not in capsys.readouterr().out


# Files of the run folder, and the row of the run after its name.
DAMAGE: dict[str, tuple[dict[str, str], str]] = {
    "half lines": (
        {
            "metrics__jsonl": json.dumps(logged(10)) + '\n{"trainer/global_st',
            "attempts__jsonl": json.dumps(attempt()) + '\n{"started": 1',
        },
        "stopped n1, n2 1 10 / 5,000 (0 %) 1,234 - -",
    ),
    "half files": (
        {"job__json": '{"cluster": "slu', "wandb_run__json": '{"id', "DONE": "{", "LOCK": ""},
        "finished - - - - - -",
    ),
    "other things": (
        {
            "metrics__jsonl": f'[1]\n3\n{{"{STEP}": null}}\n{{"{STEP}": 3, "perf/images_per_s": "fast"}}\n',
            "attempts__jsonl": '{"started": null, "job": 1, "nodes": 3, "step": 0, "total_steps": 0}\n[]\n',
            "job__json": '{"cluster": "slurm", "job": null, "submitted": "now", "output": 3}',
            "wandb_run__json": "[]",
        },
        "stopped - - 3 - - -",
    ),
    "no text": (
        {"metrics__jsonl": "\x00\x00\n", "attempts__jsonl": "\x00", "config": "\x00"},
        "new - - - - - -",
    ),
    "no more files": ({}, "new - - - - - -"),
}


@pytest.mark.parametrize("files, expected", DAMAGE.values(), ids=DAMAGE)
def test_what_a_crash_leaves_behind_hides_nothing_else(files, expected, slurm, make_run, capsys) -> None:
    assert row(make_run("a", **files), capsys) == f"a {expected}"


def test_a_name_is_not_markup(slurm, make_run, capsys) -> None:
    cli.main(["status", str(make_run("a[b]:x:"))])
    assert "a[b]:x:" in capsys.readouterr().out


def test_runs_with_the_same_name_are_distinguished(slurm, make_run, capsys) -> None:
    cli.main(["status", str(make_run("x/a")), str(make_run("y/a"))])
    output = capsys.readouterr().out
    assert "x/a" in output and "y/a" in output


def test_without_arguments_status_shows_the_runs_of_the_site(make_run, tmp_path, capsys, monkeypatch) -> None:
    make_run("only_here")
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path / "runs"))
    assert cli.main(["status"]) == 0
    assert "only_here" in capsys.readouterr().out


# ---- many long runs -----------------------------------------------------------------------------------------


def cpu_seconds(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


def test_long_runs_are_shown_in_less_than_the_time_to_read_them(slurm, make_run) -> None:
    """Parsing every line of 200 runs of 3,600 lines took 16 s, and 5 s at each look of --watch."""
    config = dump(Config())
    lines = [(ema if step % 12 == 0 else logged)(step, *([50.0] if step % 12 == 0 else [])) for step in range(3600)]
    rows = [line | {f"perf/{i}": step / 7 for i in range(12)} for step, line in enumerate(lines)]
    made = [make_run(f"r{i}", config, metrics__jsonl=rows, attempts__jsonl=[attempt()]) for i in range(5)]

    def read_all() -> None:
        for run in made:
            yaml.safe_load((run / "config.yaml").read_text())
            read_lines(run / "metrics.jsonl")

    everything = cpu_seconds(read_all)
    assert cpu_seconds(lambda: status.view(made)) < everything / 2
    assert cpu_seconds(lambda: status.view(made)) < everything / 8


def test_a_line_that_is_added_between_two_looks_is_seen(slurm, make_run, capsys) -> None:
    run = make_run("a", metrics__jsonl=[ema(100, 40.0), logged(150)], attempts__jsonl=[attempt()])
    assert "150 / 5,000 (3 %) 1,234 40.00 / 40.00" in row(run, capsys)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(ema(200, 39.0)) + "\n" + '{"trainer/glo')
    assert "200 / 5,000 (4 %) 1,234 39.00 / 40.00" in row(run, capsys)
    (run / "metrics.jsonl").write_text(json.dumps(ema(50, 10.0)) + "\n")  # a resume drops the rows after its checkpoint
    assert "50 / 5,000 (1 %) 1,234 10.00 / 10.00" in row(run, capsys)
