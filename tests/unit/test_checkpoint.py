"""Checkpoint writes are atomic, and a damaged checkpoint is named and skipped."""

import hashlib
import json
import logging
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tinyimnet.errors import UserError
from tinyimnet.run import checkpoint
from tinyimnet.run.checkpoint import Saver


def save(folder: Path, step: int, *, keep: int = 3, best: bool = False) -> Path:
    state = {"step": step, "weights": torch.full((4,), float(step))}
    return checkpoint.save(folder, state, step=step, keep=keep, best=best)


def test_the_newest_is_loaded(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        save(tmp_path, step)
    assert checkpoint.load_newest(tmp_path)["step"] == 100


def test_a_new_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.load_newest(tmp_path) is None


def test_the_json_file_has_step_and_digest(tmp_path: Path) -> None:
    file = save(tmp_path, 25)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert json.loads(file.with_suffix(".json").read_text()) == {"step": 25, "sha256": digest}


def test_only_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    for step in range(1, 7):
        save(tmp_path, step, keep=2, best=step == 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "best.json", "best.pt",
        "step_00000005.json", "step_00000005.pt", "step_00000006.json", "step_00000006.pt",
    ]  # fmt: skip
    assert checkpoint.load(tmp_path / "best.pt")["step"] == 3


class Code:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def put_code_into_it(path: Path) -> None:
    replace_with_digest(path, lambda value, file: pickle.dump(value, file, 2), Code(path.with_name("code-was-run")))


def replace_with_digest(path: Path, dump: Callable, value: object) -> None:
    """Replace the content of a checkpoint, with the matching sha256."""
    with path.open("wb") as file:
        dump(value, file)
    note = json.loads(path.with_suffix(".json").read_text())
    note["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_suffix(".json").write_text(json.dumps(note))


def empty_the_note(path: Path) -> None:
    path.with_suffix(".json").write_text("")


def remove_the_note(path: Path) -> None:
    path.with_suffix(".json").unlink()


def put_a_list_into_it(path: Path) -> None:
    replace_with_digest(path, torch.save, [1, 2])


def exchange_with_the_one_before(path: Path) -> None:
    path.write_bytes((path.parent / "step_00000010.pt").read_bytes())


DAMAGES = [
    truncate, flip_a_bit, put_code_into_it, put_a_list_into_it, empty_the_note, remove_the_note,
    exchange_with_the_one_before,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_one_is_named_and_the_one_before_is_used(damage, tmp_path: Path, caplog) -> None:
    save(tmp_path, 10)
    damage(save(tmp_path, 20))
    with caplog.at_level(logging.WARNING):
        assert checkpoint.load_newest(tmp_path)["step"] == 10
    assert "step_00000020.pt is damaged" in caplog.text
    assert not (tmp_path / "code-was-run").exists()


def test_if_all_are_damaged_it_fails_and_does_not_start_from_zero(tmp_path: Path) -> None:
    for step in (10, 20):
        truncate(save(tmp_path, step))
    with pytest.raises(UserError, match="all 2 checkpoints .* are damaged"):
        checkpoint.load_newest(tmp_path)


def test_the_best_checkpoint_is_the_last_resort(tmp_path: Path) -> None:
    save(tmp_path, 10, best=True)
    truncate(tmp_path / "step_00000010.pt")
    assert checkpoint.load_newest(tmp_path)["step"] == 10


# ---- saves in the background ----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


@pytest.fixture
def saver(folder: Path):
    made = Saver(folder, keep=2, before=lambda: None)
    yield made
    made.close()


def submit(saver: Saver, step: int, *, best: bool = False) -> None:
    saver.submit({"step": step}, lambda: None, step=step, best=best)


def test_a_slow_disk_does_not_block_the_training(saver: Saver, folder: Path) -> None:
    disk = threading.Event()
    saver.before = disk.wait
    submit(saver, 1)  # returns although the disk blocks
    assert saver.collect(wait=False) == "" and not list(folder.glob("*.pt"))
    disk.set()
    assert saver.collect(wait=True) == ""
    assert checkpoint.load_newest(folder) == {"step": 1}


def test_at_most_one_save_is_in_flight(saver: Saver) -> None:
    disk = threading.Event()
    saver.before = disk.wait
    submit(saver, 1)
    with pytest.raises(RuntimeError, match="still being written"):
        submit(saver, 2)
    disk.set()


def test_close_waits_for_the_save_in_flight(folder: Path) -> None:
    disk = threading.Event()
    saver = Saver(folder, keep=2, before=disk.wait)
    submit(saver, 1)
    threading.Timer(0.1, disk.set).start()
    saver.close()
    assert checkpoint.load_newest(folder) == {"step": 1}


def test_a_failed_save_is_reported_once_and_the_best_is_saved_later(saver: Saver, folder: Path) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    saver.before = full
    submit(saver, 1, best=True)
    assert saver.collect(wait=True) == "No space left on device"
    assert saver.collect(wait=True) == "" and saver.failed == 1
    saver.before = lambda: None
    submit(saver, 2)
    assert saver.collect(wait=True) == ""
    assert checkpoint.load_newest(folder) == {"step": 2}
    assert checkpoint.load(folder / "best.pt") == {"step": 1}


def test_the_first_checkpoint_on_disk_leaves_a_record_outside_its_folder(saver: Saver, folder: Path) -> None:
    saver.before = lambda: 1 / 0
    submit(saver, 1)
    with pytest.raises(ZeroDivisionError):
        saver.collect(wait=True)
    assert not (folder.parent / "SAVED").exists()
    saver.before = lambda: None
    submit(saver, 2)
    saver.collect(wait=True)
    assert (folder.parent / "SAVED").read_text() == '{"step": 2}'


def test_a_bug_in_a_save_ends_the_run(saver: Saver) -> None:
    saver.before = lambda: 1 / 0
    submit(saver, 1)
    with pytest.raises(ZeroDivisionError):
        saver.collect(wait=True)
