"""Configuration: precedence, round trip, missing values, and the differences that prevent a resume."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinyimnet import config_cli
from tinyimnet.config import KEYS, Config, OptimConfig, RunConfig, differences, dump
from tinyimnet.config_cli import load
from tinyimnet.errors import UserError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("optim: {lr: 1e-3}\nmodel: {depths: [1, 2, 3]}\n")
    return path


def test_command_line_beats_file_beats_default(file: Path) -> None:
    settings = load(["--config", str(file), "--optim.momentum=0.8"])
    assert (settings.optim.lr, settings.optim.momentum) == (0.001, 0.8)
    assert settings.optim.weight_decay == OptimConfig().weight_decay
    assert load(["--optim.lr", "0.7", "--config", str(file)]).optim.lr == 0.7


def test_without_a_config_file_it_is_tiny1m() -> None:
    assert load([]) == load(["--config", str(config_cli.DEFAULT_CONFIG)])
    assert load([]).run.dir == "runs/tiny1m"


def test_a_bare_name_is_a_configuration_that_comes_with_the_program(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(["--config", "smoke"]) == load(["--config", str(config_cli.CONFIGS / "smoke.yaml")])
    with pytest.raises(UserError, match=r"--config smok is neither a file nor one of baseline, smoke, tiny1m, "):
        load(["--config", "smok"])
    with pytest.raises(UserError, match=r"--config configs/smoke.yaml does not exist"):  # a path is only a path
        load(["--config", "configs/smoke.yaml"])


def test_a_file_in_the_working_directory_beats_the_name(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "smoke").write_text("optim: {lr: 0.123}\n")
    monkeypatch.chdir(tmp_path)
    assert load(["--config", "smoke"]).optim.lr == 0.123


def test_the_run_folder_is_named_after_the_config_file(file: Path) -> None:
    assert load(["--config", str(file)]).run.dir == "runs/mine"
    assert load(["--config", str(file), "--run.dir", "x"]).run.dir == "x"


@pytest.mark.parametrize("key, value", [*((key, "") for key in KEYS), ("optim.lr", " null"), ("model.widths", " ~")])
def test_a_key_without_a_value_is_refused(key: str, value: str, file: Path) -> None:
    section, name = key.split(".")
    file.write_text(f"{section}:\n  {name}:{value}\n", encoding="utf-8")
    with pytest.raises(UserError, match=f"^{key} has no value in {file}; give it one"):
        load(["--config", str(file)])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lr=st.floats(1e-9, 10),
    seed=st.integers(0, 2**62),
    widths=st.lists(st.integers(1, 500), min_size=1, max_size=5),
    width=st.one_of(st.just("auto"), st.floats(0.01, 9)),
    flip=st.booleans(),
    project=st.text(min_size=1)
    | st.sampled_from(["1e-3", "010", "12:30", "2024-01-01", "null", "~", "no", "1", "- x"]),
)
def test_what_is_dumped_loads_as_the_same_configuration(tmp_path: Path, lr, seed, widths, width, flip, project) -> None:
    original = Config(run=RunConfig(dir="runs/x", seed=seed))
    original = replace(
        original,
        optim=replace(original.optim, lr=lr),
        model=replace(original.model, widths=tuple(widths), depths=(1,) * len(widths), width=width),
        augment=replace(original.augment, flip=flip),
        tracking=replace(original.tracking, project=project),
    )
    path = tmp_path / "dumped.yaml"
    path.write_text(dump(original))
    assert load(["--config", str(path)]) == original


@pytest.mark.parametrize(
    "key, value, refused",
    [
        ("run.log_every", 7, False), ("run.eval_every", 2, False), ("run.save_every", 9, False),
        ("run.keep_checkpoints", 5, False), ("run.dir", "x", False), ("data.root", "x", False),
        ("tracking.project", "x", False), ("tracking.wandb", "offline", False), ("train.timeout", 9, False),
        ("run.profile", 3, False),
        ("train.device_batch_size", 2, False), ("train.epochs", 301, False), ("train.epochs", 299, True),
        ("run.seed", 1, True), ("train.global_batch_size", 512, True), ("train.precision", "fp32", True),
        ("optim.lr", 0.1, True), ("model.drop_path", 0.3, True), ("augment.flip", "false", True),
        ("data.source", "synthetic", True), ("train.max_skipped_steps", 5, True),
        ("train.ordered_reduction", "false", True),
    ],
)  # fmt: skip
def test_some_keys_may_change_when_a_run_resumes_and_others_are_refused(key: str, value, refused: bool) -> None:
    changed = differences(asdict(load([])), asdict(load([f"--{key}={value}"])))
    assert [line.partition(":")[0] for line in changed] == [key] * refused


def test_differences_name_only_keys_that_prevent_a_resume() -> None:
    old, new = (
        asdict(load([])),
        asdict(load(["--optim.lr=0.1", "--run.log_every=7", "--tracking.project=other"])),
    )
    assert differences(old, old) == []
    assert differences(old, new) == ["optim.lr: 0.12 -> 0.1"]


def test_a_run_older_than_a_key_resumes_only_with_its_default() -> None:
    old = asdict(load([]))
    del old["train"]["init_from"]
    assert differences(old, asdict(load([]))) == []
    assert differences(old, asdict(load(["--train.init_from=x"]))) == ["train.init_from:  -> x"]
    del old["train"]  # not a newer key: a damaged file
    assert "train.precision: None -> bf16" in differences(old, asdict(load([])))


def test_every_key_is_documented(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        load(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(f"--{key}" in text for key in KEYS)
    assert "Peak learning rate" in text


def test_print_config_prints_yaml_that_loads(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        load(["--optim.lr=0.25", "--print_config"])
    path = tmp_path / "printed.yaml"
    path.write_text(capsys.readouterr().out)
    assert load(["--config", str(path)]).optim.lr == 0.25
