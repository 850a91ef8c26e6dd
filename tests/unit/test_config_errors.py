"""A user error on the command line or in a file is one sentence that names the key and its valid values."""

import re
from pathlib import Path

import pytest

from helpers.program import small_run
from tinyimnet.config_cli import load
from tinyimnet.errors import UserError

ARGUMENTS = {
    "--optim.lrr=1": "optim.lrr is not a known key; did you mean optim.lr",
    "--lr=1": "lr is not a known key",
    "foo": "foo is not a known key",
    "configs/baseline.yaml": "configs/baseline.yaml is not an option; give it as --config configs/baseline.yaml",
    "--optim.lr=fast": "optim.lr is 'fast' and must be of type float",
    "--optim.lr=nan": "optim.lr is .nan.* and must be",
    "--optim.lr=0": "optim.lr is 0.0 and must be positive",
    "--optim.lr": "expected one argument",
    "--optim.momentum=1": "optim.momentum is 1.0 and must be above 0 and below 1",
    "--optim.betas=[0.9]": "optim.betas is .* tuple with 2 elements",
    "--optim.betas=[0.9,1.0]": "optim.betas is .* and must be two numbers",
    "--optim.name=lion": "optim.name is 'lion' and must be .*sgd.*adamw",
    "--optim.warmup_epochs=900": r"optim.warmup_epochs is 900.0 and must be between 0 and train.epochs \(2\)",
    "--optim.ema_decay=1": "optim.ema_decay is 1.0",
    "--optim.clip_grad_norm=-1": "optim.clip_grad_norm is -1.0",
    "--optim.weight_decay=-1": "optim.weight_decay is -1.0",
    "--train.epochs=1.5": "train.epochs is '1.5' and must be of type int",
    "--train.epochs=0": "train.epochs is 0 and must be 1 or more",
    "--train.global_batch_size=0": "train.global_batch_size is 0",
    "--train.device_batch_size=-1": "train.device_batch_size is -1",
    "--train.precision=fp8": "train.precision is 'fp8' and must be .*bf16",
    "--train.max_skipped_steps=0": "train.max_skipped_steps is 0",
    "--train.timeout=0": "train.timeout is 0",
    "--model.block=vit": "model.block is 'vit' and must be .*bottleneck",
    "--model.width=wide": "model.width is 'wide' and must be .*auto",
    "--model.width=-1": "model.width is -1.0 and must be auto or a positive number",
    "--model.depths=[1]": "model.depths is .* each of the 2 stages",
    "--model.widths=[]": "model.widths is .* one positive number for each stage",
    "--model.widths=[8,8,8,x]": "model.widths is 'x' and must be of type int",
    "--model.drop_path=1": "model.drop_path is 1.0",
    "--model.stem_stride=3": r"model.stem_stride is '3' and must be .*1, 2",
    "--model.expansion=0": "model.expansion is 0.0",
    "--model.se_ratio=2": "model.se_ratio is 2.0",
    "--augment.soft_label_weight=0": "augment.soft_label_weight is 0.0 and must be above 0 and at most 1",
    "--augment.flip=maybe": "augment.flip is 'maybe' and must be of type bool",
    "--augment.crop_padding=40": "augment.crop_padding is 40 and must be between 0 and 32 px",
    "--augment.cutmix_probability=1.1": "augment.cutmix_probability is 1.1",
    "--augment.mixup_alpha=0": "augment.mixup_alpha is 0.0",
    "--augment.start_resolution=50": "augment.start_resolution is 50 and must be a multiple of 8",
    "--augment.label_smoothing=1": "augment.label_smoothing is 1.0",
    "--run.seed=-1": "run.seed is -1 and must be 0 or more",
    "--run.log_every=0": "run.log_every is 0",
    "--data.source=cifar": "data.source is 'cifar'",
    "--tracking.wandb=maybe": "tracking.wandb is 'maybe'",
    "--config=no/such.yaml": "--config no/such.yaml cannot be read: No such file",
    "--run.stop_before_end=-1": "run.stop_before_end is -1 and must be 0 seconds or more",
}

FILES = {
    "optim: [": "cannot be read: while parsing",
    "- 1\n": "must hold sections of keys",
    "": "must hold sections of keys",
    "optim: 5\n": "must hold sections of keys",
    "optim: {lrr: 1}": "optim.lrr is not a known key; did you mean optim.lr",
    "optimm: {lr: 1}": "optimm.lr is not a known key; did you mean optim.lr",
    "optim: {lr: fast}": "optim.lr is 'fast' and must be of type float",
    "model: {widths: 8}": "model.widths is '8' and must be of type tuple",
    "\udcff": "cannot be read",
}


def assert_refused(arguments: list[str], pattern: str) -> None:
    with pytest.raises(UserError) as raised:
        load(arguments)
    sentence = str(raised.value)
    assert re.search(pattern, sentence), sentence
    assert sentence.endswith((".", "?")) and "\n" not in sentence


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_a_mistake_on_the_command_line(argument: str, tmp_path: Path) -> None:
    assert_refused([*small_run(tmp_path / "data", tmp_path / "run"), argument], ARGUMENTS[argument])


@pytest.mark.parametrize("content", FILES)
def test_a_mistake_in_a_configuration_file(content: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content.encode(errors="surrogateescape"))
    assert_refused(["--config", str(path), f"--run.dir={tmp_path}/run"], FILES[content])
