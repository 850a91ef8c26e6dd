"""What cannot be read is named with the system's reason, in one sentence, and never taken for damaged or missing."""

import json
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from helpers.permissions import without_privileges
from helpers.program import small_run
from helpers.sources import arrays_in, image, official, pack
from tinyimnet import cli, errors, train
from tinyimnet.data import soft_labels
from tinyimnet.data.dataset import open_dataset


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_data: Path, finished_run: Path) -> Path:
    """A folder with one of everything that a command reads."""
    place = tmp_path_factory.mktemp("made")
    shutil.copytree(tiny_data, place / "data")
    shutil.copytree(finished_run, place / "run")
    unfinished = Path(shutil.copytree(finished_run, place / "unfinished"))
    (unfinished / "DONE").unlink()
    (unfinished / "job.json").write_text("{}")
    for run in (place / "run", unfinished):
        config = (run / "config.yaml").read_text().replace(str(tiny_data), str(place / "data"))
        (run / "config.yaml").write_text(config)
        (run / "wandb_run.json").write_text(json.dumps({"id": "a", "mode": "offline"}))
    dataset = open_dataset(tiny_data)
    soft_labels.write(place / "soft.safetensors", np.zeros((200, 200)), dataset, ["a"])
    (place / "my.yaml").write_text("optim: {lr: 0.1}")
    arrays_in(place / "arrays")
    (place / "classes.txt").write_text("n00 n01 n02 n03")
    with tarfile.open(place / "tiny.tar.gz", "w:gz") as archive:
        archive.add(official(place))
    pack(place / "tiny-imagenet-200")
    np.savez(place / "arrays.npz", **{path.stem: np.load(path) for path in (place / "arrays").iterdir()})
    images = [{"bytes": image(i), "path": None} for i in range(4)]
    parquet.write_table(pyarrow.table({"image": images, "label": [0, 0, 1, 1]}), place / "train.parquet")
    return place


COMMANDS = {
    "train": "--config={0}/my.yaml --data.root={0}/data --run.dir={0}/new",
    "train with soft labels": "--data.root={0}/data --data.soft_labels={0}/soft.safetensors --run.dir={0}/new",
    "train from a run": "{small} --data.root={0}/data --train.init_from={0}/run --run.dir={0}/new",
    "train from a checkpoint": "{small} --data.root={0}/data --train.init_from={0}/unfinished --run.dir={0}/new",
    "train staged": "--data.root={0}/data --data.stage={0} --run.dir={0}/new",
    "resume": "{small} --data.root={0}/data --run.dir={0}/unfinished",
    "finished": "{small} --data.root={0}/data --run.dir={0}/run",
    "evaluate": "evaluate {0}/run --data {0}/data --out {0}/out",
    "evaluate weights": "evaluate {0}/run/final.safetensors --data {0}/data --out {0}/out",
    "evaluate a checkpoint": "evaluate {0}/unfinished --out {0}/out",
    "predict a folder": "predict {0}/run --images {0}/tiny-imagenet-200/val/images --strict --out {0}/out.csv",
    "predict an array": "predict {0}/run --images {0}/arrays/test_images.npy --out {0}/out.csv",
    "inspect": "inspect --data.root={0}/data --out {0}/out.png",
    "summary": "summary --data.root={0}/data",
    "report": "report {0}/run --out {0}/out.html",
    "seeds": "seeds {0}/run",
    "status": "status {0}/run",
    "logs": "logs {0}/run",
    "cancel": "cancel {0}/run",
    "sync": "sync {0}/run",
    "submit": "submit --profile {0}/my.yaml",
    "tensorboard": "tensorboard {0}/run --out {0}/tb",
    "unpack": "unpack {0}/data --out {0}/out",
    "prepare an archive": "prepare {0}/tiny-imagenet-200.zip --out {0}/out",
    "prepare a tar archive": "prepare {0}/tiny.tar.gz --out {0}/out",
    "prepare a folder": "prepare {0}/tiny-imagenet-200 --out {0}/out",
    "prepare a file of arrays": "prepare {0}/arrays.npz --out {0}/out",
    "prepare a table": "prepare {0}/train.parquet --val-share 0.5 --out {0}/out",
    "prepare arrays": "prepare {0}/arrays --classes {0}/classes.txt --out {0}/out",
}
DATA = ("data/manifest.json", "data/train_images.npy", "data/val_labels.npy")
FILES: dict[str, tuple[str, ...]] = {
    "train": ("my.yaml", *DATA),
    "train with soft labels": ("soft.safetensors",),
    "train from a run": ("run/final.safetensors",),
    "train staged": DATA,
    "resume": ("unfinished/config.yaml",),
    "finished": ("run/config.yaml", "run/DONE"),
    "evaluate": ("run/final.safetensors", *DATA),
    "evaluate weights": ("run/final.safetensors",),
    "evaluate a checkpoint": ("unfinished/config.yaml",),
    "predict a folder": ("tiny-imagenet-200/val/images/val_2.JPEG",),
    "predict an array": ("arrays/test_images.npy",),
    "inspect": DATA,
    "summary": ("data/manifest.json",),
    "report": ("run/config.yaml", "run/metrics.jsonl", "run/evaluation/per_class.csv", "run/augmented.png"),
    "logs": ("run/logs/rank_0.log",),
    "sync": ("run/wandb_run.json",),
    "submit": ("my.yaml",),
    "tensorboard": ("run/config.yaml", "run/metrics.jsonl", "run/attempts.jsonl"),
    "unpack": DATA,
    "prepare an archive": ("tiny-imagenet-200.zip",),
    "prepare a tar archive": ("tiny.tar.gz",),
    "prepare a file of arrays": ("arrays.npz",),
    "prepare a table": ("train.parquet",),
    "prepare a folder": (
        "tiny-imagenet-200/wnids.txt", "tiny-imagenet-200/train/n01/images/n01_0.JPEG",
        "tiny-imagenet-200/val/val_annotations.txt",
    ),
    "prepare arrays": ("arrays/val_labels.npy", "arrays/train_images.npy", "classes.txt"),
}  # fmt: skip
FOLDERS: dict[str, tuple[str, ...]] = {
    "train": ("data",),
    "train from a checkpoint": ("unfinished", "unfinished/checkpoints"),
    "resume": ("unfinished", "unfinished/checkpoints"),
    "finished": ("run",),
    "evaluate": ("run", "data"),
    "evaluate weights": ("run",),
    "evaluate a checkpoint": ("unfinished", "unfinished/checkpoints"),
    "predict a folder": ("tiny-imagenet-200/val/images",),
    "report": ("run", "run/evaluation"),
    "seeds": ("run",),
    "status": ("run",),
    "logs": ("run", "run/logs"),
    "cancel": ("run",),
    "sync": ("run",),
    "tensorboard": ("run",),
    "unpack": ("data",),
    "prepare a folder": ("tiny-imagenet-200", "tiny-imagenet-200/train"),
    "prepare arrays": ("arrays",),
}
WRONG = r"damaged|not a run folder|save it again|download|not prepared|fetch|missing|no logs|not valid|is not a"


