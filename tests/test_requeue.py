"""What becomes of a Slurm job whose training has ended. The real thing: tests/cluster."""

import json
from pathlib import Path

import pytest
from lives import live

from launch import requeue
from launch.requeue import decide, main
from tinyimnet import errors
from tinyimnet.config import RunConfig
from tinyimnet.errors import UserError

RUNNING = {"JobState": "RUNNING", "PreemptTime": "None"}
PREEMPTED = {"JobState": "RUNNING", "PreemptTime": "2026-11-24T17:10:14"}
LIFE_3 = {"SLURM_JOB_ID": "123", "SLURM_RESTART_COUNT": "2"}


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    return RunConfig(dir=str(tmp_path), max_lives=5)


def mark(run: RunConfig, life: tuple = ("123", 2), steps: int = 10) -> None:
    marker = {"reason": "SIGUSR1", "life": list(life), "steps": steps}
    (Path(run.dir) / "REQUEUE").write_text(json.dumps(marker))


def test_a_run_that_was_stopped_and_got_on_is_requeued(run: RunConfig) -> None:
    mark(run)
    assert decide(run, 0, RUNNING, LIFE_3) == (True, 0, "stopped by SIGUSR1 and saved; requeued for life 4")


def test_so_is_one_of_an_array(run: RunConfig) -> None:
    mark(run, ("99_1", 0))
    environ = {"SLURM_JOB_ID": "101", "SLURM_ARRAY_JOB_ID": "99", "SLURM_ARRAY_TASK_ID": "1"}
    assert decide(run, 0, RUNNING, environ).requeue


def test_a_preempted_one_is_requeued_whatever_it_did(run: RunConfig) -> None:
    assert decide(run, 143, PREEMPTED, LIFE_3) == (True, 0, "preempted; requeued for life 4")


def test_a_finished_one_is_not(run: RunConfig) -> None:
    mark(run)
    (Path(run.dir) / "DONE").touch()
    assert decide(run, 0, PREEMPTED, LIFE_3) == (False, 0, "finished in life 3")


def past(run: RunConfig, *starts: tuple[str, int, int], saved: int = 0) -> None:
    """Leave starts of the run, (job, restart, step), and a newest checkpoint."""
    lines = [json.dumps({"job": job, "restart": restart, "step": step}) for job, restart, step in starts]
    (Path(run.dir) / "lives.jsonl").write_text("\n".join(lines) + "\n")
    (Path(run.dir) / "checkpoints").mkdir()
    for step in {0, saved} - {0}:
        (Path(run.dir) / "checkpoints" / f"step_{step:08d}.pt").touch()


def test_one_that_lost_a_process_after_it_had_saved_something_new_is_requeued(run: RunConfig) -> None:
    past(run, ("123", 0, 0), ("123", 2, 100), saved=140)
    again, exit_code, sentence = decide(run, 137, RUNNING, LIFE_3)
    assert (again, exit_code) == (True, 0)
    assert sentence == "ended with exit code 137, with step 140 saved; requeued for life 4"


NOTHING_NEW: dict[str, tuple[list, int, bool]] = {
    "never, in this job": ([("123", 2, 0)], 0, False),
    "but went on from another job": ([("99", 0, 0), ("123", 0, 100), ("123", 2, 100)], 100, True),
    "in another job only": ([("99", 0, 0), ("123", 2, 100)], 100, False),
    "for one life": ([("123", 1, 50), ("123", 2, 100)], 100, True),
    "for two lives": ([("123", 0, 50), ("123", 1, 100), ("123", 2, 100)], 100, True),
    "for two lives, which did not begin": ([("123", 0, 50)], 100, True),
}


@pytest.mark.parametrize(("starts", "saved", "again"), NOTHING_NEW.values(), ids=NOTHING_NEW)
def test_a_failure_that_saved_nothing_new_is_forgiven_for_two_lives_of_a_job_that_had_got_on(
    starts: list, saved: int, again: bool, run: RunConfig
) -> None:
    past(run, *starts, saved=saved)
    assert decide(run, 1, RUNNING, LIFE_3).requeue == again


