"""A file is on disk before it gets its name, and its name is on disk before anything relies on it."""

import os
import stat
from pathlib import Path

import pytest

from tinyimnet import files
from tinyimnet.run import checkpoint


def trace(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Record the calls of fsync and rename with their files, because a test cannot cut the power."""
    calls: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def traced_fsync(descriptor: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
        calls.append(("sync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync", name))
        fsync(descriptor)

    def traced_replace(source: Path, target: Path) -> None:
        calls.append(("rename", Path(target).name))
        replace(source, target)

    monkeypatch.setattr(files.os, "fsync", traced_fsync)
    monkeypatch.setattr(files.os, "replace", traced_replace)
    return calls


def test_the_content_is_synced_then_the_name_then_the_folder(tmp_path: Path, monkeypatch) -> None:
    calls = trace(monkeypatch)
    files.write_atomically(tmp_path / "a", b"content")
    assert calls == [("sync", ".a.partial"), ("rename", "a"), ("sync folder", tmp_path.name)]
    assert (tmp_path / "a").read_bytes() == b"content"


def test_a_checkpoint_has_its_digest_on_disk_before_it_is_there(tmp_path: Path, monkeypatch) -> None:
    calls = trace(monkeypatch)
    checkpoint.save(tmp_path, {"step": 1}, step=1, keep=1, best=False)
    assert calls == [
        ("sync", ".step_00000001.json.partial"), ("rename", "step_00000001.json"), ("sync folder", tmp_path.name),
        ("sync", ".step_00000001.pt.partial"), ("rename", "step_00000001.pt"), ("sync folder", tmp_path.name),
    ]  # fmt: skip


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch) -> None:
    files.write_atomically(tmp_path / "a", b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError):
        files.write_atomically(tmp_path / "a", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"
