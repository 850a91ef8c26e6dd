"""Every mistake is one sentence that names it and exit code 2, and what was in the run folder is there as it was."""

import contextlib
import hashlib
import json
import os
import pickle
import re
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import small_run
from lives import at_step, live

import train
from tinyimnet import errors, synthetic

ARGUMENTS = {
    "--optim.lrr=1": "optim.lrr is not a known key; did you mean optim.lr",
    "--lr=1": "lr is not a known key",
    "foo": "foo is not a known key",
    "configs/seed.yaml": "configs/seed.yaml is not an option; give it as --config configs/seed.yaml",
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
    "--train.max_bad_steps=0": "train.max_bad_steps is 0",
    "--train.timeout=0": "train.timeout is 0",
    "--model.block=vit": "model.block is 'vit' and must be .*bottleneck",
    "--model.width=wide": "model.width is 'wide' and must be .*auto",
    "--model.width=-1": "model.width is -1.0 and must be auto or a positive number",
    "--model.depths=[1]": "model.depths is .* each of the 2 stages",
    "--model.widths=[]": "model.widths is .* one positive number for each stage",
    "--model.widths=[8,8,8,x]": "model.widths is 'x' and must be of type int",
    "--model.group_width=8": "model.group_width is 8 and must be 0, or positive with model.block bottleneck",
    "--model.drop_path=1": "model.drop_path is 1.0",
    "--model.stem_stride=3": r"model.stem_stride is '3' and must be .*1, 2",
    "--model.expansion=0": "model.expansion is 0.0",
    "--model.se_ratio=2": "model.se_ratio is 2.0",
    "--augment.soft_label_weight=0": "augment.soft_label_weight is 0.0 and must be above 0 and at most 1",
    "--augment.flip=maybe": "augment.flip is 'maybe' and must be of type bool",
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
    "--run.stop_before_end=-1": "run.stop_before_end is -1 and must be 0 seconds or more",
    "--train.device_batch_size=5": "train.device_batch_size is 5 and must divide the 32 images",
    "--run.dir=/dev/null/run": "run.dir /dev/null/run cannot be written",
    "--optim.lr=0.3": "holds a run with another configuration .*optim.lr: 0.1 -> 0.3",
    "--train.epochs=1": "holds a run with another configuration .*train.epochs: 2 -> 1",
    "--run.seed=7": "holds a run with another configuration .*run.seed: 0 -> 7",
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


@pytest.fixture(scope="module")
def begun_once(tmp_path_factory, tiny_data: Path) -> Path:
    """A run that was stopped in its second epoch."""
    folder = tmp_path_factory.mktemp("begun")
    assert live(small_run(tiny_data, folder / "run"), folder / "log", before=stopped_in_the_second_epoch) == [
        0
    ]
    (folder / "run" / "STOP").touch()  # a start that is refused does not take it away either
    return folder / "run"


@pytest.fixture
def begun(begun_once: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(begun_once, tmp_path / "begun"))


def stopped_in_the_second_epoch() -> None:
    at_step(9, lambda: os.kill(os.getpid(), signal.SIGTERM))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_refused(arguments: list[str], pattern: str, run: Path, capsys: pytest.CaptureFixture) -> None:
    """train.py ends with 2 and a sentence, and `run` is as it was."""
    before = contents(run)
    assert errors.run(train.main, arguments) == 2
    error = capsys.readouterr().err
    assert_sentence(error.splitlines()[-1], pattern)
    assert all(line.startswith("WARNING: checkpoint ") for line in error.splitlines()[:-1])
    assert contents(run) == before


def assert_sentence(line: str, pattern: str) -> None:
    assert re.search(pattern, line), line
    assert line.startswith("error") and line.endswith((".", "?")), line


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_on_the_command_line(argument: str, begun: Path, tiny_data: Path, capsys) -> None:
    assert_refused([*small_run(tiny_data, begun), argument], ARGUMENTS[argument], begun, capsys)


@pytest.mark.parametrize("content", FILES)
def test_in_a_configuration_file(content: str, begun: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content.encode(errors="surrogateescape"))
    assert_refused(["--config", str(path), f"--run.dir={begun}"], FILES[content], begun, capsys)


# ---- data -----------------------------------------------------------------------------------------------------------


def manifest(root: Path, **changes: object) -> None:
    path = root / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def array(root: Path, name: str, values: np.ndarray, **options: bool) -> None:
    """Put another array into a prepared folder, with the digest that belongs to it."""
    np.save(root / name, values, **options)
    digests = json.loads((root / "manifest.json").read_text())["sha256"]
    manifest(root, sha256={**digests, name: hashlib.sha256((root / name).read_bytes()).hexdigest()})


class Code:
    """Pickled, it ends the test where it is loaded."""

    def __reduce__(self):
        return os._exit, (99,)


LABELS = np.zeros(200, np.int64)
DATA: dict[str, tuple[Callable[[Path], object], str]] = {
    "array missing": (lambda root: (root / "train_images.npy").unlink(), "train_images.npy is missing"),
    "array truncated": (lambda root: os.truncate(root / "val_images.npy", 5000), "val_images.npy differs from its manifest"),
    "array empty": (lambda root: os.truncate(root / "val_labels.npy", 0), "val_labels.npy differs from its manifest"),
    "array altered": (lambda root: flip_a_bit(root / "train_labels.npy"), "train_labels.npy differs from its manifest"),
    "no array": (lambda root: resave(root, b"not an array"), "train_labels.npy is not a whole .npy file"),
    "array of objects with code": (
        lambda root: array(root, "train_labels.npy", np.array([Code()] * 200), allow_pickle=True),
        "train_labels.npy is not a whole .npy file",
    ),
    "float images": (
        lambda root: array(root, "val_images.npy", np.zeros((200, 64, 64, 3))),
        "images are float64 .* and must be uint8",
    ),
    "images of another size": (
        lambda root: array(root, "val_images.npy", np.zeros((200, 32, 32, 3), np.uint8)),
        r"images are uint8 \(200, 32, 32, 3\) and must be uint8 \(N, 64, 64, 3\)",
    ),
    "fewer labels": (lambda root: array(root, "val_labels.npy", LABELS[:9]), "labels are int64 .* for each of the 200"),
    "float labels": (lambda root: array(root, "val_labels.npy", LABELS / 2), "labels are float64"),
    "label too large": (lambda root: array(root, "val_labels.npy", LABELS + 200), "label 200 is outside the 200 classes"),
    "negative label": (lambda root: array(root, "train_labels.npy", LABELS - 1), "label -1 is outside the 200 classes"),
    "no validation images": (
        lambda root: [array(root, f"val_{kind}.npy", np.zeros((0, *shape), dtype))
                      for kind, shape, dtype in (("images", (64, 64, 3), np.uint8), ("labels", (), np.int64))],
        "has no images",
    ),
    "manifest not JSON": (lambda root: (root / "manifest.json").write_text("{"), "manifest.json is damaged"),
    "manifest a list": (lambda root: (root / "manifest.json").write_text("[]"), "manifest.json is damaged"),
    "manifest of a later version": (lambda root: manifest(root, format=99), "manifest.json is damaged .format 99"),
    "manifest without classes": (lambda root: manifest(root, classes=None), "manifest.json is damaged"),
    "manifest with a strange class": (lambda root: manifest(root, classes=[1] * 200), "manifest.json is damaged"),
    "manifest with two channels": (lambda root: manifest(root, mean=[0.5, 0.5]), "manifest.json is damaged"),
    "manifest with no deviation": (lambda root: manifest(root, std=[0, 0, 0]), "manifest.json is damaged"),
    "manifest without digests": (lambda root: manifest(root, sha256=[]), "manifest.json is damaged"),
    "manifest without labels": (lambda root: manifest(root, sha256={}), "manifest.json lists no train images"),
    "a manifest that is a folder": (
        lambda root: ((root / "manifest.json").unlink(), (root / "manifest.json").mkdir()),
        "data exists and is not a prepared data set",
    ),
}  # fmt: skip


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def resave(root: Path, content: bytes) -> None:
    (root / "train_labels.npy").write_bytes(content)
    digests = json.loads((root / "manifest.json").read_text())["sha256"]
    manifest(root, sha256={**digests, "train_labels.npy": hashlib.sha256(content).hexdigest()})


@pytest.mark.parametrize("case", DATA)
def test_in_the_data(case: str, begun: Path, tiny_data: Path, tmp_path: Path, capsys) -> None:
    damage, pattern = DATA[case]
    shutil.copytree(tiny_data, tmp_path / "data")
    damage(tmp_path / "data")
    assert_refused(small_run(tmp_path / "data", begun), pattern, begun, capsys)


def test_other_data_than_those_the_run_began_with(begun: Path, tmp_path: Path, capsys) -> None:
    """Also where they have as many images of the same classes: in another order they are other steps."""
    other = tmp_path / "other"
    synthetic.prepare_synthetic(other, train_per_class=1, val_per_class=1, test_per_class=1, seed=1)
    pattern = "data.root holds other data than the run was trained on.*; give those that it began with"
    assert_refused(small_run(other, begun), pattern, begun, capsys)


# ---- run folder -----------------------------------------------------------------------------------------------------


def checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("*.pt"))


