"""File systems without flock or without fsync of folders (autofs, Lustre, CIFS, FUSE, 9p), imitated by LD_PRELOAD."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.program import REPO, small_run
from helpers.sources import arrays_in
from tinyimnet.files import read_lines

KERNEL_ENOTSUPP = 524  # not in errno: it should not leave the kernel, and leaves autofs


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    library = tmp_path_factory.mktemp("library") / "file_system.so"
    source = REPO / "tests" / "helpers" / "file_system.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    return library


def run(library: Path, arguments: list[str], **fault: int) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LD_PRELOAD": str(library), "WANDB_MODE": "disabled"}
    environment |= {name: str(number) for name, number in fault.items()}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=REPO, env=environment, capture_output=True, encoding="utf-8", timeout=120)


def prepare(tmp_path: Path) -> list[str]:
    arrays_in(tmp_path / "arrays")
    return ["-m", "tinyimnet", "prepare", str(tmp_path / "arrays"), "--out", str(tmp_path / "out")]


@pytest.mark.parametrize(
    "number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, KERNEL_ENOTSUPP], ids=errno.errorcode.get
)
def test_without_file_locks_the_data_is_prepared(number: int, library: Path, tmp_path: Path) -> None:
    done = run(library, prepare(tmp_path), FLOCK_ERRNO=number)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "manifest.json").exists()


def test_a_lock_that_fails_for_another_reason_is_an_error(library: Path, tmp_path: Path) -> None:
    done = run(library, prepare(tmp_path), FLOCK_ERRNO=errno.EIO)
    assert done.returncode == 2 and "cannot be written (Input/output error)" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_without_fsync_of_folders_every_save_counts(
    number: int, library: Path, tiny_data: Path, tmp_path: Path
) -> None:
    arguments = small_run(tiny_data, tmp_path / "run", run__save_every=2)
    done = run(library, ["train.py", *arguments], FSYNC_ERRNO=number, FLOCK_ERRNO=number)
    assert done.returncode == 0 and "not written" not in done.stderr, done.stderr
    assert read_lines(tmp_path / "run" / "metrics.jsonl")[-1]["perf/failed_saves"] == 0


def test_a_folder_that_does_not_reach_the_disk_fails_the_save(library: Path, tiny_data: Path, tmp_path: Path) -> None:
    done = run(library, ["train.py", *small_run(tiny_data, tmp_path / "run")], FSYNC_ERRNO=errno.EIO)
    assert done.returncode == 2 and "(Input/output error)" in done.stderr.splitlines()[-1]
