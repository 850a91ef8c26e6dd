"""`tinyimnet submit`: the runs that it submits, and how; tests/cluster/test_submitit.py uses a real Slurm."""

import argparse
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from tinyimnet import cli, config_cli, errors
from tinyimnet.config import Config
from tinyimnet.errors import UserError
from tinyimnet.launch import submission, submit, successors
from tinyimnet.launch.runs import jobs_of
from tinyimnet.run.record import read_record

CONFIG = "configs/smoke.yaml"


def parsed(*argv: str) -> tuple[argparse.Namespace, list[str]]:
    return cli.make_parser(["submit"]).parse_known_args(["submit", *argv])


def runs(*argv: str) -> list[Config]:
    return submit.expand(*parsed("--config", CONFIG, *argv))


def test_a_single_run_uses_the_folder_of_its_configuration() -> None:
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


def test_the_paths_of_a_site_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_configuration_that_names_its_data_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a run could silently train on synthetic images instead of the real ones."""
    monkeypatch.setenv("DATA_ROOT", "/shared/data")
    (config,) = runs()
    assert config.data.root == str(Path.cwd() / "data/synthetic-200")


def test_relative_file_names_are_made_absolute_for_the_job() -> None:
    (config,) = runs("--config", "configs/tiny1m_cpu_distilled.yaml")
    assert config.data.soft_labels == str(Path.cwd() / "data/soft_labels.safetensors")
    assert config.train.init_from == str(Path.cwd() / "results/tiny1m_cpu.safetensors")
    (config,) = runs()
    assert (config.data.soft_labels, config.train.init_from) == ("", "")


def test_a_job_gets_the_configuration_of_its_submission(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("optim: {lr: 0.3}\n")
    (config,) = submit.expand(*parsed("--config", str(file), f"--run.dir={tmp_path}/run"))
    job = submit.make_job(config, tmp_path / "sent.yaml")
    file.write_text("optim: {lr: 0.4}\n")
    assert config_cli.load(job.arguments) == config


@pytest.mark.parametrize(
    "argv, sentence",
    [
        *((["--seeds", seeds], f"--seeds is '{seeds}' and must be of the form 0-4 or 0,7,9, with ranges from low to")
          for seeds in ("a-b", "", "a", "5-2", "1,", "-1", "0-4-8", "\u0663", "1.5", "0, 1")),
        (["--seeds", "3,3"], "--seeds is '3,3' and has seed 3 twice"),
        (["--seeds", "0-4,2"], "has seed 2 twice"),
        (["--seeds", "0-999999999999"], "which are 1,000,000,000,000 runs, and must be at most 10,000"),
        (["--seeds", "0-999", "--grid", "optim.lr=1,2,3,4,5,6,7,8,9,10,11"], "give 11,000 runs and must give at most"),
        (["--grid", "optim.lr=1e-3,1e+3"], "the runs of 1e-3 and 1e+3 would share the folder RUN-lr1e_3"),
        (["--grid", "optim.lr=0.1,0.1"], "the runs of 0.1 and 0.1 would share the folder RUN-lr0.1"),
        (["--grid", "optim.lr=0.1,"], "--grid optim.lr=0.1, is not of the form KEY=VALUE,VALUE"),
        (["--grid", "=1"], "--grid =1 is not of the form KEY=VALUE,VALUE"),
        (["--grid", "optim.lr=0.1", "optim.lr=0.2"], "optim.lr has its values from two of --grid and --seeds"),
        (["--grid", "run.seed=0", "--seeds", "0-1"], "run.seed has its values from two of --grid and --seeds"),
        (["--grid", "optim.lr"], "--grid optim.lr is not of the form KEY=VALUE,VALUE"),
        (["--grid", "optim.lrr=1"], "optim.lrr is not a known key; did you mean optim.lr?"),
        (["--optim.lr", "-1"], "optim.lr is -1"),
    ],
)  # fmt: skip
def test_a_user_error_is_found_before_anything_is_submitted(argv: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        runs(*argv)


@pytest.mark.parametrize("chosen", [["--data.root=/nowhere"], ["--grid", "data.root=/nowhere,/elsewhere"]])
def test_missing_data_are_found_before_anything_is_submitted(
    chosen: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["submit", "--config", CONFIG, f"--run.dir={tmp_path}/run", *chosen]
    assert errors.run(cli.main, argv) == 2
    assert "data.root /nowhere holds no prepared data set" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "profile, sentence",
    [
        ("{gpu: 8}", "cannot be used .*'gpu'.*; valid keys are nodes, gpus_per_node"),
        ("{nodes: two}", "nodes is 'two' and must be an integer of at least 1"),
        ("[", "p.yaml cannot be read: line 1: "),
        ("nodes: 1\nnodes: 2", "p.yaml cannot be read: line 2: nodes is given twice"),
        ("{nodes: true}", "nodes is True and must be an integer"),
    ],
)
def test_an_invalid_profile_is_refused(profile: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(profile)
    args, _ = parsed("--profile", str(tmp_path / "p.yaml"))
    with pytest.raises(UserError, match=sentence):
        submit.read_profile(args)


def test_a_checkout_of_another_owner_gets_the_words_of_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = tmp_path / "checkout"
    for name in ("objects", "refs"):
        (repo / ".git" / name).mkdir(parents=True)
    (repo / ".git/HEAD").write_text("ref: refs/heads/main\n")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, "/dev/null")
    with pytest.raises(UserError, match=f"dubious ownership .*git config --global --add safe.directory {repo}"):
        submit.snapshot(repo, tmp_path / "code")
    assert not (tmp_path / "code").exists()


def test_without_slurm_the_error_names_sbatch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="sbatch is not on PATH"):
        submit.make_executor("slurm", submit.Profile(), [Path("x.yaml")])


def test_sbatch_variables_that_would_override_the_script_are_found() -> None:
    script = "#!/bin/bash\n#SBATCH --time=90\n#SBATCH --gpus-per-node=8\n#SBATCH --requeue\nsrun --time=3 x\n"
    assert successors.overridden(script) == {"SBATCH_TIMELIMIT", "SBATCH_GPUS_PER_NODE", "SBATCH_REQUEUE"}


def test_the_files_of_an_array_are_outside_its_run_folders() -> None:
    """They are the code and the logs of all elements; deleting the first run must not take them."""
    array, single = runs("--seeds", "0-2"), runs()
    assert submission.folder_of(array).parent == Path(array[0].run.dir).parent
    assert submission.folder_of(single).parent == Path(single[0].run.dir)


def test_a_folder_of_a_submission_is_removed_only_with_what_it_made(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for folder in (tmp_path / "mine" / "submit-1", tmp_path / "new" / "run" / "submit-1"):
        with pytest.raises(UserError), submission.new_folder(folder):
            (folder / "code").mkdir()
            raise UserError("sbatch failed.")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"] and not list((tmp_path / "mine").iterdir())


def test_a_run_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="run.dir .* cannot be written"), submission.new_folder(tmp_path / "file" / "x"):
        pass


def test_job_json_keeps_the_earlier_jobs_that_may_still_wait(tmp_path: Path) -> None:
    (config,) = runs(f"--run.dir={tmp_path}/run")
    for cluster, job in (("slurm", "1"), ("slurm", "2"), ("local", "77"), ("slurm", "3")):
        stub = SimpleNamespace(job_id=job, paths=SimpleNamespace(stdout="log"))
        submission.record(config, cluster, stub)  # type: ignore[arg-type]
    assert jobs_of(read_record(tmp_path / "run")) == ["3", "2", "1"]
