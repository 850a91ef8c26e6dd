"""Read the official Tiny ImageNet: tiny-imagenet-200.zip, never unpacked to disk, or the unpacked folder.

Classes are the sorted WordNet ids. The validation labels come from val_annotations.txt: read as a class folder, val/
would be a single class, and a network trained against it would stay at chance.
"""

import io
import multiprocessing
import multiprocessing.connection
import os
import re
import signal
import threading
import zipfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from PIL import Image

from tinyimnet.data.writer import (
    CHUNK,
    IMAGE_BYTES,
    IMAGE_SHAPE,
    finish,
    new_folder,
    new_images,
    progress,
    save_array,
    write_pixels,
)
from tinyimnet.errors import UserError, paths_named
from tinyimnet.files import as_utf8, check_readable, exists, from_utf8, read_bytes

_source: "Source"  # set in worker processes only
MAX_WORKERS = 16  # which decode 80,000 images/s; each reads the archive's directory, which takes 0.5 s and 70 MB


def prepare_tiny_imagenet(source: Path, out: Path) -> dict:
    """Prepare the official archive or the unpacked official folder.

    Returns:
        The manifest.

    Raises:
        UserError: the source or the destination is invalid.
    """
    origin, names = _open_source(source)
    train = _train_images(origin, names)
    classes = _read_classes(origin, names, {class_id for class_id, _ in train})
    label_of = {class_id: label for label, (class_id, _) in enumerate(classes)}
    val = _val_images(origin, names, label_of)
    test = natural_order(names, "test/images/")
    images = {"train": [name for _, name in train], "val": [name for name, _ in val], "test": test}
    with new_folder(out, IMAGE_BYTES * sum(map(len, images.values()))) as folder:
        save_array(folder, "train_labels", np.array([label_of[class_id] for class_id, _ in train], np.int64))
        save_array(folder, "val_labels", np.array([label for _, label in val], np.int64))
        _decode(origin, {split: of_split for split, of_split in images.items() if of_split}, folder)
        test_files = [name.rsplit("/", 1)[1] for name in test]
        return finish(folder, classes=classes, test_files=test_files, origin=str(source))


