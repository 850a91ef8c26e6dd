"""Copy the prepared arrays to memory or a local disk on each node, so that 8 processes do not read NFS 8 times.

The first process on a node to get the lock makes the copy, and the others use it. The files are unlinked as soon as all
of these processes have mapped them. The kernel keeps the pages until the last process exits, so a killed job leaves
nothing behind. If a job is killed while it copies, the next one removes the leftovers.
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
from tinyimnet.files import check_readable, read_text

PREFIX = "tinyimnet-data-"


@contextmanager
def staged(root: Path, folder: str, token: str) -> Iterator[Path]:
    """Yield a verified copy of the prepared folder `root` on this node, unlinked when the context exits.

    Args:
        root: the prepared folder.
        folder: destination on this node; environment variables are expanded ($SLURM_TMPDIR).
        token: unique to this attempt of the run, and the same for all its processes.

    Raises:
        UserError: the copy cannot be made, or the data differs from its manifest.
    """
    for name in ("manifest.json", *json.loads(read_text(root / "manifest.json"))["sha256"]):
        check_readable(root / name)
    place = Path(os.path.expandvars(folder))
    copy, in_use = place / f"{PREFIX}{token}", place / f"{PREFIX}{token}.lock"
    try:
        _sweep(place)
        with _shared_lock(in_use):  # keeps `_sweep` of another job from removing the copy
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


# flock instead of the lease of lock.py: within a node it works on every file system, and it ends with the process.
@contextmanager
def _shared_lock(path: Path) -> Iterator[None]:
    while True:
        with path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            with suppress(FileNotFoundError):
                if path.stat().st_ino == os.fstat(file.fileno()).st_ino:  # else it was unlinked during the wait
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
    manifest = json.loads(read_text(root / "manifest.json"))
    for name, digest in manifest["sha256"].items():
        found = hashlib.sha256()
        with (root / name).open("rb") as source, (copy / name).open("wb") as target:
            while block := source.read(1 << 20):
                found.update(block)
                target.write(block)
        if found.hexdigest() != digest:
            raise UserError(f"{root / name} differs from its manifest (sha256); move {root} away and prepare it again.")
    # The manifest comes last: its presence means that the copy is complete.
    shutil.copyfile(root / "manifest.json", copy / "manifest.partial")
    os.replace(copy / "manifest.partial", copy / "manifest.json")


def _sweep(place: Path) -> None:
    """Remove the copies of dead jobs, whose locks nobody holds."""
    for path in place.glob(f"{PREFIX}*.lock"):
        with suppress(OSError), path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(path.with_suffix(""), path)


def _remove(copy: Path, in_use: Path) -> None:
    shutil.rmtree(copy, ignore_errors=True)
    in_use.unlink(missing_ok=True)
