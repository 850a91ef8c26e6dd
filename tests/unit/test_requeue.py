"""Whether a Slurm job is requeued after its training has ended; tests/cluster runs the real Slurm."""

import json
import re
from pathlib import Path

import pytest

from helpers.run_folders import attempt
from tinyimnet import errors, train
from tinyimnet.config import RunConfig
from tinyimnet.errors import UserError
from tinyimnet.launch import successors
from tinyimnet.launch.requeue import decide

RUNNING = {"JobState": "RUNNING", "PreemptTime": "None"}
PREEMPTED = {"JobState": "RUNNING", "PreemptTime": "2026-11-24T17:10:14"}
ATTEMPT_3 = {"SLURM_JOB_ID": "123", "SLURM_RESTART_COUNT": "2"}


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    return RunConfig(dir=str(tmp_path), max_attempts=5)


def mark(run: RunConfig, attempt: tuple = ("123", 2), steps: int = 10) -> None:
    marker = {"reason": "SIGUSR1", "attempt": list(attempt), "steps": steps}
    (Path(run.dir) / "REQUEUE").write_text(json.dumps(marker))


def test_a_stopped_run_that_made_progress_is_requeued(run: RunConfig) -> None:
    mark(run)
    assert decide(run, 0, RUNNING, ATTEMPT_3) == (
        True,
        0,
        "stopped by SIGUSR1, checkpoint saved; requeued as attempt 4",
    )


def test_a_stopped_run_of_an_array_is_requeued(run: RunConfig) -> None:
    mark(run, ("99_1", 0))
    environ = {"SLURM_JOB_ID": "101", "SLURM_ARRAY_JOB_ID": "99", "SLURM_ARRAY_TASK_ID": "1"}
    assert decide(run, 0, RUNNING, environ).requeue


def test_a_preempted_run_is_requeued_even_without_progress(run: RunConfig) -> None:
    assert decide(run, 143, PREEMPTED, ATTEMPT_3) == (True, 0, "preempted; requeued as attempt 4")


def test_a_finished_run_is_not_requeued(run: RunConfig) -> None:
    mark(run)
    (Path(run.dir) / "DONE").touch()
    assert decide(run, 0, PREEMPTED, ATTEMPT_3) == (False, 0, "finished in attempt 3")


def past(run: RunConfig, *starts: tuple[str, int, int], saved: int = 0) -> None:
    """Write attempts of the run, as (job, restart, step), and a newest checkpoint."""
    lines = [json.dumps(attempt(job, restart=restart, step=step)) for job, restart, step in starts]
    (Path(run.dir) / "attempts.jsonl").write_text("\n".join(lines) + "\n")
    (Path(run.dir) / "checkpoints").mkdir()
    for step in {0, saved} - {0}:
        (Path(run.dir) / "checkpoints" / f"step_{step:08d}.pt").touch()


def test_a_run_that_lost_a_process_after_a_new_checkpoint_is_requeued(run: RunConfig) -> None:
    past(run, ("123", 0, 0), ("123", 2, 100), saved=140)
    again, exit_code, sentence = decide(run, 137, RUNNING, ATTEMPT_3)
    assert (again, exit_code) == (True, 0)
    assert sentence == "ended with exit code 137, newest checkpoint at step 140; requeued as attempt 4"


NOTHING_NEW: dict[str, tuple[list, int, bool]] = {
    "never, in this job": ([("123", 2, 0)], 0, False),
    "but went on from another job": ([("99", 0, 0), ("123", 0, 100), ("123", 2, 100)], 100, True),
    "in another job only": ([("99", 0, 0), ("123", 2, 100)], 100, False),
    "for one attempt": ([("123", 1, 50), ("123", 2, 100)], 100, True),
    "for two attempts": ([("123", 0, 50), ("123", 1, 100), ("123", 2, 100)], 100, True),
    "for two attempts, which did not begin": ([("123", 0, 50)], 100, True),
}


@pytest.mark.parametrize(("starts", "saved", "again"), NOTHING_NEW.values(), ids=NOTHING_NEW)
def test_two_failures_without_a_new_checkpoint_are_forgiven(
    starts: list, saved: int, again: bool, run: RunConfig
) -> None:
    past(run, *starts, saved=saved)
    assert decide(run, 1, RUNNING, ATTEMPT_3).requeue == again


def test_three_failures_without_a_new_checkpoint_end_the_job(run: RunConfig) -> None:
    past(run, ("123", 0, 50), ("123", 3, 100), saved=100)
    assert decide(run, 1, RUNNING, {**ATTEMPT_3, "SLURM_RESTART_COUNT": "2"}).requeue
    assert not decide(run, 1, RUNNING, {**ATTEMPT_3, "SLURM_RESTART_COUNT": "3"}).requeue


