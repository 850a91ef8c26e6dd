"""launch.cancel: a job of Slurm is cancelled, a run outside Slurm gets a file STOP, and nobody else is touched."""

import json

from helpers.run_folders import attempt, sent
from launch import cancel, runs
from tinyimnet import errors
from tinyimnet.run.record import read_record


def test_cancel_gives_a_job_of_slurm_to_scancel(slurm, make_run, capsys) -> None:
    slurm.answer("squeue", "12_3|RUNNING|n1")
    slurm.answer("scancel")
    run = make_run("a", job__json=sent("12_3"), LOCK={})
    assert cancel.main([str(run)]) == 0
    assert slurm.calls("scancel") == ["12_3"]
    assert not (run / "STOP").exists()
    assert "a: cancelled Slurm job 12_3 (running)" in capsys.readouterr().out


def test_the_job_of_a_sweep_belongs_to_the_trial_that_it_trains_now(slurm, make_run, tmp_path, capsys) -> None:
    """Its earlier ones were in the same job: to cancel one of them is not to end another in its midst."""
    slurm.answer("squeue", "7_0|RUNNING|n1")
    slurm.answer("scancel")
    over, now = (make_run(f"sweep-x/{name}", attempts__jsonl=[attempt("7_0")]) for name in ("over", "now"))
    (over.parent / ".trial-7-0").write_text(json.dumps({"run_dir": str(now)}))
    assert errors.run(cancel.main, [str(over)]) == 2
    assert "no live job to cancel: over (not running)" in capsys.readouterr().err
    assert slurm.calls("scancel") == []
    assert [runs.state_of(read_record(run), runs.live_jobs(), {}) for run in (over, now)] == [
        "stopped",
        "running",
    ]
    assert cancel.main([str(now)]) == 0
    assert slurm.calls("scancel") == ["7_0"]


def test_a_job_that_is_about_to_be_over_is_left_alone(slurm, make_run, capsys) -> None:
    slurm.answer("squeue", "1|COMPLETING|n1")
    slurm.answer("scancel")
    run = make_run("a", job__json=sent("1"))
    assert errors.run(cancel.main, [str(run)]) == 2
    assert "no live job to cancel: a (not running)" in capsys.readouterr().err
    assert slurm.calls("scancel") == []


def test_cancel_asks_squeue_once_for_all(slurm, make_run) -> None:
    slurm.answer("squeue", "1|RUNNING|n1", "2|PENDING|(Priority)")
    slurm.answer("scancel")
    assert cancel.main([str(make_run("a", job__json=sent("1"))), str(make_run("b", job__json=sent("2")))]) == 0
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
