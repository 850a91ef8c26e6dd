"""A user error on the command line or in a file is one sentence that names the key and its valid values."""

import re
from pathlib import Path

import pytest

from helpers.program import small_run
from tinyimnet.config_cli import load
from tinyimnet.errors import UserError

ARGUMENTS = {
    "--optim.lrr=1": "optim.lrr is not a known key; did you mean optim.lr\\?",
    "--lr=1": "lr is not a known key; did you mean optim.lr\\?",
    "--optim.learning_rate=1": "did you mean optim.lr\\?",
    "--batch-size=1": "did you mean train.global_batch_size\\?",
    "--SEED=1": "did you mean run.seed\\?",
    "--optim.l=1": "optim.l is not a known key",
    "--optim=configs/smoke.yaml": "optim is a section, not a key",
    "optim.lr=0.1": "optim.lr is not an option; write --optim.lr=0.1",
    "-optim.lr=0.1": "-optim.lr is not an option; write --optim.lr=0.1",
    "\u2014optim.lr=0.1": "optim.lr is not an option; write --optim.lr=0.1",
    "-run.dir=a b": "write --run.dir='a b'",
    "--optim.lr=": "--optim.lr has no value; write --optim.lr=VALUE",
    "--optim.lr=0,1": "optim.lr is '0,1' and must be a number; write 0.1",
    "--config=": "--config has no value",
    "--data.root=": "data.root is '' and must be a folder",
    "--tracking.project=": "tracking.project is '' and must be a name",
    "foo": "foo is not an option",
    "smoke": "smoke is not an option; give it as --config smoke",
    "epochs=3": "did you mean train.epochs\\?",
    "--wieght-decay=1": "did you mean optim.weight_decay\\?",
    "configs/baseline.yaml": "configs/baseline.yaml is not an option; give it as --config configs/baseline.yaml",
    "--optim.lr=fast": "optim.lr is 'fast' and must be a number",
    "--optim.lr=nan": "optim.lr is .nan.* and must be",
    "--optim.lr=0": "optim.lr is 0.0 and must be positive",
    "--optim.lr": "--optim.lr has no value",
    "--optim.momentum=1": "optim.momentum is 1.0 and must be above 0 and below 1",
    "--optim.betas=[0.9]": "optim.betas is .* a list of 2 numbers, such as",
    "--optim.betas=[0.9,1.0]": "optim.betas is .* and must be two numbers",
    "--optim.name=lion": "optim.name is 'lion' and must be one of sgd, adamw, muon",
    "--optim.warmup_epochs=900": r"optim.warmup_epochs is 900.0 and must be between 0 and train.epochs \(2\)",
    "--optim.ema_decay=1": "optim.ema_decay is 1.0",
    "--optim.clip_grad_norm=-1": "optim.clip_grad_norm is -1.0",
    "--optim.weight_decay=-1": "optim.weight_decay is -1.0",
    "--train.epochs=1.5": "train.epochs is '1.5' and must be a whole number",
    "--train.epochs=0": "train.epochs is 0 and must be between 1 and 100,000",
    "--train.global_batch_size=0": "train.global_batch_size is 0",
    "--train.device_batch_size=-1": "train.device_batch_size is -1",
    "--train.precision=fp8": "train.precision is 'fp8' and must be .*bf16",
    "--train.ordered_reduction=sum": "train.ordered_reduction is 'sum' and must be true or false",
    "--train.max_skipped_steps=0": "train.max_skipped_steps is 0",
    "--train.timeout=0": "train.timeout is 0",
    "--model.block=vit": "model.block is 'vit' and must be .*bottleneck",
    "--model.width=wide": "model.width is 'wide' and must be .*auto",
    "--model.width=-1": "model.width is -1.0 and must be auto or a positive number",
    "--model.depths=[1]": "model.depths is .* each of the 2 stages",
    "--model.widths=[]": "model.widths is .* one positive number for each stage",
    "--model.widths=[8,8,8,x]": "model.widths is '.8,8,8,x.' and must be a list of whole numbers",
    "--model.drop_path=1": "model.drop_path is 1.0",
    "--model.stem_stride=3": r"model.stem_stride is '3' and must be one of 1, 2",
    "--model.expansion=0": "model.expansion is 0.0",
    "--model.se_ratio=2": "model.se_ratio is 2.0",
    "--augment.soft_label_weight=0": "augment.soft_label_weight is 0.0 and must be above 0 and at most 1",
    "--augment.soft_label_temperature=0": "augment.soft_label_temperature is 0.0 and must be positive",
    "--augment.soft_label_standardise=z": "augment.soft_label_standardise is 'z' and must be true or false",
    "--augment.flip=maybe": "augment.flip is 'maybe' and must be true or false",
    "--augment.crop_padding=32": "augment.crop_padding is 32 and must be between 0 and 31 px",
    "--augment.cutmix_probability=1.1": "augment.cutmix_probability is 1.1",
    "--augment.mixup_alpha=0": "augment.mixup_alpha is 0.0",
    "--augment.start_resolution=50": "augment.start_resolution is 50 and must be a multiple of 8",
    "--augment.end_resolution=56": "augment.end_resolution is 56 and must be a multiple of 8 between 64 and 128 px",
    "--augment.end_resolution=100": "augment.end_resolution is 100 and must be a multiple of 8",
    "--augment.end_resolution_from=1.1": "augment.end_resolution_from is 1.1 and must be between 0 and 1",
    "--augment.label_smoothing=1": "augment.label_smoothing is 1.0",
    "--run.seed=-1": "run.seed is -1 and must be between 0 and 2..63 - 1",
    "--run.seed=9223372036854775808": "run.seed is 9223372036854775808 and must be between",
    "--run.log_every=0": "run.log_every is 0",
    "--data.source=cifar": "data.source is 'cifar'",
    "--tracking.wandb=maybe": "tracking.wandb is 'maybe'",
    "--config=no/such.yaml": "--config no/such.yaml does not exist",
    "--run.profile=-1": "run.profile is -1 and must be between 0 and 1,000 steps",
    "--run.profile=1001": "run.profile is 1001 and must be between 0 and 1,000 steps",
    "--run.stop_before_end=-1": "run.stop_before_end is -1 and must be 0 seconds or more",
}

