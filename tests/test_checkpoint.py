"""A checkpoint is whole or it is not there; a damaged one is named and passed over."""

import hashlib
import json
import logging
import os
import pickle
from pathlib import Path

import pytest
import torch

from tinyimnet import checkpoint
from tinyimnet.errors import UserError


def save(folder: Path, step: int, *, keep: int = 3, best: bool = False) -> Path:
    state = {"step": step, "weights": torch.full((4,), float(step))}
    return checkpoint.save(folder, state, step=step, epoch=step // 10, keep=keep, best=best)


def test_the_newest_is_loaded(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        save(tmp_path, step)
    assert checkpoint.load_newest(tmp_path)["step"] == 100


def test_a_new_folder_has_none(tmp_path: Path) -> None:
    assert checkpoint.load_newest(tmp_path) is None


def test_the_note_tells_step_epoch_and_digest(tmp_path: Path) -> None:
    note = json.loads(save(tmp_path, 25).with_suffix(".json").read_text())
    assert (note["step"], note["epoch"], len(note["sha256"])) == (25, 2, 64)


def test_only_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    for step in range(1, 7):
        save(tmp_path, step, keep=2, best=step == 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "best.json", "best.pt",
        "step_00000005.json", "step_00000005.pt", "step_00000006.json", "step_00000006.pt",
    ]  # fmt: skip
    assert checkpoint.load(tmp_path / "best.pt")["step"] == 3


class Code:
    """Pickled, it makes a folder when it is loaded."""

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
    content = pickle.dumps(Code(path.with_name("code-was-run")))
    path.write_bytes(content)
    note = json.loads(path.with_suffix(".json").read_text())
    note["sha256"] = hashlib.sha256(content).hexdigest()
    path.with_suffix(".json").write_text(json.dumps(note))


def empty_the_note(path: Path) -> None:
    path.with_suffix(".json").write_text("")


DAMAGES = [truncate, flip_a_bit, put_code_into_it, empty_the_note, Path.unlink]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_one_is_named_and_the_one_before_is_used(damage, tmp_path: Path, caplog) -> None:
    save(tmp_path, 10)
    damage(save(tmp_path, 20))
    with caplog.at_level(logging.WARNING):
        assert checkpoint.load_newest(tmp_path)["step"] == 10
    assert "step_00000020.pt is damaged" in caplog.text
    assert not (tmp_path / "code-was-run").exists()


def test_all_damaged_is_an_error_and_never_a_start_from_zero(tmp_path: Path) -> None:
    for step in (10, 20):
        truncate(save(tmp_path, step))
    with pytest.raises(UserError, match="all 2 checkpoints .* are damaged"):
        checkpoint.load_newest(tmp_path)


def test_a_half_written_one_is_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 10)
    (tmp_path / "step_00000020.pt").write_bytes(b"half")  # killed before its note was written
    (tmp_path / ".step_00000030.pt.partial").write_bytes(b"half")
    assert checkpoint.load_newest(tmp_path)["step"] == 10


def test_the_best_is_the_last_resort(tmp_path: Path) -> None:
    save(tmp_path, 10, best=True)
    # best.pt shares its bytes with the checkpoint that it was: replace, not overwrite
    (tmp_path / "step_00000010.pt").unlink()
    assert checkpoint.load_newest(tmp_path)["step"] == 10
