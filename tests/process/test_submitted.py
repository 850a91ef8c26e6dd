"""tinyimnet submit end to end: the script that it submits, the snapshot of the code, and jobs on this machine."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from helpers.program import REPO, python
from helpers.trainings import SERVER, draw_nothing, wait
from tinyimnet import cli
from tinyimnet.launch import submit


def test_a_dry_run_prints_the_script_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("sbatch", "srun"):  # submitit looks for them
        (tmp_path / "bin" / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "bin" / name).chmod(0o755)
    result = python(
        "-m", "tinyimnet", "submit", "--dry-run", "--config", "configs/smoke.yaml", f"--run.dir={tmp_path}/run",
        "--nodes=2", "--gpus-per-node=8", "--timeout=90", "--seeds=0-9", "--parallel=3",
        PATH=f"{tmp_path}/bin:/usr/bin:/bin",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    for line in ("--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--time=90", "--array=0-9%3", "--requeue",
                 "--signal=USR2@120", "--open-mode=append"):  # fmt: skip
        assert f"#SBATCH {line}\n" in result.stdout
    assert "--kill-on-bad-exit=1 --wait=0" in result.stdout and "wckey" not in result.stdout
    configs = re.search(r"configs=\((.*)\)", result.stdout)
    assert configs and [Path(name).name for name in configs[1].split()] == [f"run-seed{i}.yaml" for i in range(10)]
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_the_snapshot_has_the_tracked_files_and_the_uncommitted_diff(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    repo.mkdir()
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for name in ("kept.py", "edited.py", "deleted.py"):
        (repo / name).write_text("1\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], cwd=repo, check=True)
    (repo / "edited.py").write_text("2\n")
    (repo / "deleted.py").unlink()
    (repo / "secret.env").write_text("key")
    submit.snapshot(repo, tmp_path / "code")
    assert {path.name for path in (tmp_path / "code").iterdir()} == {
        "kept.py",
        "edited.py",
        "COMMIT",
        "UNCOMMITTED.diff",
    }
    assert (tmp_path / "code" / "edited.py").read_text() == "2\n"
    assert "+2" in (tmp_path / "code" / "UNCOMMITTED.diff").read_text()
    assert len((tmp_path / "code" / "COMMIT").read_text().strip()) == 40


def debug(arguments: list[str], file: Path) -> None:
    os.environ |= {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    draw_nothing()
    file.write_text(str(os.getpid()), encoding="utf-8")
    cli.main(["submit", "--cluster=debug", *arguments])


def test_cluster_debug_trains_in_the_same_process(arguments, tmp_path: Path) -> None:
    process = SERVER.Process(target=debug, args=(arguments(train__epochs=1), tmp_path / "process"))
    process.start()
    assert wait([process]) == [0]
    assert (tmp_path / "run" / "DONE").exists()
    log = (tmp_path / "run" / "logs" / "rank_0.log").read_text()
    assert f"is process {(tmp_path / 'process').read_text()} on" in log


def test_cluster_local_trains_with_two_processes(arguments, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("{tasks_per_node: 2, timeout: 5}\n")
    result = python(
        "-m", "tinyimnet", "submit", "--cluster=local", f"--profile={tmp_path}/p.yaml", *arguments(train__epochs=1)
    )
    assert result.returncode == 0, result.stderr
    run = tmp_path / "run"
    assert (run / "DONE").exists()
    assert json.loads((run / "attempts.jsonl").read_text())["processes"] == 2
    assert json.loads((run / "job.json").read_text())["cluster"] == "local"


@pytest.mark.long
def test_a_failed_job_on_this_machine_fails_the_command(arguments, tmp_path: Path) -> None:
    missing = arguments(data__root=tmp_path / "nowhere", data__source="tiny-imagenet")
    proxy = "http://127.0.0.1:9"  # nothing listens there
    result = python("-m", "tinyimnet", "submit", "--cluster=local", *missing, http_proxy=proxy, https_proxy=proxy)
    assert result.returncode != 0
    assert "UserError" in result.stderr and str(REPO) not in result.stdout