FILES = {
    "optim: [": "cannot be read: line 1: expected the node content, but found the end of the file",
    "optim: {lr: 1}\nrun: {dir: x: y}\n": "cannot be read: line 2: ",
    "- 1\n": "holds a list and must hold keys, such as 'optim: {lr: 0.1}'",
    "hello": "holds 'hello' and must hold keys, such as 'optim: {lr: 0.1}'",
    "": "is empty and must hold keys, such as 'optim: {lr: 0.1}'",
    "optim: 5\n": "section optim has 5 and must hold keys",
    "optim: [lr]\n": "section optim has .'lr'. and must hold keys",
    "optim:\n": "section optim has no keys",
    "lr: 5\n": "lr is not a section of keys; write 'optim: {lr: ...}'",
    "optim.lr: 5\n": "optim.lr is not a section of keys; write 'optim: {lr: ...}'",
    "optim: {lr: 0,1}": "line 1: 1 is a key that is not text; decimals have a point: 0.1, not 0,1",
    "optim:\n  lr: 0,1\n": "optim.lr is '0,1' in .* and must be a number; write 0.1",
    "optim: {lr: 0.1}\nrun: {seed: 1}\noptim: {momentum: 0.8}\n": "line 3: optim is given twice",
    "optim:\n  lr: 0.1\n  name: sgd\n  'lr': 0.2\n": "line 4: lr is given twice",
    "optim: {lr: 0.1}\n---\noptim: {lr: 0.1}\n": "a second document begins",
    "optim:\n\tlr: 0.1\n": "line 2: a tab",
    "optim: &a {lr: *a}\n": "must be a number",
    "optim: {[1, 2]: 3}": "line 1: a key is not text",
    "run: {dir: 5}": "run.dir is 5 in .* and must be text; write it in quotes",
    "optim: {lrr: 1}": "optim.lrr is not a known key; did you mean optim.lr",
    "optimm: {lr: 1}": "optimm.lr is not a known key; did you mean optim.lr",
    "optim: {lr: fast}": "optim.lr is 'fast' in .*bad.yaml and must be a number",
    "model: {widths: 8}": "model.widths is 8 in .*bad.yaml and must be a list of whole numbers",
    "\udcff": "cannot be read: byte 0 is not UTF-8",
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