def test_a_user_error_is_requeued_only_before_the_attempt_starts(run: RunConfig) -> None:
    past(run, ("123", 1, 0), saved=100)
    assert decide(run, errors.USER_ERROR, RUNNING, ATTEMPT_3).requeue
    with (Path(run.dir) / "attempts.jsonl").open("a") as attempts:
        attempts.write(json.dumps(attempt("123", restart=2, step=100)) + "\n")
    assert not decide(run, errors.USER_ERROR, RUNNING, ATTEMPT_3).requeue


@pytest.mark.parametrize("file", ["STOP", "ERROR"])
def test_a_stop_or_error_file_prevents_a_requeue(file: str, run: RunConfig) -> None:
    """A process that is killed while it waits for W&B, or while it hangs, has the exit code of a signal."""
    past(run, ("123", 2, 0), saved=100)
    assert decide(run, 137, RUNNING, ATTEMPT_3).requeue
    (Path(run.dir) / file).touch()
    assert not decide(run, 137, RUNNING, ATTEMPT_3).requeue


def test_after_a_user_error_the_exit_code_is_2_also_if_srun_gave_143(run: RunConfig) -> None:
    past(run, ("123", 2, 0), saved=100)
    (Path(run.dir) / "ERROR").touch()
    assert decide(run, 143, RUNNING, ATTEMPT_3) == (False, 2, "ended with exit code 2; not requeued")


def test_a_job_that_slurm_does_not_requeue_ends_and_says_so(run: RunConfig) -> None:
    mark(run)
    again, exit_code, sentence = decide(run, 0, {**RUNNING, "Requeue": "0"}, ATTEMPT_3)
    assert (again, exit_code) == (False, 1)
    assert "checkpoint saved; not requeued, because the job was submitted with --no-requeue" in sentence


# ---- where Slurm does not requeue ---------------------------------------------------------------------------------

NO_REQUEUE = {**RUNNING, "Requeue": "0"}
THIRD = {"SLURM_JOB_ID": "123", "PREDECESSORS": "101 102"}  # as ATTEMPT_3, but of three jobs


def test_a_job_that_slurm_does_not_requeue_goes_on_in_its_successor(run: RunConfig) -> None:
    mark(run)
    assert decide(run, 0, NO_REQUEUE, THIRD, may_succeed=True) == (
        True,
        0,
        "stopped by SIGUSR1, checkpoint saved; continued by attempt 4",
    )


def test_the_attempts_of_all_jobs_are_limited(run: RunConfig) -> None:
    mark(run, ("123", 4))
    environ = {**THIRD, "PREDECESSORS": "99 100 101 102"}
    again, exit_code, sentence = decide(run, 0, NO_REQUEUE, environ, may_succeed=True)
    assert (again, exit_code) == (False, 1) and "after attempt 5 (run.max_attempts is 5)" in sentence


@pytest.mark.parametrize(("before", "again"), [(["101", "102"], True), (["101", "102", "103"], False)])
def test_three_jobs_without_a_new_checkpoint_have_no_successor(before: list[str], again: bool, run: RunConfig) -> None:
    past(run, *((job, i, 100 if i else 0) for i, job in enumerate([*before, "123"])), saved=100)
    environ = {"SLURM_JOB_ID": "123", "PREDECESSORS": " ".join(before)}
    assert decide(run, 137, NO_REQUEUE, environ, may_succeed=True).requeue == again


def commands(folder: Path, monkeypatch, **texts: str) -> None:
    """Put shell scripts of these names first on PATH."""
    for name, text in texts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_a_successor_has_the_options_arguments_and_variables_of_its_job(tmp_path: Path, monkeypatch) -> None:
    commands(
        tmp_path, monkeypatch,
        sacct="echo 'sbatch -N 2 --wait --output log slurm/train.sbatch tiny.yaml --x a b'",
        sbatch=f'printf "%s\\n" "$@" >{tmp_path}/arguments; env >{tmp_path}/environment; echo "124;cluster"',
    )  # fmt: skip
    environ = {**THIRD, "PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_CONF": "file", "SLURM_JOB_END_TIME": "1",
               "SBATCH_PARTITION": "gpu", "SBATCH_WAIT": "1", "SLURM_SUBMIT_DIR": str(tmp_path)}  # fmt: skip
    assert successors.submit(["/repo/slurm/train.sbatch", "tiny.yaml", "--x", "a  b"], environ) == ("124", "")
    assert (tmp_path / "arguments").read_text().splitlines() == [
        "-N", "2", "--output", "log", "--parsable", "--export=ALL", "--dependency=afterany:123",
        "/repo/slurm/train.sbatch", "tiny.yaml", "--x", "a  b",
    ]  # fmt: skip
    found = dict(line.split("=", 1) for line in (tmp_path / "environment").read_text().splitlines())
    assert found["PREDECESSORS"] == "101 102 123" and found["SBATCH_PARTITION"] == "gpu"
    assert [name for name in found if name.startswith("SLURM_")] == ["SLURM_CONF"]
    assert "SBATCH_WAIT" not in found  # it would wait for its own end


