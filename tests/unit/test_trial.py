"""What an element of slurm/sweep.sbatch does when a trial has ended, and the files of configs/sweep.

tests/wandb runs the real agent, tests/cluster the real Slurm.
"""

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.program import REPO
from helpers.run_folders import attempt
from tinyimnet import config_cli
from tinyimnet.distributed import slurm
from tinyimnet.errors import UserError
from tinyimnet.launch import trial

RUNNING = "JobState=RUNNING PreemptTime=None"
PREEMPTED = "JobState=RUNNING PreemptTime=2026-11-24T17:10:14"
CANCELLED = "JobState=CANCELLED PreemptTime=None"
NO_REQUEUE = "JobState=RUNNING PreemptTime=None Requeue=0"
SUPERSEDED = "JobState=RUNNING PreemptTime=None Restarts=1"
SCRIPT = ["slurm/sweep.sbatch", "a/b/c"]
SUCCESSOR = "sbatch --array=0-7 --parsable --export=ALL --dependency=afterany:7_0 --array=0 slurm/sweep.sbatch a/b/c"


@pytest.fixture
def end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Return a function that ends a trial, whose folder has these files, in the first attempt of job 7_0."""

    def slurm_command(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        with (tmp_path / "asked").open("a") as asked:
            print(*command, file=asked)
        answers = {"sbatch": "9", "sacct": "sbatch --array=0-7 slurm/sweep.sbatch a/b/c"}
        answer = answers.get(command[0]) or (tmp_path / "job").read_text()
        return subprocess.CompletedProcess(command, 0, answer, "")

    monkeypatch.setattr(slurm, "patiently", slurm_command)
    for name, value in {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0", "SLURM_JOB_ID": "70",
                        "SLURM_SUBMIT_DIR": str(tmp_path)}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    (tmp_path / "run").mkdir()

    def end(
        exit_code: int | None, job: str, reason: str = "", *files: str, steps: int = 5, begun: int = 0,
        arguments: Sequence[str] = (),
    ) -> int:  # fmt: skip
        (tmp_path / "job").write_text(job)
        for file in files:
            (tmp_path / "run" / file).touch()
        if reason:
            marker = {"reason": reason, "attempt": ["7_0", 0], "steps": steps}
            (tmp_path / "run" / "REQUEUE").write_text(json.dumps(marker))
        begun_by = {"run_dir": str(tmp_path / "run"), "arguments": arguments, "attempt": ["7_0", begun]}
        (tmp_path / "trial").write_text(json.dumps(begun_by | {"exit_code": exit_code}))
        return trial.main(["--ended", str(tmp_path / "trial"), *SCRIPT])

    return end


@pytest.mark.parametrize(
    ("left", "exit_code"),
    [
        ((0, RUNNING, "", "DONE"), 0),
        ((None, PREEMPTED, "", "DONE"), 0),  # killed after it had finished
        ((1, RUNNING), 1),  # its own error
        ((0, RUNNING, "", "STOP"), 0),  # stopped by a person
        ((0, PREEMPTED, "", "STOP"), 0),  # the same, at the moment of a preemption
        ((0, RUNNING, "SIGTERM"), 0),  # stopped by its agent
        ((None, RUNNING, "SIGTERM"), 0),  # the same, killed while it waited for W&B
    ],
)
def test_a_trial_that_has_ended_makes_room_for_the_next(left, exit_code, end, tmp_path: Path) -> None:
    assert end(*left) == exit_code
    assert not (tmp_path / "trial").exists()
    assert "requeue" not in (tmp_path / "asked").read_text()


def test_a_trial_stopped_by_its_agent_is_marked_as_stopped_for_good(end, tmp_path: Path) -> None:
    end(0, RUNNING, "SIGTERM")
    assert (tmp_path / "run" / "STOP").exists() and not (tmp_path / "run" / "REQUEUE").exists()


@pytest.mark.parametrize(
    "left",
    [
        (0, RUNNING, "SIGUSR1"),
        (0, RUNNING, "the job's time limit"),
        (0, RUNNING, "the exit of the launcher"),
        (0, PREEMPTED, "SIGTERM"),
        (None, PREEMPTED),
        (0, "", "SIGTERM"),  # Slurm does not answer: rather continue a trial too long than lose one
    ],
)
def test_a_trial_whose_job_ends_is_kept_and_the_job_requeued(left, end, tmp_path: Path) -> None:
    assert end(*left) == 0
    assert (tmp_path / "trial").exists()
    assert (tmp_path / "asked").read_text().splitlines()[-1] == "scontrol requeue 7_0"


def test_where_slurm_does_not_requeue_the_successor_gets_the_trial(end, tmp_path: Path, capsys) -> None:
    assert end(0, NO_REQUEUE, "SIGUSR1") == 0
    assert (tmp_path / "asked").read_text().splitlines()[-1] == SUCCESSOR
    assert "trial run: stopped by SIGUSR1, checkpoint saved; continued by attempt 2, which is job 9_0" in (
        capsys.readouterr().out
    )
    kept = tmp_path / "trial"  # sweep.sbatch ends if it is there
    assert (tmp_path / ".trial-9-0").read_text() == kept.read_text()
    assert json.loads((tmp_path / "run" / "job.json").read_text())["job"] == "9_0"


@pytest.mark.parametrize(
    "left", [(0, NO_REQUEUE, "", "DONE"), (0, NO_REQUEUE, "", "STOP"), (0, NO_REQUEUE, "SIGTERM"),
             (0, NO_REQUEUE.replace("RUNNING", "CANCELLED"), "SIGTERM"), (None, NO_REQUEUE)],
    ids=["finished", "stopped", "stopped by its agent", "cancelled", "killed without progress"],
)  # fmt: skip
def test_a_trial_that_is_not_to_go_on_has_no_successor(left, end, tmp_path: Path) -> None:
    end(*left)
    assert "sbatch" not in (tmp_path / "asked").read_text()


def test_a_trial_begun_just_before_the_end_needs_no_progress(end, tmp_path: Path) -> None:
    assert end(0, RUNNING, "the job's time limit", steps=0) == 0
    assert (tmp_path / "asked").read_text().splitlines()[-1] == "scontrol requeue 7_0"


def test_a_trial_without_progress_in_a_whole_attempt_ends_the_job(end, tmp_path: Path, capsys) -> None:
    assert end(0, RUNNING, "the job's time limit", steps=0, begun=-1) == 1
    assert "completed no step" in capsys.readouterr().out
    assert "requeue" not in (tmp_path / "asked").read_text()


def test_a_trial_has_the_number_of_attempts_that_its_sweep_sets(end, tmp_path: Path, capsys) -> None:
    assert end(0, RUNNING, "SIGUSR1", arguments=["--run.max_attempts=1"]) == 1
    assert "not requeued after attempt 1 (run.max_attempts is 1)" in capsys.readouterr().out


def test_a_killed_trial_with_a_new_checkpoint_is_kept_and_requeued(end, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints" / "step_00000100.pt").touch()
    (tmp_path / "run" / "attempts.jsonl").write_text(json.dumps(attempt("7_0")))
    assert end(None, RUNNING) == 0
    assert (tmp_path / "trial").exists()
    assert (tmp_path / "asked").read_text().splitlines()[-1] == "scontrol requeue 7_0"


ENDED_EARLY = {
    "preempted": (PREEMPTED, "scontrol requeue 7_0"),
    "preempted, no requeue": (f"{PREEMPTED} Requeue=0", SUCCESSOR),
    "not preempted": (RUNNING, ""),
    "preempted and cancelled": (PREEMPTED.replace("RUNNING", "CANCELLED"), ""),
}


@pytest.mark.parametrize(("job", "asked"), ENDED_EARLY.values(), ids=ENDED_EARLY)
def test_an_element_without_a_trial_goes_on_only_if_preempted(job: str, asked: str, end, tmp_path: Path) -> None:
    (tmp_path / "job").write_text(job)
    assert trial.main(["--none", "3", *SCRIPT]) == (0 if asked else 3)
    assert (tmp_path / "asked").read_text().splitlines()[-1] == (asked or "scontrol --oneliner show job 7_0")


@pytest.mark.parametrize("left", [(2, SUPERSEDED), (0, SUPERSEDED, "", "STOP"), (0, SUPERSEDED, "SIGTERM")])
def test_an_attempt_declared_lost_leaves_the_trial_to_the_next_one(left, end, tmp_path: Path) -> None:
    end(*left)
    assert (tmp_path / "trial").exists()
    assert "requeue" not in (tmp_path / "asked").read_text()


@pytest.mark.parametrize("left", [(None, RUNNING), (0, CANCELLED, "SIGTERM"), (1, CANCELLED)])
def test_a_trial_that_was_killed_or_cancelled_is_kept_and_the_job_ends(left, end, tmp_path: Path) -> None:
    end(*left)
    assert (tmp_path / "trial").exists()
    assert "requeue" not in (tmp_path / "asked").read_text()


def test_starting_a_trial_by_hand_points_to_wandb_agent() -> None:
    with pytest.raises(UserError, match="start trials with `wandb agent`"):
        trial.main([])


# ---- configs/sweep --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", sorted((REPO / "configs/sweep").glob("*.yaml")), ids=lambda file: file.name)
def test_every_value_of_a_sweep_file_is_valid(file: Path, monkeypatch) -> None:
    monkeypatch.chdir(REPO)
    sweep = yaml.safe_load(file.read_text(encoding="utf-8"))
    command = sweep["command"]
    assert command[:4] == ["${env}", "${interpreter}", "-m", "tinyimnet.launch.trial"] and command[-1] == "${args}"
    assert file.relative_to(REPO).as_posix() in file.read_text(encoding="utf-8").partition("\nprogram:")[0]
    for key, parameter in sweep["parameters"].items():
        values = parameter.get("values") or [
            parameter[bound] for bound in ("value", "min", "max") if bound in parameter
        ]
        for value in values:
            section, _, name = key.partition(".")
            loaded = config_cli.load([*command[4:-1], f"--{key}={value}"])  # as ${args} writes it
            assert getattr(getattr(loaded, section), name) == value