def in_all(damage: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda run: [damage(path) for path in checkpoints(run)]


def with_digest(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    note = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**note, "sha256": hashlib.sha256(content).hexdigest()}))


def edited(edit: Callable[[dict], object]) -> Callable[[Path], None]:
    """Change what is in a checkpoint, digest included."""

    def damage(path: Path) -> None:
        state = torch.load(path, weights_only=True)
        edit(state)
        torch.save(state, path)
        with_digest(path, path.read_bytes())

    return damage


def configuration(run: Path, **changes: object) -> None:
    tree = yaml.safe_load((run / "config.yaml").read_text())
    for key, value in changes.items():
        section, name = key.split("__")
        tree[section][name] = value
    (run / "config.yaml").write_text(yaml.safe_dump(tree))


ALL_DAMAGED = "all 3 checkpoints in .* are damaged; restore one from a backup"
NOT_FITTING = "the checkpoint does not fit this version of the program"
RUN: dict[str, tuple[Callable[[Path], object], str]] = {
    "checkpoints truncated": (in_all(lambda path: os.truncate(path, 1000)), ALL_DAMAGED),
    "checkpoints empty": (in_all(lambda path: os.truncate(path, 0)), ALL_DAMAGED),
    "checkpoints altered": (in_all(flip_a_bit), ALL_DAMAGED),
    "checkpoints that are folders": (in_all(lambda path: (path.unlink(), path.mkdir())), ALL_DAMAGED),
    "digests missing": (in_all(lambda path: path.with_suffix(".json").unlink()), ALL_DAMAGED),
    "digests empty": (in_all(lambda path: path.with_suffix(".json").write_text("")), ALL_DAMAGED),
    "digests without a digest": (in_all(lambda path: path.with_suffix(".json").write_text("{}")), ALL_DAMAGED),
    "digests that are no mapping": (in_all(lambda path: path.with_suffix(".json").write_text("1")), ALL_DAMAGED),
    "code in a pickle": (in_all(lambda path: with_digest(path, pickle.dumps(Code(), 2))), ALL_DAMAGED),
    "code in a torch file": (in_all(edited(lambda state: state.update(extra=Code()))), ALL_DAMAGED),
    "a pickle cut off": (in_all(lambda path: with_digest(path, pickle.dumps([1, 2], 2)[:-3])), ALL_DAMAGED),
    "text": (in_all(lambda path: with_digest(path, b"hello")), ALL_DAMAGED),
    "a list": (in_all(lambda path: with_digest(path, pickle.dumps([1, 2], 2))), ALL_DAMAGED),
    "a checkpoint without a step": (in_all(edited(lambda state: state.pop("step"))), NOT_FITTING),
    "a checkpoint without weights": (in_all(edited(lambda state: state["model"].clear())), NOT_FITTING),
    "a checkpoint without an optimizer": (in_all(edited(lambda state: state.pop("optimizer"))), NOT_FITTING),
    "a checkpoint without tallies": (in_all(edited(lambda state: state["by_rank"].pop("tallies"))), NOT_FITTING),
    "a checkpoint whose optimizer lacks an entry": (
        in_all(edited(lambda state: state["optimizer"]["param_groups"][0].pop("peak_lr"))),
        NOT_FITTING,
    ),
    "a checkpoint of another network": (
        in_all(edited(lambda state: state["model"].update({"classifier.weight": torch.zeros(3, 3)}))),
        NOT_FITTING,
    ),
    "configuration missing": (lambda run: (run / "config.yaml").unlink(), "is not a run folder: it has no config.yaml"),
    "configuration malformed": (lambda run: (run / "config.yaml").write_text("a: ["), "config.yaml is damaged"),
    "configuration that is text": (lambda run: (run / "config.yaml").write_text("hello"), "config.yaml is damaged"),
    "configuration with another network": (lambda run: configuration(run, model__widths=[8, 8]), "model.widths"),
    "configuration with an unknown key": (lambda run: configuration(run, model__colour="red"), "model.colour: red -> None"),
    "configuration without a section": (lambda run: (run / "config.yaml").write_text("run: {}"), "another configuration"),
    "finished, shorter, without checkpoints": (
        lambda run: (shutil.rmtree(run / "checkpoints"), (run / "DONE").write_text("{}"), configuration(run, train__epochs=1)),
        "is finished and has no checkpoint from which a longer run could go on",
    ),
    "DONE that is empty": (lambda run: (run / "DONE").write_text(""), "DONE is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("case", RUN)
def test_in_the_run_folder(case: str, begun: Path, tiny_data: Path, capsys) -> None:
    damage, pattern = RUN[case]
    damage(begun)
    assert_refused(small_run(tiny_data, begun), pattern, begun, capsys)


# ---- processes ------------------------------------------------------------------------------------------------------

GROUP = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29512",
}
SRUN = {
    "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "5", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
    "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}  # fmt: skip
ENVIRONMENTS: dict[str, tuple[dict[str, str | None], str]] = {
    "MASTER_ADDR unset": ({**GROUP, "MASTER_ADDR": None}, "MASTER_ADDR is not set and WORLD_SIZE is 2"),
    "MASTER_ADDR empty": ({**GROUP, "MASTER_ADDR": ""}, "MASTER_ADDR is not set and WORLD_SIZE is 2"),
    "MASTER_PORT unset": ({**GROUP, "MASTER_PORT": None}, "MASTER_PORT is '' and must be a number"),
    "MASTER_PORT a word": ({**GROUP, "MASTER_PORT": "http"}, "MASTER_PORT is 'http' and must be a number"),
    "MASTER_PORT too large": ({**GROUP, "MASTER_PORT": "70000"}, "MASTER_PORT 70000, which is impossible"),
    "WORLD_SIZE unset": ({**GROUP, "WORLD_SIZE": None}, "WORLD_SIZE is '' and must be a number"),
    "WORLD_SIZE negative": ({**GROUP, "WORLD_SIZE": "-2"}, "WORLD_SIZE is '-2' and must be a number"),
    "RANK a word": ({**GROUP, "RANK": "first"}, "RANK is 'first' and must be a number"),
    "RANK beyond the world": ({**GROUP, "RANK": "2"}, "RANK is 2, WORLD_SIZE 2 .* is impossible"),
    "LOCAL_RANK unset": ({**GROUP, "LOCAL_RANK": None}, "LOCAL_RANK is '' and must be a number"),
    "srun with a strange node list": ({**SRUN, "SLURM_STEP_NODELIST": "["}, r"SLURM_STEP_NODELIST is '\['"),
    "srun with strange tasks": (
        {**SRUN, "SLURM_STEP_TASKS_PER_NODE": "two"},
        "SLURM_STEP_TASKS_PER_NODE is 'two'",
    ),
    "WANDB_MODE mistyped": (
        {"WANDB_MODE": "offlin"},
        "WANDB_MODE is 'offlin' and must be online, offline or disabled",
    ),
    "the port in use": (
        {**GROUP, "MASTER_PORT": "busy"},
        "cannot open the port of rank 0, .*address already in use",
    ),
    "nobody else came": (
        {**GROUP, "MASTER_PORT": "free"},
        "rank 1 did not arrive within 2 s",
    ),
}


@pytest.mark.parametrize("case", ENVIRONMENTS)
def test_in_the_environment(case: str, begun: Path, tiny_data: Path, tmp_path: Path) -> None:
    environment, pattern = ENVIRONMENTS[case]
    before = contents(begun)
    with socket.create_server(("127.0.0.1", 0)) as server, contextlib.ExitStack() as busy:
        port = str(server.getsockname()[1])
        busy.callback(server.close)
        if environment.get("MASTER_PORT") == "free":
            server.close()
        changes = {key: port if value in ("busy", "free") else value for key, value in environment.items()}
        options = small_run(tiny_data, begun, train__timeout=2)
        assert live(options, tmp_path / "log", environment=changes) == [2]
    assert_sentence((tmp_path / "log").read_text().splitlines()[-1], pattern)
    assert contents(begun) == before


def test_a_global_batch_that_the_processes_cannot_share(begun: Path, tiny_data: Path, tmp_path: Path) -> None:
    before = contents(begun)
    assert live(small_run(tiny_data, begun), tmp_path / "log", processes=3) == [2, 2, 2]
    assert_sentence(
        (tmp_path / "log").read_text().splitlines()[-1],
        "train.global_batch_size is 32 and must be a multiple of the 3 processes",
    )
    assert contents(begun) == before


def test_more_processes_than_images_in_a_step(tiny_data: Path, tmp_path: Path) -> None:
    options = small_run(tiny_data, tmp_path / "run", train__global_batch_size=1)
    assert live(options, tmp_path / "log", processes=2) == [2, 2]
    assert_sentence(
        (tmp_path / "log").read_text().splitlines()[-1],
        "train.global_batch_size is 1 and must be a multiple of the 2",
    )
    assert not (tmp_path / "run").exists()
