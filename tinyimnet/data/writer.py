"""Write the prepared format that dataset.py reads, atomically: to a sibling folder that is renamed at the end."""

import errno
import glob
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import FrameType

import numpy as np

from tinyimnet import files
from tinyimnet.data.dataset import FORMAT, is_prepared
from tinyimnet.errors import UserError
from tinyimnet.files import as_utf8, fsync, fsync_folder, sha256, write_atomically

DAY = 86400  # seconds
CHUNK = 500  # images per chunk: of 64 px, 6 MB decoded and about 70 ms of work
SPLITS = ("train", "val", "test")


@contextmanager
def new_folder(out: Path, bytes_needed: int) -> Iterator[Path]:
    """Yield a folder to fill, which is renamed to `out` at the end of the block, or removed if the block fails.

    Raises:
        UserError: `out` already exists or cannot be written, or the disk has too little space.
    """
    check_vacant(out)
    target = out.resolve()
    _remove_leftovers(target)
    folder = target.with_name(f".{target.name}.partial-{secrets.token_hex(4)}")
    try:
        _check_free(target, bytes_needed)
        folder.mkdir(parents=True)
        # The lock gets its name only once it is held, so no process takes a new folder for an abandoned one.
        with (folder / "lock.new").open("w", encoding="utf-8") as lock:
            files.lock(lock)
            lock.write(socket.gethostname())
            lock.flush()
            os.rename(lock.name, folder / "lock")
            yield folder
            for path in folder.iterdir():
                fsync_folder(path) if path.is_dir() else fsync(path)
            fsync_folder(folder)
            (folder / "lock").unlink()
            os.rename(folder, target)
            fsync_folder(target.parent)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            check_vacant(out)  # another process was faster
        if error.errno == errno.EBUSY:
            raise _mount_point(out) from None
        way_out = "free up space, or " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise UserError(f"{out} cannot be written ({error.strerror}); {way_out}choose another --out.") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_vacant(out: Path) -> None:
    """Raise a UserError unless `out` is absent or an empty folder."""
    try:
        if os.path.ismount(out) and not is_prepared(out):
            raise _mount_point(out)
        if is_prepared(out):
            raise UserError(f"{out} is already prepared; move it away to prepare it again.")
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} exists and is neither empty nor a prepared data set; choose another folder.")
    except OSError as error:
        raise UserError(f"{out} cannot be read ({error.strerror}); choose another --out.") from None


