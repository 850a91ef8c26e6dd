"""The command that turns a source into the prepared form: `python -m tinyimnet prepare SOURCE`.

Neither this module nor what it imports needs torch: the decoding processes have to start fast.
"""

import argparse
import os
import secrets
import signal
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import numpy as np

from tinyimnet import arrays, data, download, official, soft_labels, staging
from tinyimnet.config import DataConfig
from tinyimnet.errors import Busy, UserError
from tinyimnet.prepared import check_vacant

if TYPE_CHECKING:
    from tinyimnet.meeting import Meeting

ARCHIVE = "tiny-imagenet-200.zip"
PATIENCE = 3600  # seconds that other processes wait for rank 0 to download and decode
VISIBLE = 10  # seconds within which a network file system shows a new folder on all nodes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `python -m tinyimnet prepare`."""
    parser.add_argument(
        "source", nargs="?", type=Path, help="tiny-imagenet-200.zip, its folder, or one of .npy files"
    )
    parser.add_argument(
        "--out", type=Path, help="$DATA_ROOT or data/tiny-imagenet-200; data/synthetic-200 with --synthetic"
    )
    for role in arrays.ROLES:
        parser.add_argument(f"--{role.replace('_', '-')}", type=Path, metavar="FILE", help=f"{role} as .npy")
    parser.add_argument(
        "--classes", type=Path, metavar="FILE", help="with .npy: a class id per line, in label order"
    )
    parser.add_argument("--download", action="store_true", help="fetch the official archive (248 MB) first")
    parser.add_argument("--synthetic", action="store_true", help="draw a small data set instead")


def main(args: argparse.Namespace) -> int:
    """Prepare what the arguments ask for and say what there is now; a signal leaves nothing behind."""
    in_main_thread = threading.current_thread() is threading.main_thread()  # others cannot set handlers
    numbers = (signal.SIGTERM, signal.SIGINT) if in_main_thread else ()
    handlers = {number: signal.signal(number, _stop) for number in numbers}
    real = os.environ.get("DATA_ROOT") or DataConfig.root  # slurm/site.env
    out = args.out or Path("data/synthetic-200" if args.synthetic else real)
    try:
        manifest = _prepare(args, out)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    counts = ", ".join(f"{n:,} {split}" for split, n in manifest["counts"].items())
    print(f"{out}: {counts} images of {len(manifest['classes'])} classes, from {manifest['origin']}")
    return 0


def _stop(signal_number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signal_number)


def _prepare(args: argparse.Namespace, out: Path) -> dict:
    files = {role: path for role in arrays.ROLES if (path := getattr(args, role))}
    ways = (bool(args.source), bool(files), args.download, args.synthetic)
    if sum(ways) != 1 or (args.classes and (args.download or args.synthetic)):
        raise UserError(
            "prepare takes exactly one source: the path of tiny-imagenet-200.zip, of its unpacked folder or "
            "of a folder of .npy files; or --train-images and so on; or --download; or --synthetic "
            "(and --classes only with .npy files)."
        )
    if args.download or args.synthetic:
        return prepare_missing(out, "synthetic" if args.synthetic else "tiny-imagenet")
    if files:
        return arrays.prepare_arrays(files, out, args.classes)
    return prepare(args.source, out, args.classes)


def prepare(source: Path, out: Path, classes: Path | None = None) -> dict:
    """Prepare the official archive, the unpacked official folder, or a folder of .npy files (with --classes)."""
    is_folder_of_arrays = (
        source.is_dir() and not official.official_roots(source) and any(source.glob("*.npy"))
    )
    if is_folder_of_arrays or classes:
        return arrays.prepare_arrays(arrays.guess_arrays(source), out, classes)
    return official.prepare_official(source, out)


def prepare_missing(out: Path, source: str) -> dict:
    """Make `out` from nothing, as data.source says: fetch the official archive, or draw the embedded data set."""
    check_vacant(out)  # before a long download
    if source == "synthetic":
        from tinyimnet.synthetic import prepare_synthetic  # here: decoding processes import this module

        print(f"drawing the embedded data set: {out}", file=sys.stderr, flush=True)
        return prepare_synthetic(out)
    return official.prepare_official(download.fetch(out.parent / ARCHIVE), out)


