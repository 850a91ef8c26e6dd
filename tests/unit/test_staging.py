"""Staging copies the arrays once per node, verifies them, and leaves nothing behind."""

import shutil
import threading
from pathlib import Path

import pytest

from tinyimnet.data import staging
from tinyimnet.data.dataset import open_dataset
from tinyimnet.errors import UserError


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def test_the_copy_is_deleted_once_open_and_can_still_be_read(tiny_data: Path, tmp_path: Path) -> None:
    with staging.staged(tiny_data, str(tmp_path), "a") as copy:
        assert copy.parent == tmp_path
        dataset = open_dataset(copy)
    assert names(tmp_path) == []
    assert (dataset.images["train"] == open_dataset(tiny_data).images["train"]).all()


def test_processes_of_one_node_share_one_copy(tiny_data: Path, tmp_path: Path, monkeypatch) -> None:
    copies, copy = [], staging._copy
    monkeypatch.setattr(staging, "_copy", lambda *paths: (copies.append(1), copy(*paths)))
    all_opened = threading.Barrier(4)

    def process() -> None:
        with staging.staged(tiny_data, str(tmp_path), "a") as place:
            open_dataset(place)
            all_opened.wait(20)

    threads = [threading.Thread(target=process) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(copies) == 1 and not all_opened.broken
    assert names(tmp_path) == []


def test_the_folder_can_be_an_environment_variable(tiny_data: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path))
    with staging.staged(tiny_data, "$SLURM_TMPDIR", "a") as copy:
        assert copy.parent == tmp_path


def test_damaged_data_is_named(tiny_data: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(tiny_data, tmp_path / "data")
    with (broken / "val_images.npy").open("r+b") as file:
        file.seek(1000)
        file.write(b"x")
    with (
        pytest.raises(UserError, match="val_images.npy differs from its manifest"),
        staging.staged(broken, str(tmp_path), "a"),
    ):
        pass
    assert names(tmp_path) == ["data"]


def test_a_missing_folder_is_named(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.stage /no/where cannot hold the data on this node \(No such file"), \
            staging.staged(tiny_data, "/no/where", "a"):  # fmt: skip
        pass
