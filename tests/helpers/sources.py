"""Miniature sources of a data set, to prepare or to damage: the official Tiny ImageNet and course files of arrays."""

import io
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinyimnet.data import decoding, npy
from tinyimnet.data.dataset import LABELLED

WNIDS = ["n03", "n01", "n02"]  # as in wnids.txt, unsorted
NAMES = {"n01": "goldfish", "n02": "n02", "n03": "tailed frog"}  # n02 is not in words.txt
VAL = {
    "val_10.JPEG": "n01",
    "val_2.JPEG": "n03",
    "val_0.JPEG": "n02",
    "val_1.JPEG": "n02",
    "val_3.JPEG": "n01",
}
VAL_LABELS = [1, 1, 2, 0, 0]  # of val_0, 1, 2, 3, 10


@pytest.fixture(scope="module")
def decoded_in_this_process() -> Iterator[None]:
    """Decode in this process; process/test_prepare.py uses worker processes."""

    def threads(_workers: int, _context: object, _start: object, arguments: tuple) -> ThreadPoolExecutor:
        decoding._source = arguments[0]
        return ThreadPoolExecutor(1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "ProcessPoolExecutor", threads)
        yield


def image(seed: int, mode: str = "RGB", size: tuple[int, int] = (64, 64)) -> bytes:
    """Return a JPEG of smooth noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize(size).convert(mode).save(file, "JPEG")
    return file.getvalue()


def official(folder: Path) -> Path:
    """Write a tiny official tree: 3 classes x 4 train, 5 val, 3 test; one train image is grayscale, one CMYK."""
    root = folder / "tiny-imagenet-200"
    for name in ("train", "val/images", "test/images"):
        (root / name).mkdir(parents=True)
    for label, wnid in enumerate(WNIDS):
        (root / "train" / wnid / "images").mkdir(parents=True)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t9\t9\n")
        for i, number in enumerate((0, 1, 2, 10)):
            mode = {(0, 1): "L", (1, 3): "CMYK"}.get((label, i), "RGB")
            (root / f"train/{wnid}/images/{wnid}_{number}.JPEG").write_bytes(image(10 * label + i, mode))
    for i, file in enumerate(VAL):
        (root / "val/images" / file).write_bytes(image(100 + i))
    for i in (0, 2, 10):
        (root / f"test/images/test_{i}.JPEG").write_bytes(image(200 + i))
    (root / "val/val_annotations.txt").write_text("".join(f"{f}\t{w}\t0\t0\t9\t9\n" for f, w in VAL.items()))
    (root / "wnids.txt").write_text("\n".join(WNIDS))
    (root / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn03\ttailed frog\nn99\tother\n")
    (root / "train/.DS_Store").write_bytes(b"junk")
    (root / "val/images/._val_0.JPEG").write_bytes(b"junk")
    return root


def pack(root: Path) -> Path:
    """Pack the tree into a compressed zip archive, with the extra files that macOS adds."""
    archive = root.parent / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(root.rglob("*")):
            file.write(path, path.relative_to(root.parent))
        file.writestr("__MACOSX/tiny-imagenet-200/train/n01/._n01_0.JPEG", b"junk")
    return archive


def left_behind(out: Path) -> list[str]:
    """Return the names next to `out` that contain its name, such as leftovers of a failed preparation."""
    return sorted(path.name for path in out.parent.iterdir() if out.name in path.name)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def arrays_in(folder: Path, size: int = 64, **replaced: np.ndarray) -> dict[str, Path]:
    """Write 8 train, 4 val and 2 test images of four classes as course files."""
    rng = np.random.default_rng(0)
    arrays = {
        "train_images": rng.integers(0, 256, (8, size, size, 3), np.uint8),
        "train_labels": np.arange(8) % 4,
        "val_images": rng.integers(0, 256, (4, size, size, 3), np.uint8),
        "val_labels": np.arange(4)[::-1].copy(),
        "test_images": rng.integers(0, 256, (2, size, size, 3), np.uint8),
    } | replaced
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return {name: folder / f"{name}.npy" for name in arrays}


def with_classes(data: Path, out: Path, ids: list[str]) -> Path:
    """Prepare the images of a prepared data set with other classes: label i becomes i modulo their number."""
    out.mkdir()
    arrays = {}
    for split in LABELLED:
        arrays[f"{split}_images"] = data / f"{split}_images.npy"
        arrays[f"{split}_labels"] = out / f"{split}_labels.npy"
        np.save(out / f"{split}_labels.npy", np.load(data / f"{split}_labels.npy") % len(ids))
    (out / "classes.txt").write_text("\n".join(ids), encoding="utf-8")
    npy.prepare_npy(arrays, out / "data", out / "classes.txt")
    return out / "data"