def forbidden(path: Path) -> None:
    path.chmod(0)


def folder(path: Path) -> None:
    path.mkdir()


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def broken_disk(path: Path) -> None:
    path.symlink_to("/proc/self/mem")  # whose first byte gives EIO


@contextmanager
def at(path: Path, fault: Callable[[Path], None]) -> Iterator[None]:
    """Put a fault in the place of a file or folder for a block."""
    if fault is forbidden:
        mode = path.stat().st_mode
        fault(path)
        try:
            yield
        finally:
            path.chmod(mode)
        return
    kept = path.rename(path.with_name("kept"))
    fault(path)
    try:
        yield
    finally:
        path.rmdir() if fault is folder else path.unlink()
        kept.rename(path)


FAULTS: dict[Callable[[Path], None], str] = {
    forbidden: "Permission denied",
    folder: "Is a directory|is a folder|is no regular file",
    loop: "Too many levels of symbolic links",
    broken_disk: "Input/output error",
}
CASES = [
    *((name, target, fault) for name, targets in FILES.items() for target in targets for fault in FAULTS),
    *((name, target, fault) for name, targets in FOLDERS.items() for target in targets for fault in (forbidden, loop)),
]
OTHERS = [
    ("prepare an archive", "tiny-imagenet-200.zip", folder),  # a source too
    ("prepare a tar archive", "tiny.tar.gz", folder),
    ("prepare a file of arrays", "arrays.npz", folder),
    ("prepare a table", "train.parquet", folder),
    ("predict a folder", "tiny-imagenet-200/val/images/val_2.JPEG", folder),  # named as not used
    ("prepare a folder", "tiny-imagenet-200/train", loop),  # no folder
    ("prepare a folder", "tiny-imagenet-200/wnids.txt", folder),  # not among the files of the source
    ("prepare a folder", "tiny-imagenet-200/val/val_annotations.txt", folder),
    ("prepare a folder", "tiny-imagenet-200/train/n01/images/n01_0.JPEG", folder),
    ("prepare a folder", "tiny-imagenet-200/train/n01/images/n01_0.JPEG", forbidden),  # root's workers have privileges
]


@pytest.mark.parametrize("name, target, fault", [case for case in CASES if case not in OTHERS])
def test_it_is_named_with_the_reason(name: str, target: str, fault, place: Path, capsys, monkeypatch) -> None:
    small = " ".join(small_run(Path("none"), Path("none"))[:-2])
    arguments = COMMANDS[name].format(place, small=small).split()
    monkeypatch.setenv("RUNS_ROOT", str(place))
    with at(place / target, fault), without_privileges():
        main = train.main if arguments[0].startswith("--") else cli.main
        assert errors.run(main, arguments) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and line.endswith("."), line
    assert str(place) in line and Path(target).name in line and re.search(FAULTS[fault], line), line
    assert not re.search(WRONG, line.replace(str(place), "")), line
