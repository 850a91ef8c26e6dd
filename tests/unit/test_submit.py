"""launch.submit: which runs it sends, as what, with which code. On a real Slurm: tests/cluster/test_submitit.py."""

from pathlib import Path

import pytest

from launch import submit
from tinyimnet import config_cli
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


def test_a_job_elsewhere_finds_the_files_that_are_named_from_here() -> None:
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
    assert config_cli.load(job.arguments) == config


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


def test_what_a_script_says_is_not_left_to_the_variables_of_a_site() -> None:
    script = "#!/bin/bash\n#SBATCH --time=90\n#SBATCH --gpus-per-node=8\n#SBATCH --requeue\nsrun --time=3 x\n"
    assert submit.overridden(script) == {"SBATCH_TIMELIMIT", "SBATCH_GPUS_PER_NODE", "SBATCH_REQUEUE"}
