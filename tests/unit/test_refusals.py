"""A problem with the data, the run folder or the environment is one sentence and exit code 2; the run is unchanged."""

import hashlib
import json
import os
import pickle
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from helpers.here import train_here
from helpers.program import small_run
from helpers.trainings import at_step
from tinyimnet import errors, train
from tinyimnet.data import synthetic
from tinyimnet.training import optim

ARGUMENTS = {
    "--train.device_batch_size=5": "train.device_batch_size is 5 and must divide the 32 images",
    "--run.dir=/dev/null/run": "run.dir /dev/null/run cannot be written",
    "--optim.lr=0.3": "was started with a different configuration .*optim.lr: 0.1 -> 0.3",
    "--train.epochs=1": "was started with a different configuration .*train.epochs: 2 -> 1",
    "--run.seed=7": "was started with a different configuration .*run.seed: 0 -> 7",
}


@pytest.fixture(scope="module")
def begun_once(tmp_path_factory, tiny_data: Path) -> Path:
    """A run that was stopped in its second epoch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optim, "ema_decay_at", optim.ema_decay_at)  # restored at the end
        at_step(9, lambda: os.kill(os.getpid(), signal.SIGTERM))
        run = train_here(tiny_data, tmp_path_factory.mktemp("begun") / "run")
    (run / "STOP").touch()  # a refused start must not remove it either
    return run


@pytest.fixture
def begun(begun_once: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(begun_once, tmp_path / "begun"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_refused(arguments: list[str], pattern: str, run: Path, capsys: pytest.CaptureFixture) -> None:
    """Assert that train.py exits with 2 and one sentence, and leaves `run` unchanged."""
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
def test_options_that_do_not_fit_the_run_are_refused(argument: str, begun: Path, tiny_data: Path, capsys) -> None:
    assert_refused([*small_run(tiny_data, begun), argument], ARGUMENTS[argument], begun, capsys)


def test_a_parser_error_leaves_the_run_unchanged(begun: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "bad.yaml").write_text("optim: {lr: fast}")
    arguments = ["--config", str(tmp_path / "bad.yaml"), f"--run.dir={begun}"]
    assert_refused(arguments, "optim.lr is 'fast' in .*bad.yaml and must be a number", begun, capsys)


# ---- data -----------------------------------------------------------------------------------------------------------


def manifest(root: Path, **changes: object) -> None:
    path = root / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def array(root: Path, name: str, values: np.ndarray, **options: bool) -> None:
    """Replace an array of a prepared folder, with the matching digest."""
    np.save(root / name, values, **options)
    digests = json.loads((root / "manifest.json").read_text())["sha256"]
    manifest(root, sha256={**digests, name: hashlib.sha256((root / name).read_bytes()).hexdigest()})


class Code:
    """An object that ends the test process when it is unpickled."""

    def __reduce__(self):
        return os._exit, (99,)


LABELS = np.zeros(200, np.int64)
DATA: dict[str, tuple[Callable[[Path], object], str]] = {
    "array missing": (lambda root: (root / "train_images.npy").unlink(), "train_images.npy is missing"),
    "array truncated": (
        lambda root: os.truncate(root / "val_images.npy", 5000),
        "val_images.npy differs from its manifest",
    ),
    "array empty": (lambda root: os.truncate(root / "val_labels.npy", 0), "val_labels.npy differs from its manifest"),
    "array altered": (lambda root: flip_a_bit(root / "train_labels.npy"), "train_labels.npy differs from its manifest"),
    "no array": (lambda root: resave(root, b"not an array"), "train_labels.npy is not a valid .npy file"),
    "array of objects with code": (
        lambda root: array(root, "train_labels.npy", np.array([Code()] * 200), allow_pickle=True),
        "train_labels.npy is not a valid .npy file",
    ),
    "float images": (
        lambda root: array(root, "val_images.npy", np.zeros((200, 64, 64, 3))),
        "images are float64 .* and must be uint8",
    ),
    "images of another size": (
        lambda root: array(root, "val_images.npy", np.zeros((200, 32, 32, 3), np.uint8)),
        r"images are uint8 \(200, 32, 32, 3\) and must be uint8 \(N, 64, 64, 3\)",
    ),
    "a size out of range": (lambda root: manifest(root, image_size=8), "image_size is 8 and must be 32 to 128"),
    "fewer labels": (lambda root: array(root, "val_labels.npy", LABELS[:9]), "labels are int64 .* for each of the 200"),
    "float labels": (lambda root: array(root, "val_labels.npy", LABELS / 2), "labels are float64"),
    "label too large": (
        lambda root: array(root, "val_labels.npy", LABELS + 200),
        "label 200 is outside the 200 classes",
    ),
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
        r"manifest.json cannot be accessed \(Is a directory\)",
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
    """Also with as many images of the same classes, because a different order gives different steps."""
    other = tmp_path / "other"
    synthetic.prepare_synthetic(other, train_per_class=1, val_per_class=1, test_per_class=1, seed=1)
    pattern = "data.root or data.soft_labels holds different data than the run was trained on.*; restore"
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
    """Return a function that edits a checkpoint and updates its digest."""

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
    "a checkpoint without counters": (in_all(edited(lambda state: state["by_rank"].pop("counters"))), NOT_FITTING),
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
    "configuration with an unknown key": (
        lambda run: configuration(run, model__colour="red"),
        "model.colour: red -> None",
    ),
    "configuration without a section": (lambda run: (run / "config.yaml").write_text("run: {}"), "different config"),
    "finished, shorter, without checkpoints": (
        lambda run: (
            shutil.rmtree(run / "checkpoints"), (run / "DONE").write_text("{}"), configuration(run, train__epochs=1),
        ),
        "is finished and has no checkpoint from which to extend it",
    ),
    "DONE that is empty": (lambda run: (run / "DONE").write_text(""), "DONE is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("case", RUN)
def test_in_the_run_folder(case: str, begun: Path, tiny_data: Path, capsys) -> None:
    damage, pattern = RUN[case]
    damage(begun)
    assert_refused(small_run(tiny_data, begun), pattern, begun, capsys)


# ---- environment ----------------------------------------------------------------------------------------------------

GROUP = {
    "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29512",
}  # fmt: skip
SRUN = {
    "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "5", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
    "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}  # fmt: skip
ENVIRONMENTS: dict[str, tuple[dict[str, str | None], str]] = {
    "MASTER_ADDR unset": ({**GROUP, "MASTER_ADDR": None}, "MASTER_ADDR is not set but WORLD_SIZE is 2"),
    "MASTER_ADDR empty": ({**GROUP, "MASTER_ADDR": ""}, "MASTER_ADDR is not set but WORLD_SIZE is 2"),
    "MASTER_PORT unset": ({**GROUP, "MASTER_PORT": None}, "MASTER_PORT is '' and must be a number"),
    "MASTER_PORT a word": ({**GROUP, "MASTER_PORT": "http"}, "MASTER_PORT is 'http' and must be a number"),
    "MASTER_PORT too large": ({**GROUP, "MASTER_PORT": "70000"}, "MASTER_PORT 70000, but .* MASTER_PORT at most 65535"),
    "WORLD_SIZE unset": ({**GROUP, "WORLD_SIZE": None}, "WORLD_SIZE is '' and must be a number"),
    "WORLD_SIZE negative": ({**GROUP, "WORLD_SIZE": "-2"}, "WORLD_SIZE is '-2' and must be a number"),
    "RANK a word": ({**GROUP, "RANK": "first"}, "RANK is 'first' and must be a number"),
    "RANK beyond the world": ({**GROUP, "RANK": "2"}, "RANK is 2, WORLD_SIZE 2 .* RANK must be below WORLD_SIZE"),
    "LOCAL_RANK unset": ({**GROUP, "LOCAL_RANK": None}, "LOCAL_RANK is '' and must be a number"),
    "srun with a strange node list": ({**SRUN, "SLURM_STEP_NODELIST": "["}, r"SLURM_STEP_NODELIST is '\['"),
    "srun with strange tasks": ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "two"}, "SLURM_STEP_TASKS_PER_NODE is 'two'"),
    "WANDB_MODE mistyped": ({"WANDB_MODE": "offlin"}, "WANDB_MODE is 'offlin' and must be online, offline or disabled"),
}


@pytest.mark.parametrize("case", ENVIRONMENTS)
def test_in_the_environment(case: str, begun: Path, tiny_data: Path, capsys, monkeypatch) -> None:
    environment, pattern = ENVIRONMENTS[case]
    for name, value in environment.items():
        if value is not None:
            monkeypatch.setenv(name, value)
    assert_refused(small_run(tiny_data, begun), pattern, begun, capsys)
