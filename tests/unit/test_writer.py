"""A prepared folder appears atomically, and no other folder is touched."""

import errno
import fcntl
import os
import socket
import time
from pathlib import Path

import pytest

from helpers.sources import arrays_in, left_behind
from tinyimnet import files
from tinyimnet.data.npy import prepare_npy
from tinyimnet.data.prepare import prepare
from tinyimnet.data.writer import new_folder
from tinyimnet.errors import UserError


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    prepare_npy(arrays_in(tmp_path / "npy"), tmp_path / "prepared", None)
    return tmp_path / "prepared"


def test_a_prepared_folder_is_not_touched(prepared: Path, tmp_path: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in prepared.iterdir()}
    with pytest.raises(UserError, match="is already prepared; move it away"):
        prepare(tmp_path / "npy", prepared)
    assert before == {path.name: path.stat().st_mtime_ns for path in prepared.iterdir()}


def test_a_folder_with_something_else_is_not_touched(tmp_path: Path) -> None:
    arrays_in(tmp_path / "npy")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="exists and is neither empty nor a prepared data set"):
        prepare(tmp_path / "npy", tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "precious"


def test_a_parent_that_refuses_is_named_without_talk_of_space(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"\(Not a directory\); choose another --out"),
        new_folder(tmp_path / "file/out", 0),
    ):
        pass


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out", 0) as folder:
        (folder / "file").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]


def test_the_slower_of_two_processes_gets_an_error(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match="is already prepared"), new_folder(out, 0):
        out.mkdir()
        (out / "manifest.json").touch()
    assert left_behind(out) == ["out"]


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit, ValueError])
def test_a_failing_block_leaves_nothing(tmp_path: Path, exception: type[BaseException]) -> None:
    with pytest.raises(exception), new_folder(tmp_path / "out", 0) as folder:
        (folder / "train_images.npy").touch()
        raise exception
    assert list(tmp_path.iterdir()) == []


def test_too_little_disk_is_noticed_before_writing(tmp_path: Path) -> None:
    told = pytest.raises(UserError, match=r"needs 1,010,000,000,000 MB and its disk has [0-9,]+ MB free")
    with told, new_folder(tmp_path / "deep/out", 10**18):
        pytest.fail("the block must not run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_up_is_reported_and_nothing_is_left(tmp_path: Path) -> None:
    told = pytest.raises(UserError, match="No space left on device")
    with told, new_folder(tmp_path / "out", 0) as folder, open("/dev/full", "w", encoding="utf-8") as full:
        (folder / "train_images.npy").touch()
        full.write("x")
        full.flush()
    assert list(tmp_path.iterdir()) == []


def test_the_leftover_of_a_dead_builder_is_removed(tmp_path: Path) -> None:
    dead = tmp_path / ".out.partial-dead"
    dead.mkdir()
    (dead / "lock").touch()
    with new_folder(tmp_path / "out", 0):
        assert not dead.exists()


def test_the_folder_of_a_live_builder_is_kept(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out", 0) as live:
        with pytest.raises(KeyError), new_folder(tmp_path / "out", 0):
            raise KeyError
        assert (live / "lock").exists()


def test_without_locks_it_prepares_and_removes_no_unfinished_folder(tmp_path: Path, monkeypatch) -> None:
    """As on Lustre that is mounted without the option flock."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    other = tmp_path / ".out.partial-1234"
    other.mkdir()
    (other / "lock").touch()
    with new_folder(tmp_path / "out", 0):
        pass
    assert (tmp_path / "out").is_dir() and other.is_dir()


def test_the_lock_is_held_for_the_whole_block(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out", 0) as folder, (folder / "lock").open("r+") as lock:
        (folder / "train_images.npy").touch()
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("node, days, kept", [("another", 0.5, True), ("another", 2, False), ("this", 0, False)])
def test_a_leftover_of_another_node_has_to_be_a_day_old(node: str, days: float, kept: bool, tmp_path: Path) -> None:
    """On NFS with nolock or local_lock=all, the lock of a live builder on another node is free here."""
    other = tmp_path / ".out.partial-1234"
    other.mkdir()
    (other / "lock").write_text(socket.gethostname() if node == "this" else "n07", encoding="utf-8")
    os.utime(other / "lock", (time.time() - 86400 * days,) * 2)
    with new_folder(tmp_path / "out", 0):
        assert other.exists() == kept