SUBMITTED = "#SBATCH --array=0-4%2\n#SBATCH --partition=gpu\n#SBATCH --time=90\n"


@pytest.fixture
def submission(tmp_path: Path, monkeypatch) -> dict[str, str]:
    """The environment of the third job for element 3 of an array that `tinyimnet submit` sent, in tmp_path/sent."""
    commands(
        tmp_path, monkeypatch, scancel=f'echo "$@" >{tmp_path}/cancelled',
        sbatch=f'printf "%s\\n" "$@" >{tmp_path}/arguments; env >{tmp_path}/environment; echo 203',
    )  # fmt: skip
    (tmp_path / "sent" / "201").mkdir(parents=True)
    (tmp_path / "sent" / "201" / "201_submission.sh").write_text(SUBMITTED)
    (tmp_path / "sent" / "202_3").mkdir()
    (tmp_path / "sent" / "202_3" / "202_3_submitted.pkl").write_bytes(b"pickle")
    return {"SLURM_ARRAY_JOB_ID": "202", "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_ID": "205", "PREDECESSORS": "201_3",
            "SLURM_SUBMIT_DIR": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin"}  # fmt: skip


def test_an_element_of_a_submission_runs_the_first_script_alone(submission: dict[str, str], tmp_path: Path) -> None:
    site = {"SBATCH_PARTITION": "cpu", "SBATCH_TIMELIMIT": "5", "SBATCH_ACCOUNT": "me"}
    folder = tmp_path / "sent"
    assert successors.submit([str(folder)], submission | site) == ("203_3", f"{folder}/203_3/203_3_0_log.out")
    assert (tmp_path / "arguments").read_text().splitlines() == [
        "--parsable", "--export=ALL", "--dependency=afterany:202_3", "--array=3", f"{folder}/201/201_submission.sh",
    ]  # fmt: skip
    environment = (tmp_path / "environment").read_text()
    assert "PREDECESSORS=201_3 202_3\n" in environment
    assert re.findall("SBATCH_.*", environment) == ["SBATCH_ACCOUNT=me"]  # of site.env; the profile sets the others
    assert (folder / "203_3" / "203_3_submitted.pkl").read_bytes() == b"pickle"


def test_a_successor_that_cannot_be_given_its_pickle_is_cancelled(submission: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "sent" / "203_3").touch()
    with pytest.raises(UserError, match=r"the successor is cancelled, because .*203_3_submitted.pkl cannot be written"):
        successors.submit([str(tmp_path / "sent")], submission)
    assert (tmp_path / "cancelled").read_text() == "203_3\n"


@pytest.mark.parametrize(
    ("sacct", "sbatch", "reason"),
    [
        ("echo is disabled >&2; exit 1", "", "sacct does not know how this job was (is disabled)"),
        ("echo", "", "sacct does not know how this job was (no SubmitLine)"),
        ("echo sbatch train.sbatch", "echo access denied >&2; exit 1", "was not submitted (access denied)"),
    ],
    ids=["no accounting", "no SubmitLine", "refused"],
)
def test_a_successor_that_cannot_be_submitted_is_one_sentence(
    sacct: str, sbatch: str, reason: str, tmp_path: Path, monkeypatch
) -> None:
    commands(tmp_path, monkeypatch, sacct=sacct, sbatch=sbatch)
    with pytest.raises(UserError, match=re.escape(reason) + ".*the run is saved: submit it again to resume"):
        successors.submit(["train.sbatch"], {**THIRD, "PATH": str(tmp_path), "SLURM_SUBMIT_DIR": str(tmp_path)})


def test_a_second_ctrl_c_is_not_requeued(run: RunConfig) -> None:
    past(run, ("123", 2, 0), saved=100)
    assert not decide(run, 130, RUNNING, ATTEMPT_3).requeue


def test_a_run_that_diverges_leaves_an_error_file(arguments, tmp_path: Path, monkeypatch) -> None:
    keys = {"optim__lr": 1e30, "train__max_skipped_steps": 1, "run__log_every": 1, "run__save_every": 1}
    monkeypatch.setenv("SLURM_JOB_ID", "123")
    assert errors.run(train.main, arguments(**keys)) == 2
    assert "not finite" in (tmp_path / "run" / "ERROR").read_text()
    run, first = RunConfig(dir=str(tmp_path / "run")), {"SLURM_JOB_ID": "123"}
    assert not decide(run, 137, RUNNING, first).requeue
    (tmp_path / "run" / "ERROR").unlink()
    assert decide(run, 137, RUNNING, first).requeue


def test_an_attempt_that_slurm_declared_lost_does_not_end_the_next_one(run: RunConfig) -> None:
    past(run, ("123", 2, 0), saved=100)
    mark(run)
    again, exit_code, sentence = decide(run, 1, {**RUNNING, "Restarts": "3"}, ATTEMPT_3)
    assert (again, exit_code) == (False, 1) and "a later attempt of this job has started" in sentence
    assert decide(run, 1, {**RUNNING, "Restarts": "2"}, ATTEMPT_3).requeue


def test_without_an_answer_from_slurm_a_failure_is_not_requeued(run: RunConfig) -> None:
    past(run, ("123", 2, 0), saved=100)
    assert not decide(run, 137, {}, ATTEMPT_3).requeue


def test_a_line_cut_off_by_a_power_failure_hides_no_other(run: RunConfig) -> None:
    past(run, ("123", 0, 0), ("123", 2, 100), saved=140)
    attempts = Path(run.dir) / "attempts.jsonl"
    first, last = attempts.read_text().splitlines()
    attempts.write_text(f"{first}\n{first[:20]}\n{last}\n")
    assert decide(run, 1, RUNNING, ATTEMPT_3).requeue


def test_a_finished_run_that_crashed_at_exit_is_finished(run: RunConfig) -> None:
    past(run, ("123", 2, 0), saved=100)
    (Path(run.dir) / "DONE").touch()
    assert decide(run, 134, RUNNING, ATTEMPT_3) == (False, 0, "finished in attempt 3")


def test_outside_slurm_nothing_is_requeued(run: RunConfig) -> None:
    past(run, ("", 0, 0), saved=100)
    assert not decide(run, 1, {}, {}).requeue


def test_a_user_error_is_not_requeued_and_keeps_its_exit_code(run: RunConfig) -> None:
    assert decide(run, 2, RUNNING, ATTEMPT_3) == (False, 2, "ended with exit code 2; not requeued")


def test_an_error_after_a_requeued_attempt_is_not_requeued(run: RunConfig) -> None:
    mark(run, ("123", 1))
    assert not decide(run, 1, RUNNING, ATTEMPT_3).requeue


@pytest.mark.parametrize("job", [RUNNING, PREEMPTED], ids=["running", "preempted"])
def test_a_run_stopped_by_a_person_is_not_requeued(job: dict[str, str], run: RunConfig) -> None:
    (Path(run.dir) / "STOP").touch()
    assert decide(run, 0, job, ATTEMPT_3) == (False, 0, "stopped by the user; not requeued")


def test_a_cancelled_job_stays_cancelled(run: RunConfig) -> None:
    mark(run)
    assert not decide(run, 0, {"JobState": "CANCELLED", "PreemptTime": "None"}, ATTEMPT_3).requeue


def test_an_attempt_without_a_step_ends_the_job(run: RunConfig) -> None:
    mark(run, steps=0)
    again, exit_code, sentence = decide(run, 0, RUNNING, ATTEMPT_3)
    assert (again, exit_code) == (False, 1) and "but attempt 3 completed no step" in sentence


def test_attempts_are_limited(run: RunConfig) -> None:
    mark(run, ("123", 4))
    again, exit_code, sentence = decide(run, 0, RUNNING, {**ATTEMPT_3, "SLURM_RESTART_COUNT": "4"})
    assert (again, exit_code) == (False, 1) and "after attempt 5 (run.max_attempts is 5)" in sentence


def test_a_half_written_marker_is_ignored(run: RunConfig) -> None:
    (Path(run.dir) / "REQUEUE").write_text('{"reason": "SIG')
    assert not decide(run, 0, RUNNING, ATTEMPT_3).requeue


def test_a_run_begun_late_in_an_attempt_may_have_no_step(run: RunConfig) -> None:
    mark(run, steps=0)
    assert decide(run, 0, RUNNING, ATTEMPT_3, begun_late=True).requeue