class Source:
    """The files below the folder that contains `train`, on disk (`prefix` is empty) or in an archive."""

    def __init__(self, path: Path, prefix: str = ""):
        self.path, self.prefix = path, prefix
        self._archive: zipfile.ZipFile | None = None  # each process opens its own

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_archive": None}

    def read(self, name: str) -> bytes:
        """Read a file.

        Raises:
            UserError: the file cannot be read, or its checksum in the archive does not match.
        """
        if self.path.is_dir():
            with paths_named():
                return read_bytes(self.path / from_utf8(name))
        try:
            self._archive = self._archive or zipfile.ZipFile(self.path)
            return self._archive.read(self.prefix + name)
        except Exception as error:  # damaged bytes raise zlib.error, BadZipFile, EOFError ...
            raise UserError(f"{self.where(name)} cannot be read ({error}); download the data set again.") from None

    def where(self, name: str) -> str:
        """The location of a file, for error messages."""
        return str(self.path / name) if self.path.is_dir() else f"{self.path}: {self.prefix}{name}"

    def lines(self, name: str, names: set[str]) -> list[str]:
        """Non-empty lines of a text file."""
        if name not in names:
            raise UserError(f"{self.path} lacks {name}; unpack or download the data set again.")
        try:
            return [line for line in self.read(name).decode().splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise UserError(f"{self.where(name)} is not UTF-8 ({error}); download the data set again.") from None


def _open_source(source: Path) -> tuple[Source, set[str]]:
    """The source, and the paths of its files relative to the folder that contains `train`."""
    if not exists(source):
        raise UserError(f"{source} does not exist; give tiny-imagenet-200.zip or its folder, or use --download.")
    if source.is_dir():
        roots = dataset_roots(source)
        if len(roots) == 1:
            return Source(roots[0]), _list_folder(roots[0])
    else:
        names = _list_archive(source)
        prefixes = {match[1] for name in names if (match := re.match("((?:[^/]+/)?)train/", name))}
        if len(prefixes) == 1:
            prefix = prefixes.pop()
            return Source(source, prefix), {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    raise UserError(f"{source} contains no data set: it needs one `train` folder, at the top or one level below.")


def dataset_roots(source: Path) -> list[Path]:
    """Folders that contain `train`, among `source` and its direct subfolders."""
    try:
        return [folder for folder in (source, *sorted(source.iterdir())) if (folder / "train").is_dir()]
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); fix its permissions.") from None


def _list_folder(root: Path) -> set[str]:
    def unreadable(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); fix its permissions.")

    walk = os.walk(root, onerror=unreadable, followlinks=True)  # the splits may be symbolic links
    return {as_utf8((Path(folder).relative_to(root) / name).as_posix()) for folder, _, names in walk for name in names}


def _list_archive(source: Path) -> set[str]:
    check_readable(source)
    try:
        with zipfile.ZipFile(source) as archive:
            members = [member for member in archive.infolist() if not member.filename.startswith("__MACOSX/")]
    except (zipfile.BadZipFile, NotImplementedError, OSError) as error:
        raise UserError(f"{source} is not a valid zip archive ({error}); download it again.") from None
    for member in members:
        if member.filename.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", member.filename):
            raise UserError(
                f"{source} has a member {member.filename!r} outside its folder; download the official archive."
            )
        if member.flag_bits & 1:
            raise UserError(f"{source} is encrypted ({member.filename}); download the official archive.")
    return {member.filename for member in members}


def natural_order(names: set[str], folder: str = "") -> list[str]:
    """Images in the folders that match the pattern `folder`, in natural order: test_2 before test_10."""
    image = re.compile(folder + r"[^/.][^/]*\.(jpeg|jpg|png)", re.IGNORECASE)
    parts = {name: re.split(r"(\d+)", name) for name in names if image.fullmatch(name)}
    return sorted(parts, key=lambda name: [int(part) if i % 2 else part for i, part in enumerate(parts[name])])


def _train_images(source: Source, names: set[str]) -> list[tuple[str, str]]:
    """(class id, path) of each training image, by class and then in natural order."""
    images = [(name.split("/")[1], name) for name in natural_order(names, "train/[^/]+/(.+/)?")]
    if not images:
        raise UserError(f"{source.path} has no image in train/CLASS/; unpack or download the data set again.")
    return sorted(images, key=lambda image: image[0])


def _read_classes(source: Source, names: set[str], with_images: set[str]) -> list[tuple[str, str]]:
    """(id, name) of each class, sorted by id; the position is the label."""
    if "wnids.txt" in names:
        listed = {line.strip() for line in source.lines("wnids.txt", names)}
        for class_id in sorted(listed ^ with_images):
            lacks = "no image in train" if class_id in listed else "images in train but no line in wnids.txt"
            raise UserError(f"{source.path}: class {class_id} has {lacks}; unpack or download the data set again.")
    readable: dict[str, str] = {}
    if "words.txt" in names:
        entries = (line.partition("\t") for line in source.lines("words.txt", names))
        readable = {class_id: synonyms.split(",")[0].strip() for class_id, _, synonyms in entries}
    return [(class_id, readable.get(class_id) or class_id) for class_id in sorted(with_images)]


def _val_images(source: Source, names: set[str], label_of: dict[str, int]) -> list[tuple[str, int]]:
    """(path, label) of each validation image, in natural order.

    Names in the annotations are only looked up among the files of val/images, so they cannot refer to other files.
    """
    annotations = "val/val_annotations.txt"
    labels: dict[str, int] = {}
    for line in source.lines(annotations, names):
        file, class_id = (*line.split("\t"), "")[:2]
        if class_id not in label_of:
            raise UserError(
                f"{source.path}: {annotations} gives {file} the unknown class {class_id!r}; download it again."
            )
        if f"val/images/{file}" in labels:
            raise UserError(f"{source.path}: {annotations} lists {file} twice; download it again.")
        labels[f"val/images/{file}"] = label_of[class_id]
    images = natural_order(names, "val/images/")
    if not images:
        raise UserError(f"{source.path} has no image in val/images; unpack or download the data set again.")
    for name in sorted(labels.keys() ^ set(images)):
        lacks = f"has a line in {annotations} but no image" if name in labels else f"has no line in {annotations}"
        raise UserError(f"{source.path}: {name} {lacks}; unpack or download the data set again.")
    return [(name, labels[name]) for name in images]


# Decoding on all cores.


def _decode(source: Source, images: dict[str, list[str]], folder: Path) -> None:
    """Decode each split into <split>_images.npy; the workers write to it, so no pixels pass between processes."""
    jobs = []
    for split, names in images.items():
        path, offset = new_images(folder, split, len(names))
        for start in range(0, len(names), CHUNK):
            jobs.append((names[start : start + CHUNK], path, offset + start * IMAGE_BYTES))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    n_workers = min(cores, len(jobs), MAX_WORKERS)
    pool = ProcessPoolExecutor(n_workers, multiprocessing.get_context("spawn"), _start_worker, (source,))
    try:
        with progress("decoded", sum(map(len, images.values()))) as advance:
            # Ctrl-C goes to the whole process group; workers inherit the blocked SIGINT, so only the parent reacts.
            unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                futures = [pool.submit(_decode_chunk, *job) for job in jobs]
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
            for future in futures:
                advance(future.result())
    except BrokenProcessPool:
        raise UserError(
            "A decoding process was killed, possibly for lack of memory; free some memory and run the command again."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(source: Source) -> None:
    """Keep the source for later chunks, and exit when the parent process is gone, even after SIGKILL."""
    global _source
    _source = source
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _decode_chunk(names: list[str], path: Path, offset: int) -> int:
    """Decode images to `offset` in the file `path`; return their number."""
    write_pixels(path, offset, np.stack([decode(_source.read(name), _source.where(name)) for name in names]))
    return len(names)


def decode(content: bytes, where: str) -> np.ndarray:
    """Decode an image to (64, 64, 3) uint8; `where` is its location for error messages."""
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
            size, pixels = image.size, np.asarray(image.convert("RGB"))  # some are grayscale, one may be CMYK
    except Exception as error:  # on a damaged file Pillow raises OSError, SyntaxError, ValueError ...
        raise UserError(f"{where} is damaged or neither JPEG nor PNG; download the data set again.") from error
    if pixels.shape != IMAGE_SHAPE:
        raise UserError(f"{where} has {size[0]}x{size[1]} pixels and must have 64x64; resize it first.")
    return pixels
