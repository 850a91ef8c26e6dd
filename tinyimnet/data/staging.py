"""A copy of the prepared arrays on each node, in memory or on its own disk, so that 8 processes do not read NFS 8 times.

The first process of a node that gets the lock copies, the others find the copy. Its names are removed as soon as all
of them have mapped the files: the kernel keeps the pages until the last process is gone, so a job that is killed
leaves nothing behind. What was left by one that was killed while it copied, the next one removes.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tinyimnet.errors import UserError

PREFIX = "tinyimnet-data-"


@contextmanager
def staged(root: Path, folder: str, token: str) -> Iterator[Path]:
    """A verified copy of the prepared folder `root` on this node, with names until the end of the context.

    Args:
        root: the prepared folder.
        folder: where to, on this node; environment variables are expanded ($SLURM_TMPDIR).
        token: the same for all processes of this attempt of the run, another one for all others.

    Raises:
        UserError: the copy cannot be made, or differs from its manifest.
    """
    place = Path(os.path.expandvars(folder))
    copy, in_use = place / f"{PREFIX}{token}", place / f"{PREFIX}{token}.lock"
    try:
        _sweep(place)
        with _shared_lock(in_use):  # `_sweep` of another job leaves the copy alone
            try:
                copy.mkdir(exist_ok=True)
                with _alone_in(copy):
                    if not (copy / "manifest.json").exists():
                        _copy(root, copy)
                yield copy
            finally:
                _remove(copy, in_use)
    except OSError as error:
        size = sum(file.stat().st_size for file in root.iterdir()) / 1e9
        raise UserError(
            f"data.stage {folder} cannot hold the data on this node ({error.strerror}); "
            f"choose a folder with {size:.2f} GB free, or leave data.stage empty."
        ) from error


# flock, and not the lease of lock.py: between processes of one node it works on every file system and ends with them.
@contextmanager
def _shared_lock(path: Path) -> Iterator[None]:
    while True:
        with path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            with suppress(FileNotFoundError):
                if path.stat().st_ino == os.fstat(file.fileno()).st_ino:  # else its name went while this waited
                    yield
                    return


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _copy(root: Path, copy: Path) -> None:
    copy.mkdir(exist_ok=True)
    manifest = json.loads((root / "manifest.json").read_text())
    for name, digest in manifest["sha256"].items():
        found = hashlib.sha256()
        with (root / name).open("rb") as source, (copy / name).open("wb") as target:
            while block := source.read(1 << 20):
                found.update(block)
                target.write(block)
        if found.hexdigest() != digest:
            raise UserError(f"{root / name} differs from its manifest (sha256); delete {root} and prepare it anew.")
    # Last: the copy is whole where the manifest is.
    shutil.copyfile(root / "manifest.json", copy / "manifest.partial")
    os.replace(copy / "manifest.partial", copy / "manifest.json")


def _sweep(place: Path) -> None:
    """Remove the copies of jobs that are dead: nobody holds their lock."""
    for path in place.glob(f"{PREFIX}*.lock"):
        with suppress(OSError), path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(path.with_suffix(""), path)


def _remove(copy: Path, in_use: Path) -> None:
    shutil.rmtree(copy, ignore_errors=True)
    in_use.unlink(missing_ok=True)
