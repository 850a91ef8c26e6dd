"""launch.submit: which runs it sends, as what, with which code. On a real Slurm: tests/cluster/test_submitit.py."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from conftest import REPO, python

from launch import submit
from tinyimnet import commandline
from tinyimnet.config import Config
from tinyimnet.errors import UserError

CONFIG = "configs/smoke.yaml"


def runs(*argv: str) -> list[Config]:
    args, overrides = submit._parser().parse_known_args(["--config", CONFIG, *argv])
    return submit.expand(args, overrides)


def test_one_run_goes_into_the_folder_of_its_configuration() -> None:
    (config,) = runs("--optim.lr", "0.3")
    assert config.run.dir == str(Path.cwd() / "runs/smoke")
    assert config.data.root == str(Path.cwd() / "data/synthetic-200")
    assert config.optim.lr == 0.3


def test_seeds_and_grid_give_a_run_for_each_combination() -> None:
    found = runs("--seeds", "0-1,7", "--grid", "optim.lr=0.1,0.2", "model.depths=[1,1,1,1],[2,2,2,2]")
    assert len(found) == len({config.run.dir for config in found}) == 3 * 2 * 2
    last = found[-1]
    assert last.run.dir.endswith("runs/smoke-lr0.2-depths_2_2_2_2_-seed7")
    assert (last.run.seed, last.optim.lr, last.model.depths) == (7, 0.2, (2, 2, 2, 2))


def test_the_places_of_a_site_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, place in {
        "RUNS_ROOT": "/scratch/runs",
        "DATA_ROOT": "/shared/data",
        "STAGE_TO": "/dev/shm",
    }.items():
        monkeypatch.setenv(name, place)
    (config,) = runs("--config", "configs/tiny1m.yaml")
    assert (config.run.dir, config.data.root, config.data.stage) == (
        "/scratch/runs/tiny1m",
        "/shared/data",
        "/dev/shm",
    )


def test_but_a_configuration_that_names_its_data_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn images in the place of the real ones would be trained on without a word."""
    monkeypatch.setenv("DATA_ROOT", "/shared/data")
    (config,) = runs()
    assert config.data.root == str(Path.cwd() / "data/synthetic-200")


def test_the_job_which_runs_elsewhere_finds_the_files_that_are_named_from_here() -> None:
    (config,) = runs("--config", "configs/tiny1m_cpu_distilled.yaml")
    assert config.data.soft_labels == str(Path.cwd() / "data/soft_labels.safetensors")
    assert config.train.init_from == str(Path.cwd() / "results/tiny1m_cpu.safetensors")
    (config,) = runs()
    assert (config.data.soft_labels, config.train.init_from) == ("", "")


def test_a_job_gets_the_configuration_of_its_submission(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("optim: {lr: 0.3}\n")
    args, overrides = submit._parser().parse_known_args(["--config", str(file), f"--run.dir={tmp_path}/run"])
    (config,) = submit.expand(args, overrides)
    job = submit.make_job(config, tmp_path / "sent.yaml")
    file.write_text("optim: {lr: 0.4}\n")
    assert commandline.load(job.arguments) == config


@pytest.mark.parametrize(
    "argv, sentence",
    [
        (["--seeds", "a-b"], "--seeds is 'a-b' and must be of the form 0-4"),
        (["--grid", "optim.lr"], "--grid optim.lr is not of the form KEY=VALUE,VALUE"),
        (["--grid", "optim.lrr=1"], "optim.lrr is not a known key; did you mean optim.lr?"),
        (["--optim.lr", "-1"], "optim.lr is -1"),
    ],
)
def test_a_mistake_is_found_before_anything_is_sent(argv: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence.replace("?", r"\?")):
        runs(*argv)


@pytest.mark.parametrize(
    "profile, sentence",
    [
        ("{gpu: 8}", "cannot be used .*'gpu'.*; its keys are nodes, gpus_per_node"),
        ("{nodes: two}", "nodes is 'two' and must be a whole number from 1 on"),
        ("[", "cannot be used"),
    ],
)
def test_a_profile_that_is_wrong_is_refused(profile: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(profile)
    args, _ = submit._parser().parse_known_args(["--profile", str(tmp_path / "p.yaml")])
    with pytest.raises(UserError, match=sentence):
        submit.read_profile(args)


def test_without_slurm_it_says_what_else_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="there is no sbatch on PATH"):
        submit.make_executor("slurm", submit.Profile(), [Path("x.yaml")])


def test_a_dry_run_prints_the_script_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("sbatch", "srun"):  # submitit looks for them
        (tmp_path / "bin" / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "bin" / name).chmod(0o755)
    result = python(
        "-m", "launch.submit", "--dry-run", "--config", CONFIG, f"--run.dir={tmp_path}/run", "--nodes=2",
        "--gpus-per-node=8", "--timeout=90", "--seeds=0-9", "--parallel=3", PATH=f"{tmp_path}/bin:/usr/bin:/bin",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    for line in ("--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--time=90", "--array=0-9%3", "--requeue",
                 "--signal=USR2@120", "--open-mode=append"):  # fmt: skip
        assert f"#SBATCH {line}\n" in result.stdout
    assert "--kill-on-bad-exit=1 --wait=0" in result.stdout and "wckey" not in result.stdout
    configs = re.search(r"configs=\((.*)\)", result.stdout)
    assert configs and [Path(name).name for name in configs[1].split()] == [
        f"run-seed{i}.yaml" for i in range(10)
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_what_a_script_says_is_not_left_to_the_variables_of_a_site() -> None:
    script = "#!/bin/bash\n#SBATCH --time=90\n#SBATCH --gpus-per-node=8\n#SBATCH --requeue\nsrun --time=3 x\n"
    assert submit.overridden(script) == {"SBATCH_TIMELIMIT", "SBATCH_GPUS_PER_NODE", "SBATCH_REQUEUE"}


def test_the_snapshot_has_tracked_files_as_they_are_now_and_what_changed(tmp_path: Path) -> None:
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


def test_for_a_debugger_it_trains_in_the_same_process(arguments, tmp_path: Path) -> None:
    result = python("-m", "launch.submit", "--cluster=debug", *arguments())
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "DONE").exists()


def test_on_this_machine_it_trains_with_two_processes_to_the_end(arguments, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("{tasks_per_node: 2, timeout: 5}\n")
    result = python("-m", "launch.submit", "--cluster=local", f"--profile={tmp_path}/p.yaml", *arguments())
    assert result.returncode == 0, result.stderr
    run = tmp_path / "run"
    assert (run / "DONE").exists()
    assert json.loads((run / "lives.jsonl").read_text())["processes"] == 2
    assert json.loads((run / "job.json").read_text())["cluster"] == "local"


def test_a_failure_on_this_machine_is_a_failure_of_the_command(arguments, tmp_path: Path) -> None:
    result = python("-m", "launch.submit", "--cluster=local", *arguments(data__root=tmp_path / "nowhere", data__source="tiny-imagenet"),
                    http_proxy="http://127.0.0.1:9", https_proxy="http://127.0.0.1:9")  # fmt: skip
    assert result.returncode != 0
    assert "UserError" in result.stderr and str(REPO) not in result.stdout