def ready_dataset(settings: DataConfig, meeting: "Meeting") -> data.Dataset:
    """Open the data set on every process; where it is not prepared yet, rank 0 makes it and the others wait.

    Every node verifies what it reads: a process of each compares the digests, or the copy that data.stage asks for.

    Raises:
        UserError: it cannot be made, or one node does not see it or reads something else; on every rank.
    """
    dataset = _opened_everywhere(settings, meeting)
    if settings.soft_labels:
        dataset = meeting.everyone(
            "soft labels", lambda: soft_labels.add(dataset, Path(settings.soft_labels))
        )
    where = (
        f"data.root {settings.root}{settings.soft_labels and f' or data.soft_labels {settings.soft_labels}'}"
    )
    digests = meeting.gather("digests", dataset.digest)
    for rank, digest in enumerate(digests):
        if digest != digests[0]:
            meeting.part()
            raise UserError(
                f"node {meeting.hosts[rank]} (rank {rank}) has other data at {where} than node "
                f"{meeting.hosts[0]} ({digest[:12]}, not {digests[0][:12]}); prepare both from the same source."
            )
    return data.tuning_split(dataset) if settings.tune_split else dataset


def _opened_everywhere(settings: DataConfig, meeting: "Meeting") -> data.Dataset:
    root = Path(settings.root)

    meeting.from_main("prepared", lambda: _make(root, settings.source), PATIENCE)
    meeting.everyone("visible", lambda: _wait_for(root))
    if not settings.stage:
        verify = os.environ.get("LOCAL_RANK", "0") == "0"
        return meeting.everyone("data", lambda: data.open_dataset(root, verify=verify), PATIENCE)
    token = meeting.from_main("stage", lambda: secrets.token_hex(4))
    with ExitStack() as stack:
        return meeting.everyone(
            "data",
            lambda: data.open_dataset(
                stack.enter_context(staging.staged(root, settings.stage, token)), verify=False
            ),
            PATIENCE,
        )


def _make(root: Path, source: str) -> None:
    """Make the data set unless it is there.

    Of runs that start together and find none, one downloads and the others wait; each decodes, and all use what the first
    to finish has made. Tiny ImageNet goes only into a folder of its name: another one is meant to hold other data.

    Raises:
        UserError: it cannot be made, or `root` is such a folder.
    """
    if source == "tiny-imagenet" and root.name != Path(ARCHIVE).stem and not data.is_prepared(root):
        raise data.not_prepared(root)
    deadline = time.monotonic() + PATIENCE
    while not data.is_prepared(root):
        try:
            prepare_missing(root, source)
        except UserError as error:
            if isinstance(error, Busy) and time.monotonic() < deadline:
                time.sleep(1)
            elif not data.is_prepared(root):  # another one was faster
                raise


def _wait_for(root: Path) -> None:
    deadline = time.monotonic() + VISIBLE
    while not data.is_prepared(root):
        if time.monotonic() > deadline:
            raise UserError(
                f"data.root {root}, prepared by rank 0, is not there on this node; "
                "put it on a file system that all nodes share, or prepare it on every node."
            )
        time.sleep(0.2)


def read_images(path: Path) -> tuple[list[str], np.ndarray]:
    """Names and (N, 64, 64, 3) uint8 pixels of a folder of images (natural order) or of an .npy file.

    Raises:
        UserError: nothing there, or an image or array of another form.
    """
    if path.suffix == ".npy":
        images = np.ascontiguousarray(arrays.to_pixels(path, arrays.open_images(path)))
        return [str(i) for i in range(len(images))], images
    if not path.is_dir():
        raise UserError(f"--images {path} is neither a folder of images nor an .npy file.")
    files = official.natural_order({file.name for file in path.iterdir()})
    if not files:
        raise UserError(f"--images {path} has no .jpeg, .jpg or .png file.")
    return files, np.stack([official.decode((path / name).read_bytes(), str(path / name)) for name in files])
