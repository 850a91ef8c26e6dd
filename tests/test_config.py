"""Configuration: precedence, types, round trip, and one sentence for each mistake."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinyimnet import commandline
from tinyimnet.commandline import load
from tinyimnet.config import KEYS, Config, OptimConfig, RunConfig, differences, dump
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


def test_without_a_config_it_is_the_real_thing() -> None:
    assert load([]) == load(["--config", str(commandline.DEFAULT_CONFIG)])
    assert load([]).run.dir == "runs/tiny1m"


def test_the_run_folder_is_named_after_the_config_file(file: Path) -> None:
    assert load(["--config", str(file)]).run.dir == "runs/mine"
    assert load(["--config", str(file), "--run.dir", "x"]).run.dir == "x"


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lr=st.floats(1e-9, 10),
    seed=st.integers(0, 2**62),
    widths=st.lists(st.integers(1, 500), min_size=1, max_size=5),
    width=st.one_of(st.just("auto"), st.floats(0.01, 9)),
    flip=st.booleans(),
)
def test_what_is_dumped_loads_as_the_same_configuration(
    tmp_path: Path, lr, seed, widths, width, flip
) -> None:
    original = Config(run=RunConfig(dir="runs/x", seed=seed))
    original = replace(
        original,
        optim=replace(original.optim, lr=lr),
        model=replace(original.model, widths=tuple(widths), depths=(1,) * len(widths), width=width),
        augment=replace(original.augment, flip=flip),
    )
    path = tmp_path / "dumped.yaml"
    path.write_text(dump(original))
    assert load(["--config", str(path)]) == original


def test_differences_name_the_keys_that_count() -> None:
    old, new = (
        asdict(load([])),
        asdict(load(["--optim.lr=0.1", "--run.log_every=7", "--tracking.project=other"])),
    )
    assert differences(old, old) == []
    assert differences(old, new) == ["optim.lr: 1.0 -> 0.1"]


MISTAKES = {
    "--optim.lrr=1": "optim.lrr is not a known key; did you mean optim.lr",
    "--lr=1": "lr is not a known key",
    "foo": "foo is not a known key",
    "--optim.lr=fast": "optim.lr is 'fast' and must be a float",
    "--optim.lr=nan": "optim.lr is .nan.* and must be",
    "--optim.lr=0": "optim.lr is 0.0 and must be positive",
    "--optim.lr": "expected one argument",
    "--optim.momentum=1": "optim.momentum is 1.0 and must be above 0 and below 1",
    "--optim.betas=[0.9]": "optim.betas is .* tuple with 2 elements",
    "--optim.betas=[0.9,1.0]": "optim.betas is .* and must be two numbers",
    "--optim.name=lion": "optim.name is 'lion' and must be .*sgd.*adamw",
    "--optim.warmup_epochs=900": r"optim.warmup_epochs is 900.0 and must be between 0 and train.epochs \(300\)",
    "--optim.ema_decay=1": "optim.ema_decay is 1.0",
    "--optim.clip_grad_norm=-1": "optim.clip_grad_norm is -1.0",
    "--optim.weight_decay=-1": "optim.weight_decay is -1.0",
    "--train.epochs=1.5": "train.epochs is '1.5' and must be a int",
    "--train.epochs=0": "train.epochs is 0 and must be 1 or more",
    "--train.global_batch_size=0": "train.global_batch_size is 0",
    "--train.device_batch_size=-1": "train.device_batch_size is -1",
    "--train.precision=fp8": "train.precision is 'fp8' and must be .*bf16",
    "--train.max_bad_steps=0": "train.max_bad_steps is 0",
    "--train.timeout=0": "train.timeout is 0",
    "--model.block=vit": "model.block is 'vit' and must be .*bottleneck",
    "--model.width=wide": "model.width is 'wide' and must be .*auto",
    "--model.width=-1": "model.width is -1.0 and must be auto or a positive number",
    "--model.depths=[1]": "model.depths is .* each of the 4 stages",
    "--model.widths=[]": "model.widths is .* one positive number for each stage",
    "--model.widths=[8,8,8,x]": "model.widths is 'x' and must be a int",
    "--model.group_width=8": "model.group_width is 8 and must be 0, or positive with model.block bottleneck",
    "--model.drop_path=1": "model.drop_path is 1.0",
    "--model.stem_stride=3": r"model.stem_stride is '3' and must be .*1, 2",
    "--model.expansion=0": "model.expansion is 0.0",
    "--model.se_ratio=2": "model.se_ratio is 2.0",
    "--augment.flip=maybe": "augment.flip is 'maybe' and must be a bool",
    "--augment.crop_padding=40": "augment.crop_padding is 40 and must be between 0 and 32 px",
    "--augment.cutmix_probability=1.1": "augment.cutmix_probability is 1.1",
    "--augment.mixup_alpha=0": "augment.mixup_alpha is 0.0",
    "--augment.start_size=50": "augment.start_size is 50 and must be a multiple of 8",
    "--augment.label_smoothing=1": "augment.label_smoothing is 1.0",
    "--run.seed=-1": "run.seed is -1 and must be 0 or more",
    "--run.log_every=0": "run.log_every is 0",
    "--data.source=cifar": "data.source is 'cifar'",
    "--tracking.wandb=maybe": "tracking.wandb is 'maybe'",
    "--config=no/such.yaml": "--config no/such.yaml cannot be read: No such file",
}


@pytest.mark.parametrize("argument", MISTAKES)
def test_a_mistake_on_the_command_line_is_one_sentence(argument: str) -> None:
    with pytest.raises(UserError, match=MISTAKES[argument]) as caught:
        load([argument])
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith((".", "?"))


FILES = {
    "optim: [": "cannot be read: while parsing",
    "- 1\n": "must hold sections of keys",
    "": "must hold sections of keys",
    "optim: 5\n": "must hold sections of keys",
    "optim: {lrr: 1}": "optim.lrr is not a known key; did you mean optim.lr",
    "optimm: {lr: 1}": "optimm.lr is not a known key; did you mean optim.lr",
    "optim: {lr: fast}": "optim.lr is 'fast' and must be a float",
    "model: {widths: 8}": "model.widths is '8' and must be a tuple",
    "\udcff": "cannot be read",
}


@pytest.mark.parametrize("content", FILES)
def test_a_mistake_in_a_file_is_one_sentence(content: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=FILES[content]) as caught:
        load(["--config", str(path)])
    assert "\n" not in str(caught.value)


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