def test_not_for_three(run: RunConfig) -> None:
    past(run, ("123", 0, 50), ("123", 3, 100), saved=100)
    assert decide(run, 1, RUNNING, {**LIFE_3, "SLURM_RESTART_COUNT": "2"}).requeue
    assert not decide(run, 1, RUNNING, {**LIFE_3, "SLURM_RESTART_COUNT": "3"}).requeue


def test_a_later_life_that_is_refused_before_it_begins_is_requeued_and_a_mistake_after_that_is_not(
    run: RunConfig,
) -> None:
    past(run, ("123", 1, 0), saved=100)
    assert decide(run, errors.USER_ERROR, RUNNING, LIFE_3).requeue
    with (Path(run.dir) / "lives.jsonl").open("a") as lives:
        lives.write(json.dumps({"job": "123", "restart": 2, "step": 100}) + "\n")
    assert not decide(run, errors.USER_ERROR, RUNNING, LIFE_3).requeue


@pytest.mark.parametrize("file", ["STOP", "MISTAKE"])
def test_what_a_person_asked_for_or_has_to_mend_is_not_requeued_whatever_the_exit_code(
    file: str, run: RunConfig
) -> None:
    """Killed while it waits for W&B, or stuck until it is killed, a process has the exit code of a signal."""
    past(run, ("123", 2, 0), saved=100)
    assert decide(run, 137, RUNNING, LIFE_3).requeue
    (Path(run.dir) / file).touch()
    assert not decide(run, 137, RUNNING, LIFE_3).requeue


def test_a_second_ctrl_c_is_obeyed(run: RunConfig) -> None:
    past(run, ("123", 2, 0), saved=100)
    assert not decide(run, 130, RUNNING, LIFE_3).requeue


def test_a_run_that_diverges_leaves_the_marker(arguments, tmp_path: Path) -> None:
    keys = {"optim__lr": 1e30, "train__max_bad_steps": 1, "run__log_every": 1, "run__save_every": 1}
    assert live(arguments(**keys), tmp_path / "log", environment={"SLURM_JOB_ID": "123"}) == [2]
    assert "not finite" in (tmp_path / "run" / "MISTAKE").read_text()
    run, first = RunConfig(dir=str(tmp_path / "run")), {"SLURM_JOB_ID": "123"}
    assert not decide(run, 137, RUNNING, first).requeue
    (tmp_path / "run" / "MISTAKE").unlink()
    assert decide(run, 137, RUNNING, first).requeue


def test_a_life_that_slurm_took_for_lost_does_not_end_the_one_after_it(run: RunConfig) -> None:
    past(run, ("123", 2, 0), saved=100)
    mark(run)
    again, exit_code, sentence = decide(run, 1, {**RUNNING, "Restarts": "3"}, LIFE_3)
    assert (again, exit_code) == (False, 1) and "a later life of this job has begun" in sentence
    assert decide(run, 1, {**RUNNING, "Restarts": "2"}, LIFE_3).requeue


def test_without_an_answer_of_slurm_a_failure_is_not_requeued(run: RunConfig) -> None:
    past(run, ("123", 2, 0), saved=100)
    assert not decide(run, 137, {}, LIFE_3).requeue


def test_a_line_that_a_power_failure_cut_hides_no_other(run: RunConfig) -> None:
    past(run, ("123", 0, 0), ("123", 2, 100), saved=140)
    lives = Path(run.dir) / "lives.jsonl"
    first, last = lives.read_text().splitlines()
    lives.write_text(f"{first}\n{first[:20]}\n{last}\n")
    assert decide(run, 1, RUNNING, LIFE_3).requeue


def test_a_finished_run_that_crashed_when_it_left_is_finished(run: RunConfig) -> None:
    past(run, ("123", 2, 0), saved=100)
    (Path(run.dir) / "DONE").touch()
    assert decide(run, 134, RUNNING, LIFE_3) == (False, 0, "finished in life 3")


def test_outside_slurm_nothing_is_requeued(run: RunConfig) -> None:
    past(run, ("", 0, 0), saved=100)
    assert not decide(run, 1, {}, {}).requeue


