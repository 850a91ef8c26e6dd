"""Calls of Slurm's commands, here scripts on PATH, and the use of their output; tests/cluster runs the real Slurm."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.run_folders import sent
from tinyimnet import cli, errors
from tinyimnet.config import RunConfig
from tinyimnet.distributed import slurm
from tinyimnet.errors import UserError
from tinyimnet.launch.requeue import main

ATTEMPT_3 = {"SLURM_JOB_ID": "123", "SLURM_RESTART_COUNT": "2"}


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Return a function that puts a script on an otherwise empty PATH and returns the file of its calls."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}")

    def put(name: str, text: str) -> Path:
        calls = tmp_path / f"{name}.calls"
        path = "PATH=/usr/bin:/bin"
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{path}\necho \"$*\" >> '{calls}'\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
        return calls

    return put


# ---- squeue, sacct, scancel -------------------------------------------------------------------------------------


def test_status_calls_squeue_and_sacct_once(program, make_run, tmp_path: Path, capsys) -> None:
    squeue, sacct = program("squeue", "echo '12|RUNNING|n[1-2]'"), program("sacct", "echo '13|TIMEOUT'")
    for name, job in (("a", "12"), ("b", "13")):
        make_run(name, job__json=sent(job))
    assert cli.main(["status", str(tmp_path / "runs")]) == 0
    rows = [line.split()[:3] for line in capsys.readouterr().out.splitlines()]
    assert ["a", "running", "n[1-2]"] in rows and ["b", "timeout", "-"] in rows
    assert squeue.read_text() == "-h -r --me -o %i|%T|%R|%o\n"
    assert sacct.read_text() == "-X -n -P -o JobID,State -j 13\n"


def test_cancel_passes_the_job_to_scancel(program, make_run, capsys) -> None:
    program("squeue", "echo '12_3|RUNNING|n1'")
    asked = program("scancel", "")
    assert cli.main(["cancel", str(make_run("a", job__json=sent("12_3")))]) == 0
    assert asked.read_text() == "12_3\n"


def test_the_message_includes_the_error_of_a_failed_command(program, make_run, capsys) -> None:
    program("squeue", "echo 'squeue: error: slurm is away' >&2; exit 1")
    assert errors.run(cli.main, ["cancel", str(make_run("a", job__json=sent("1"), LOCK={}))]) == 2
    assert "error: squeue failed (squeue: error: slurm is away)" in capsys.readouterr().err


# ---- scontrol ---------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A run that was stopped and saved in attempt 3 of its job."""
    for name, value in ATTEMPT_3.items():
        monkeypatch.setenv(name, value)
    marker = {"reason": "SIGUSR1", "attempt": ["123", 2], "steps": 10}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "REQUEUE").write_text(json.dumps(marker))
    return RunConfig(dir=str(tmp_path / "run"), max_attempts=5)


def test_a_controller_that_is_restarting_is_asked_again(run, program, tmp_path: Path, monkeypatch) -> None:
    again = f"[ $(grep -c -- \"$1\" '{tmp_path}/scontrol.calls') = 2 ] || {{ echo 'no controller' >&2; exit 1; }}"
    asked = program("scontrol", f"{again}\necho JobState=RUNNING PreemptTime=None")
    monkeypatch.setattr(slurm.time, "sleep", lambda _: None)
    assert main(["0", f"--run.dir={run.dir}"]) == 0
    assert asked.read_text().splitlines() == ["--oneliner show job 123"] * 2 + ["requeue 123"] * 2


def test_a_requeue_that_slurm_refuses_is_tried_once_and_says_what_to_do(run, program, capsys) -> None:
    asked = program("scontrol", "[ $1 = requeue ] || { echo JobState=RUNNING PreemptTime=None; exit; }\n"
                                "echo 'Operation disabled' >&2; exit 1")  # fmt: skip
    with pytest.raises(UserError, match=r"scontrol requeue 123 failed \(Operation disabled\); the run is saved"):
        main(["0", f"--run.dir={run.dir}"])
    assert asked.read_text().splitlines()[1:] == ["requeue 123"]
    assert "requeued" not in capsys.readouterr().out


def test_without_scontrol_a_finished_run_still_ends_well(run, monkeypatch) -> None:
    monkeypatch.setenv("PATH", os.path.join(run.dir, "empty"))
    (Path(run.dir) / "DONE").touch()
    assert main(["0", f"--run.dir={run.dir}"]) == 0
