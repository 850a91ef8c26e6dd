"""tinyimnet submit end to end: the script that it submits, the snapshot of the code, and jobs on this machine."""

import functools
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from helpers.program import REPO, python
from helpers.trainings import SERVER, draw_nothing, wait
from tinyimnet import cli, errors
from tinyimnet.launch import submission, submit


def slurm_that_fails(folder: Path, message: str) -> str:
    """Return a PATH with an sbatch that prints a message and fails."""
    folder.mkdir()
    for name in ("sbatch", "srun"):  # submitit looks for both
        (folder / name).write_text(f"#!/bin/sh\nprintf '{message}' >&2\nexit 1\n")
        (folder / name).chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


PARTITION = (
    "sbatch: error: invalid partition specified: nope\\nsbatch: error: Batch job submission failed: Invalid name"
)
UNREACHABLE = "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (PARTITION, "(invalid partition specified: nope; Batch job submission failed: Invalid name)"),
        (UNREACHABLE, "(Batch job submission failed: Unable to contact slurm controller (connect failure))"),
        ("", "()"),
    ],
    ids=["partition", "no controller", "no message"],
)
@pytest.mark.parametrize("seeds", [[], ["--seeds=0-1"]], ids=["one", "array"])
def test_a_refusal_by_slurm_is_one_sentence_and_leaves_nothing(
    message: str, reason: str, seeds: list[str], tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("PATH", slurm_that_fails(tmp_path / "bin", message))
    argv = ["submit", "--config", "configs/smoke.yaml", f"--run.dir={tmp_path}/runs/new", *seeds]
    assert errors.run(cli.main, argv) == 2
    assert capsys.readouterr().err == (
        f"error: nothing was submitted, because sbatch failed {reason}; change the profile, the options or "
        "slurm/site.env, or retry when Slurm responds.\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


SLURM = {
    "scontrol": "echo 'MaxArraySize            = {size}'",
    "scancel": 'echo "$@" >>{folder}/cancelled',
    "srun": "",  # submitit looks for it
    # Accepts the first {accepts} jobs, and keeps their scripts.
    "sbatch": """\
n=$(ls {folder}/script.* 2>/dev/null | wc -l)
if [ $n = {accepts} ]; then echo "sbatch: error: Job violates policy" >&2; exit 1; fi
cp "$1" {folder}/script.$n; echo "Submitted batch job $((100 + n))"
""",
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch):
    """Return a function that sets up a Slurm with arrays of `size` elements; commands replace those of SLURM."""

    def make(size: int, accepts: int = 9, **commands: str) -> Path:
        folder = tmp_path / "slurm"
        folder.mkdir()
        for name, text in (SLURM | commands).items():
            (folder / name).write_text("#!/bin/sh\n" + text.format(folder=folder, size=size, accepts=accepts))
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        return folder

    return make


def submit_seven(folder: Path, *options: str) -> int:
    argv = ["submit", "--config", "configs/smoke.yaml", f"--run.dir={folder}/runs/a", "--seeds=0-6", "--parallel=2"]
    return errors.run(cli.main, [*argv, *options])


def trained_by(script: str) -> list[str]:
    """Return the configurations in the order of the elements of the array."""
    configs = re.search(r"configs=\((.*)\)", script)
    assert configs
    return [Path(name).stem for name in configs[1].split()]


MANY = "7 runs in 3 arrays, because MaxArraySize of this cluster is 3; of each array 2 run at the same time"


def test_more_runs_than_an_array_may_have_are_several_arrays(slurm, tmp_path: Path, capsys) -> None:
    folder = slurm(size=3)
    assert submit_seven(tmp_path) == 0
    scripts = [(folder / f"script.{i}").read_text() for i in range(3)]
    assert [re.findall("--array=(.*)", script) for script in scripts] == [["0-2%2"], ["0-2%2"], []]
    sent = [f"{100 + i}_{k}" for i in (0, 1) for k in range(3)] + ["102"]
    for i, job in enumerate(sent):
        assert json.loads((tmp_path / f"runs/a-seed{i}/job.json").read_text())["job"] == job
        number, _, element = job.partition("_")
        assert trained_by(scripts[int(number) - 100])[int(element or 0)] == f"a-seed{i}"
    assert MANY in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    "scontrol",
    ["echo 'MaxArraySize = 7'", "echo 'MaxArraySize = 0'", "echo 'MaxArraySize = (null)'", r"printf '\377'", "exit 1"],
    ids=["as many as allowed", "no arrays", "no number", "no text", "failed"],
)
def test_a_cluster_that_does_not_limit_them_gets_one_array(scontrol: str, slurm, tmp_path: Path, capsys) -> None:
    folder = slurm(size=0, scontrol=scontrol)
    assert submit_seven(tmp_path) == 0
    assert "#SBATCH --array=0-6%2\n" in (folder / "script.0").read_text()
    assert "arrays" not in capsys.readouterr().err


def test_without_scontrol_there_is_one_array(slurm, tmp_path: Path) -> None:
    folder = slurm(size=3)
    (folder / "scontrol").unlink()
    assert submit_seven(tmp_path) == 0
    assert [path.name for path in folder.glob("script.*")] == ["script.0"]


def test_a_dry_run_prints_the_script_of_each_array(slurm, tmp_path: Path, capsys) -> None:
    slurm(size=3)
    assert submit_seven(tmp_path, "--dry-run") == 0
    printed = capsys.readouterr()
    assert [trained_by(script) for script in printed.out.split("#!/bin/bash")[1:]] == [
        [f"a-seed{i}" for i in part] for part in ((0, 1, 2), (3, 4, 5), (6,))
    ]
    assert printed.err == MANY + "\n"


@pytest.mark.parametrize(
    "scancel, begin, end",
    [
        (SLURM["scancel"], "error: nothing was submitted, ", "or retry when Slurm responds.\n"),
        ("exit 1", "error: not all was submitted, ", "or retry when Slurm responds, but first: scancel 100 101.\n"),
    ],
    ids=["cancelled", "not cancelled"],
)
def test_if_slurm_refuses_a_later_array_the_earlier_ones_are_cancelled(
    scancel: str, begin: str, end: str, slurm, tmp_path: Path, capsys
) -> None:
    folder = slurm(size=3, accepts=2, scancel=scancel)
    assert submit_seven(tmp_path) == 2
    error = capsys.readouterr().err.splitlines(keepends=True)[-1]
    assert error.startswith(f"{begin}because sbatch failed (Job violates policy); ") and error.endswith(end)
    assert scancel == "exit 1" or (folder / "cancelled").read_text() == "100 101\n"
    assert not (tmp_path / "runs").exists()


def test_python_files_that_git_does_not_track_are_named(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / ".gitignore").write_text("ignored.py\n")
    (tmp_path / "pkg").mkdir()
    for name in ("new module.py", "pkg/b.py", "ignored.py", "notes.txt"):
        (tmp_path / name).touch()
    assert submit.untracked(tmp_path) == "new module.py, pkg/b.py"
    for i in range(20):
        (tmp_path / f"x{i}.py").touch()
    assert submit.untracked(tmp_path).endswith(" and 12 more")


def shell(command: str) -> Any:
    """Return a job that runs a command."""
    return functools.partial(subprocess.run, ["bash", "-c", command], check=True)


def run_here(folder: Path, jobs: list[Any], parallel: int) -> None:
    (folder / "code").mkdir()
    executor = submit.make_executor("local", submit.Profile(), [folder / "a.yaml"])
    assert len(list(submission.start_here(executor, jobs, parallel))) == len(jobs)


@pytest.mark.parametrize("parallel", [1, 2])
def test_this_machine_runs_as_many_jobs_at_a_time_as_asked(parallel: int, tmp_path: Path) -> None:
    work = (
        f"n=$(ls -d {tmp_path}/busy.* 2>/dev/null | wc -l); mkdir {tmp_path}/busy.$$; sleep 1; rmdir {tmp_path}/busy.$$"
    )
    run_here(tmp_path, [shell(f"{work}; echo $((n + 1)) >>{tmp_path}/seen") for _ in range(3)], parallel)
    seen = (tmp_path / "seen").read_text().split()
    assert len(seen) == 3 and max(map(int, seen)) <= parallel


def test_a_failed_job_does_not_keep_the_next_one_from_running(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="CalledProcessError"):
        run_here(tmp_path, [shell("false"), shell(f"touch {tmp_path}/second")], parallel=1)
    assert (tmp_path / "second").exists()


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
    assert "--kill-on-bad-exit=1" in result.stdout and "wckey" not in result.stdout
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
    config = tmp_path / "mine.yaml"
    config.write_text(f"data: {{root: {tmp_path / 'tiny-imagenet-200'}}}\n")
    missing = [option for option in arguments(config=config) if not option.startswith("--data.root")]
    proxy = "http://127.0.0.1:9"  # nothing listens there
    result = python("-m", "tinyimnet", "submit", "--cluster=local", *missing, http_proxy=proxy, https_proxy=proxy)
    assert result.returncode != 0
    assert "UserError" in result.stderr and str(REPO) not in result.stdout
