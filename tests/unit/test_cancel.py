"""`tinyimnet cancel` cancels Slurm jobs, leaves a STOP file for runs outside Slurm, and touches nothing else."""

import json

import pytest

from helpers.run_folders import attempt, sent
from tinyimnet import cli, errors
from tinyimnet.launch import runs
from tinyimnet.run.record import read_record


def test_cancel_passes_a_slurm_job_to_scancel(slurm, make_run, capsys) -> None:
    slurm.answer("squeue", "12_3|RUNNING|n1")
    slurm.answer("scancel")
    run = make_run("a", job__json=sent("12_3"), LOCK={})
    assert cli.main(["cancel", str(run)]) == 0
    assert slurm.calls("scancel") == ["12_3"]
    assert not (run / "STOP").exists()
    assert "a: cancelled Slurm job 12_3 (running)" in capsys.readouterr().out


def test_the_job_of_a_sweep_belongs_to_its_current_trial(slurm, make_run, tmp_path, capsys) -> None:
    """Earlier trials ran in the same job, so cancelling one of them must not stop the current one."""
    slurm.answer("squeue", "7_0|RUNNING|n1|slurm/sweep.sbatch a/b/x")
    slurm.answer("scancel")
    over, now = (make_run(f"sweep-x/{name}", attempts__jsonl=[attempt("7_0")]) for name in ("over", "now"))
    (over.parent / ".trial-7-0").write_text(json.dumps({"run_dir": str(now)}))
    assert errors.run(cli.main, ["cancel", str(over)]) == 2
    assert "nothing to cancel: over (not running)" in capsys.readouterr().err
    assert slurm.calls("scancel") == []
    assert [runs.state_of(read_record(run), runs.live_jobs(), {}) for run in (over, now)] == [
        "stopped",
        "running",
    ]
    assert cli.main(["cancel", str(now)]) == 0
    assert slurm.calls("scancel") == ["7_0"]


def test_a_completing_job_is_left_alone(slurm, make_run, capsys) -> None:
    slurm.answer("squeue", "1|COMPLETING|n1")
    slurm.answer("scancel")
    run = make_run("a", job__json=sent("1"))
    assert errors.run(cli.main, ["cancel", str(run)]) == 2
    assert "nothing to cancel: a (not running)" in capsys.readouterr().err
    assert slurm.calls("scancel") == []


def test_cancel_calls_squeue_once_for_all_runs(slurm, make_run) -> None:
    slurm.answer("squeue", "1|RUNNING|n1", "2|PENDING|(Priority)")
    slurm.answer("scancel")
    assert cli.main(["cancel", str(make_run("a", job__json=sent("1"))), str(make_run("b", job__json=sent("2")))]) == 0
    assert len(slurm.calls("squeue")) == 1


def test_cancel_leaves_a_stop_file_for_a_run_outside_slurm(slurm, make_run, capsys) -> None:
    run = make_run("a", LOCK={})
    assert cli.main(["cancel", str(run)]) == 0
    assert (run / "STOP").exists()
    assert "a: created the file STOP" in capsys.readouterr().out


def test_cancel_stops_live_runs_before_it_names_those_without_a_job(slurm, make_run, capsys) -> None:
    slurm.answer("squeue", "2|RUNNING|n1")
    slurm.answer("scancel")
    named = [make_run("a", DONE={}, job__json=sent("1")), make_run("b", job__json=sent("2")), make_run("c")]
    assert errors.run(cli.main, ["cancel", *map(str, named)]) == 2
    assert slurm.calls("scancel") == ["2"]
    assert "error: nothing to cancel: a (finished), c (not running);" in capsys.readouterr().err
    assert not (named[2] / "STOP").exists()