def test_an_error_is_not_and_keeps_its_exit_code(run: RunConfig) -> None:
    assert decide(run, 2, RUNNING, LIFE_3) == (False, 2, "ended with exit code 2; not requeued")


def test_an_error_after_a_life_that_was_requeued_is_not(run: RunConfig) -> None:
    mark(run, ("123", 1))
    assert not decide(run, 1, RUNNING, LIFE_3).requeue


@pytest.mark.parametrize("job", [RUNNING, PREEMPTED], ids=["running", "preempted"])
def test_a_person_who_stopped_it_is_obeyed(job: dict[str, str], run: RunConfig) -> None:
    (Path(run.dir) / "STOP").touch()
    assert decide(run, 0, job, LIFE_3) == (False, 0, "stopped by a person; not requeued")


def test_a_cancelled_one_stays_cancelled(run: RunConfig) -> None:
    mark(run)
    assert not decide(run, 0, {"JobState": "CANCELLED", "PreemptTime": "None"}, LIFE_3).requeue


def test_a_life_without_a_step_is_the_last(run: RunConfig) -> None:
    mark(run, steps=0)
    again, exit_code, sentence = decide(run, 0, RUNNING, LIFE_3)
    assert (again, exit_code) == (False, 1) and "without one step done in life 3" in sentence


def test_lives_are_limited(run: RunConfig) -> None:
    mark(run, ("123", 4))
    again, exit_code, sentence = decide(run, 0, RUNNING, {**LIFE_3, "SLURM_RESTART_COUNT": "4"})
    assert (again, exit_code) == (False, 1) and "life 5 of run.max_lives 5" in sentence


def test_a_half_written_marker_is_none(run: RunConfig) -> None:
    (Path(run.dir) / "REQUEUE").write_text('{"reason": "SIG')
    assert not decide(run, 0, RUNNING, LIFE_3).requeue


def test_one_begun_late_in_a_life_may_have_no_step(run: RunConfig) -> None:
    mark(run, steps=0)
    assert decide(run, 0, RUNNING, LIFE_3, begun_late=True).requeue


def scontrol(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a stub on PATH, in life 3 of a job."""
    (folder / "scontrol").write_text(text)
    (folder / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    for name, value in LIFE_3.items():
        monkeypatch.setenv(name, value)


def test_a_controller_that_restarts_meanwhile_is_asked_again(
    run: RunConfig, tmp_path: Path, monkeypatch
) -> None:
    mark(run)
    answers = f"""#!/bin/sh
echo "$*" >> {tmp_path}/asked
[ $(grep -c -- "$1" {tmp_path}/asked) = 2 ] || {{ echo "Unable to contact slurm controller" >&2; exit 1; }}
echo JobState=RUNNING PreemptTime=None
"""
    scontrol(answers, tmp_path, monkeypatch)
    monkeypatch.setattr(requeue.time, "sleep", lambda _: None)
    assert main(["0", f"--run.dir={run.dir}"]) == 0
    assert (tmp_path / "asked").read_text().split("\n")[-3:-1] == ["requeue 123"] * 2


def test_a_requeue_that_slurm_refuses_says_what_to_do(run: RunConfig, tmp_path: Path, monkeypatch) -> None:
    mark(run)
    answers = "#!/bin/sh\n[ $1 = requeue ] || { echo JobState=RUNNING PreemptTime=None; exit; }\necho 'Operation disabled' >&2; exit 1\n"
    scontrol(answers, tmp_path, monkeypatch)
    monkeypatch.setattr(requeue, "PATIENCE", 0)
    with pytest.raises(
        UserError, match=r"scontrol requeue 123 failed \(Operation disabled\); the run is saved"
    ):
        main(["0", f"--run.dir={run.dir}"])


def test_without_scontrol_a_finished_run_is_finished(run: RunConfig, tmp_path: Path, monkeypatch) -> None:
    scontrol("", tmp_path, monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    (Path(run.dir) / "DONE").touch()
    assert main(["0", f"--run.dir={run.dir}"]) == 0
