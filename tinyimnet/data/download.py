"""Download the official Tiny ImageNet archive, with resume and checksum: `tinyimnet prepare --download`."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tinyimnet import files
from tinyimnet.console import command
from tinyimnet.errors import Busy, UserError, one_line

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
SIZE = 248_100_043
SHA256 = "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821"
logger = logging.getLogger(__name__)
PAUSES = (0.2, 0.5, 1.0, 2.0)  # seconds before each retry
BLOCK = 1 << 18


def fetch(target: Path, url: str = URL, size: int = SIZE, sha256: str = SHA256) -> Path:
    """Download `url` to `target` through `<target>.part`, resuming where an earlier call stopped.

    Raises:
        Busy: another process is writing the .part file.
        UserError: no network, an unexpected file, a full disk, or a different file at `target`.
    """

    def failed(reason: object) -> UserError:
        return UserError(
            f"{url} could not be downloaded ({reason}); download it elsewhere, copy it to {target} and run "
            f"`{command('prepare', 'PATH/tiny-imagenet-200.zip')}` with that PATH, "
            "or train without it: --config configs/smoke.yaml."
        )

    if target.exists():
        if target.is_file() and target.stat().st_size == size and files.sha256(target) == sha256:
            return target
        raise UserError(f"{target} exists but is not the archive from {url}; prepare from it, or move it away.")
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as file, _progress(size) as show:
            held = files.lock(file)
            if held is False:
                raise Busy(f"{part} is being written by another process; wait for it, or stop it.")
            if held is None:
                logger.warning("the file system of %s has no locks; start no second download there.", part)
            if file.tell() > size:
                file.truncate(0)
            _receive(url, file, size, show)
            file.flush()
            os.fsync(file.fileno())
            if files.sha256(part) != sha256:
                part.unlink()
                raise failed("its sha256 or size differs from the official archive")
            os.replace(part, target)
    except (OSError, HTTPException) as error:
        if part.exists() and not part.stat().st_size:
            part.unlink()
        raise failed(one_line(error)) from None
    return target


def _receive(url: str, file: BinaryIO, size: int, show: Callable[[int], None]) -> None:
    """Append the missing bytes to `file`, retrying a few times if the connection breaks."""
    for pause in (*PAUSES, None):
        try:
            _receive_once(url, file, size, show)
            return
        except HTTPError:
            raise  # the server was reached and refused the request
        except (URLError, ConnectionError, TimeoutError, HTTPException):
            if pause is None:
                raise
            time.sleep(pause)


def _receive_once(url: str, file: BinaryIO, size: int, show: Callable[[int], None]) -> None:
    start = file.seek(0, os.SEEK_END)
    if start == size:
        return
    with urlopen(Request(url, headers={"Range": f"bytes={start}-"}), timeout=20) as response:
        if response.status != 206:  # no range support: the server sends the whole file
            file.seek(0)
            file.truncate()
        while file.tell() <= size and (block := response.read(BLOCK)):  # at most one block too many
            file.write(block)
            show(file.tell())
    if file.tell() < size:
        raise ConnectionError(f"the connection broke after {file.tell():,} of {size:,} bytes; rerun to resume")


@contextmanager
def _progress(size: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that takes the bytes so far; it shows a bar on a terminal, else a line every 10 %."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

        columns = ("downloading", BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=Console(stderr=True, markup=False, emoji=False)) as bar:
            task = bar.add_task("", total=size)
            yield lambda done: bar.update(task, completed=done)
        return
    tenths = 0

    def show(done: int) -> None:
        nonlocal tenths
        if done * 10 // size > tenths:
            tenths = done * 10 // size
            print(f"downloaded {tenths * 10} % of {size / 1e6:.0f} MB", file=sys.stderr, flush=True)

    yield show