def test_cancel_does_nothing_if_slurm_does_not_answer(slurm, make_run, capsys) -> None:
    slurm.answer("squeue", code=1)
    run = make_run("a", job__json=sent("1"), LOCK={})
    assert errors.run(cli.main, ["cancel", str(run)]) == 2
    assert "error: squeue failed (squeue: error: slurm is away)" in capsys.readouterr().err
    assert not (run / "STOP").exists()


def test_cancel_says_that_scancel_failed(slurm, make_run, capsys) -> None:
    slurm.answer("squeue", "1|RUNNING|n1")
    slurm.answer("scancel", code=1)
    assert errors.run(cli.main, ["cancel", str(make_run("a", job__json=sent("1")))]) == 2
    assert "error: scancel failed (scancel: error: slurm is away)" in capsys.readouterr().err


def test_cancel_refuses_a_folder_of_runs(slurm, make_run, capsys) -> None:
    run = make_run("a", LOCK={})
    assert errors.run(cli.main, ["cancel", str(run.parent)]) == 2
    assert not (run / "STOP").exists()


# ---- several jobs of a run, and jobs that a run shares --------------------------------------------------------


def test_cancel_ends_every_job_of_a_run_that_was_submitted_twice(slurm, make_run, capsys) -> None:
    slurm.answer("squeue", "1|PENDING|(Priority)", "2|PENDING|(Priority)", "3|RUNNING|n1", "4|PENDING|(Priority)")
    slurm.answer("scancel")
    run = make_run("a", job__json=sent("4", earlier=("2", "1")), attempts__jsonl=[attempt("3")], LOCK={})
    assert cli.main(["cancel", str(run)]) == 0
    assert slurm.calls("scancel") == ["4", "2", "1"]
    assert (run / "STOP").exists()  # job 3 is not this project's; the run in it saves and stops
    assert capsys.readouterr().out.count("a: cancelled Slurm job") == 3


@pytest.mark.parametrize("command", ["(null)", "/home/me/sweep_by_hand.sh a b"], ids=["salloc", "own script"])
def test_a_run_in_a_job_of_other_work_is_stopped_without_the_job(command, slurm, make_run, capsys) -> None:
    slurm.answer("squeue", f"9|RUNNING|n1|{command}")
    slurm.answer("scancel")
    run = make_run("a", attempts__jsonl=[attempt("9")], LOCK={})
    assert cli.main(["cancel", str(run)]) == 0
    assert slurm.calls("scancel") == [] and (run / "STOP").exists()
    assert "a: created the file STOP; the run saves before it stops" in capsys.readouterr().out


def test_a_requeued_job_of_ones_own_script_ends_when_it_starts(slurm, make_run, capsys) -> None:
    slurm.answer("squeue", "9|PENDING|(BeginTime)|/home/me/job.sbatch")
    run = make_run("a", attempts__jsonl=[attempt("9")])
    assert cli.main(["cancel", str(run)]) == 0
    assert (run / "STOP").exists()
    assert "a: created the file STOP; Slurm job 9 ends when it starts" in capsys.readouterr().out


@pytest.mark.parametrize("script", ["train.sbatch", "array.sbatch", "sweep.sbatch"])
def test_a_job_of_a_script_of_this_project_is_cancelled(script, slurm, make_run) -> None:
    slurm.answer("squeue", f"9|RUNNING|n1|/home/me/tinyimnet/slurm/{script} configs/tiny1m.yaml")
    slurm.answer("scancel")
    run = make_run("a", attempts__jsonl=[attempt("9")], LOCK={})
    assert cli.main(["cancel", str(run)]) == 0
    assert slurm.calls("scancel") == ["9"] and not (run / "STOP").exists()


def test_a_run_that_has_left_its_allocation_is_not_stopped_again(slurm, make_run, capsys) -> None:
    slurm.answer("squeue", "9|RUNNING|n1|(null)")
    run = make_run("a", attempts__jsonl=[attempt("9")])
    assert errors.run(cli.main, ["cancel", str(run)]) == 2
    assert not (run / "STOP").exists()