@contextmanager
def interruptible() -> Iterator[None]:
    """Exit on SIGTERM and SIGINT by an exception, so that `new_folder` leaves no partial files."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    in_main_thread = threading.current_thread() is threading.main_thread()  # others cannot set handlers
    numbers = (signal.SIGTERM, signal.SIGINT) if in_main_thread else ()
    handlers = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _mount_point(out: Path) -> UserError:
    return UserError(f"{out} is a mount point, which a finished folder cannot replace; choose a folder in it as --out.")


def save_array(folder: Path, name: str, array: np.ndarray) -> None:
    """Write `array` to <folder>/<name>.npy."""
    np.save(folder / f"{name}.npy", array, allow_pickle=False)


def finish(
    folder: Path,
    *,
    classes: list[tuple[str, str]],
    test_files: list[str],
    origin: str,
    layout: str = "",
    fit: str | None = None,
    skipped: dict[str, list[str]] | None = None,
) -> dict:
    """Write the manifest of the arrays in `folder` and return it.

    Args:
        folder: the folder from `new_folder`, with all arrays written.
        classes: (id, readable name) in label order.
        test_files: file name of each test image.
        origin: the source of the images.
        layout: what was found in it.
        fit: how images of other sizes were scaled, one of images.FITS.
        skipped: files of the source that are not used, by kind.
    """
    arrays = sorted(folder.glob("*.npy"))
    shape = np.load(folder / "train_images.npy", mmap_mode="r").shape
    mean, std = _channel_statistics(folder / "train_images.npy")
    manifest = {
        "format": FORMAT,
        "image_size": shape[1],
        "counts": {split: _rows(path) for split in SPLITS if (path := folder / f"{split}_images.npy") in arrays},
        "classes": [{"id": class_id, "name": name} for class_id, name in classes],
        "test_files": test_files,
        "mean": mean,
        "std": std,
        "sha256": {path.name: sha256(path) for path in arrays},
        "origin": as_utf8(origin),
        "layout": layout,
        "fit": fit,
        "skipped": skipped or {},
    }
    write_atomically(folder / "manifest.json", json.dumps(manifest, indent=1))
    return manifest


def _remove_leftovers(target: Path) -> None:
    """Remove the folders of killed builders of `target`, whose locks the kernel has released.

    On a file system without locks nothing is removed, because a builder may still be running. On NFS with `nolock` or
    `local_lock=all` the locks of other nodes do not show, so a folder of another node must also be a day old.
    """
    for path in target.parent.glob(f".{glob.escape(target.name)}.partial-*/lock"):
        with suppress(OSError), path.open("rb+") as lock:  # rb+, because over NFS only a writable file can be locked
            of_this_node = lock.read().decode() in ("", socket.gethostname())
            if files.lock(lock) and (of_this_node or time.time() - path.stat().st_mtime > DAY):
                shutil.rmtree(path.parent, ignore_errors=True)


def _check_free(target: Path, bytes_needed: int) -> None:
    disk = next(folder for folder in target.parents if folder.exists())
    needed, free = bytes_needed * 1.01 / 1e6, shutil.disk_usage(disk).free / 1e6
    if free < needed:
        raise UserError(
            f"{target} needs {needed:,.0f} MB and its disk has {free:,.0f} MB free; "
            "free up space, or choose another --out."
        )


def _rows(path: Path) -> int:
    return len(np.load(path, mmap_mode="r"))


def _channel_statistics(path: Path) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel in [0, 1]; integer sums make them equal on every machine."""
    n = _rows(path)
    step = 10 if n >= 10_000 else 1  # a sample of 10,000 images changes the mean by at most 0.0009
    total, squares, pixels = np.zeros(3, np.uint64), np.zeros(3, np.uint64), 0
    for start in range(0, n, CHUNK * step):
        # Reopened for each block, because mapped pages count as memory of this process.
        block = np.load(path, mmap_mode="r")[start : start + CHUNK * step : step].reshape(-1, 3)
        total += block.sum(axis=0, dtype=np.uint64)
        squares += np.square(block, dtype=np.uint32).sum(axis=0, dtype=np.uint64)
        pixels += len(block)
    mean = total / pixels
    return (mean / 255).tolist(), (np.sqrt(squares / pixels - mean**2) / 255).tolist()


def image_bytes(size: int) -> int:
    """Bytes of an image of `size` px in an array."""
    return 3 * size**2


def new_images(folder: Path, split: str, n: int, size: int) -> tuple[Path, int]:
    """Create <split>_images.npy with n black images of `size` px; return its path and the offset of its pixels."""
    path = folder / f"{split}_images.npy"
    return path, np.lib.format.open_memmap(path, "w+", np.uint8, (n, size, size, 3)).offset


def write_pixels(path: Path, offset: int, pixels: np.ndarray) -> None:
    """Write with file I/O, which raises on a full disk; a memory map would kill the process (SIGBUS)."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(np.ascontiguousarray(pixels).data)


def write_rows(images: Iterable[tuple[Path, int, np.ndarray]]) -> None:
    """Write the pixels of single images, each at an offset in a file."""
    for path, of_file in groupby(images, key=itemgetter(0)):
        with path.open("r+b") as file:
            for _, offset, pixels in of_file:
                file.seek(offset)
                file.write(pixels.data)


def announce(form: str, found: str) -> None:
    """Say what was found in a source, before the work on it."""
    print(f"found {form}: {found}", file=sys.stderr, flush=True)


@contextmanager
def progress(done: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that takes the number of images just done; it shows a bar on a terminal, else two lines."""
    start = time.monotonic()
    if sys.stderr.isatty():
        from rich.console import Console  # deferred: workers import this module and do not need it
        from rich.progress import Progress

        with Progress(console=Console(stderr=True, markup=False, emoji=False)) as bar:
            task = bar.add_task("images", total=total)
            yield lambda n: bar.advance(task, n)
    else:
        print(f"{total:,} images will be {done}", file=sys.stderr, flush=True)
        yield lambda n: None
    print(f"{done} {total:,} images in {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
