"""Decode the images of a source on all cores, straight into the arrays of the prepared format."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import warnings
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from tinyimnet.data.dataset import IMAGE_SIZE, check_classes
from tinyimnet.data.findings import Findings, Unusable, settle
from tinyimnet.data.images import SCALED, decode, wrong_size
from tinyimnet.data.source import Files, Source
from tinyimnet.data.writer import (
    CHUNK,
    announce,
    finish,
    image_bytes,
    new_folder,
    new_images,
    progress,
    save_array,
    write_rows,
)
from tinyimnet.errors import UserError

_source: Source  # set in worker processes only
MAX_WORKERS = 16  # which decode 80,000 images/s; each reads the archive's directory, which takes 0.5 s and 70 MB
PHOTOS = 16  # images per chunk if they are scaled: a photo of 12 megapixels takes 0.1 to 0.2 s
SEVERAL_FRAMES = "used up to the first frame"


def prepare_files(
    files: Files,
    images: dict[str, list[str]],
    labels: dict[str, list[int]],
    out: Path,
    problems: Findings,
    *,
    classes: list[tuple[str, str]],
    test_files: list[str],
    origin: Path,
    layout: str = "",
    size: int = IMAGE_SIZE,
    fit: str | None = None,
    strict: bool,
) -> dict:
    """Write the prepared data set of a source whose files are sorted out.

    Args:
        files: the source, with the files that are skipped.
        images: names of the images of each split.
        labels: label of each image of train and val.
        out: the folder to create.
        problems: files that cannot be used.
        classes: (id, readable name) in label order.
        test_files: file name of each test image.
        origin: the source as the user gave it.
        layout: what was found in it.
        size: width and height of the prepared images in pixels.
        fit: one of images.FITS; None: all images must have that size.
        strict: refuse a source with files that are skipped.

    Returns:
        The manifest.

    Raises:
        UserError: there are problems, or the destination is invalid.
    """
    if not problems:
        check_classes(origin, len(classes))
    announce(files.source.form, layout or "Tiny ImageNet")
    with new_folder(out, image_bytes(size) * sum(map(len, images.values()))) as folder:
        for split, of_split in labels.items():
            save_array(folder, f"{split}_labels", np.array(of_split, np.int64))
        unusable, partly_used = _decode_all(
            files.source, {s: names for s, names in images.items() if names}, folder, size, fit
        )
        files.skipped.update(partly_used)
        way_out = f"; {SCALED}" if wrong_size(size) in unusable else ""
        settle(origin, Findings(problems | unusable), files.skipped, strict=strict, way_out=way_out)
        return finish(
            folder,
            classes=classes,
            test_files=test_files,
            origin=str(origin),
            layout=layout,
            fit=fit,
            skipped=files.skipped,
        )


def _decode_all(
    source: Source, images: dict[str, list[str]], folder: Path, size: int, fit: str | None
) -> tuple[Findings, Findings]:
    """Decode each split into <split>_images.npy; the workers write to it, so no pixels pass between processes.

    Returns:
        The images that cannot be used, whose rows are black, and the images with several frames.
    """
    places: list[tuple[str, Path, int]] = []  # name of each image, and the file and the offset for its pixels
    for split, names in images.items():
        path, offset = new_images(folder, split, len(names), size)
        places += [(name, path, offset + row * image_bytes(size)) for row, name in enumerate(names)]
    places.sort(key=lambda place: source.position(place[0]))
    rows = PHOTOS if fit else CHUNK
    jobs = [(places[start : start + rows], size, fit) for start in range(0, len(places), rows)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    n_workers = min(cores, len(jobs), MAX_WORKERS)
    pool = ProcessPoolExecutor(n_workers, multiprocessing.get_context("spawn"), _start_worker, (source,))
    problems, skipped = Findings(), Findings()
    try:
        with progress("decoded", len(places)) as advance:
            # Ctrl-C goes to the whole process group; workers inherit the blocked SIGINT, so only the parent reacts.
            unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                futures = [pool.submit(_decode_chunk, *job) for job in jobs]
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
            for future, (chunk, *_) in zip(futures, jobs, strict=True):
                for kind, name, detail in future.result():
                    (skipped if kind == SEVERAL_FRAMES else problems).add(kind, name, detail)
                advance(len(chunk))
    except BrokenProcessPool:
        raise UserError(
            "A decoding process was killed, possibly for lack of memory; free some memory and run the command again."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
    return problems, skipped


def _start_worker(source: Source) -> None:
    """Keep the source for later chunks, and exit when the parent process is gone, even after SIGKILL."""
    global _source
    _source = source
    warnings.simplefilter("ignore")  # Pillow's, about single files, without their names
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _decode_chunk(places: list[tuple[str, Path, int]], size: int, fit: str | None) -> list[tuple[str, str, str]]:
    """Decode images to their places; return (kind, name, detail) of those that are not wholly used."""
    pixels = np.zeros((len(places), size, size, 3), np.uint8)
    findings = []
    for row, (name, _, _) in zip(pixels, places, strict=True):
        try:
            row[:], n_frames = decode(_source.read(name), fit, size)
        except Unusable as fault:
            findings.append((fault.kind, name, fault.detail))
        else:
            if n_frames > 1:
                findings.append((SEVERAL_FRAMES, name, f"{n_frames} frames"))
    write_rows((path, offset, row) for (_, path, offset), row in zip(places, pixels, strict=True))
    return findings
