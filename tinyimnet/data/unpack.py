"""Turn a prepared data set back into images: PNG files with exactly the pixels of the arrays, in folders by class."""

import os
from pathlib import Path

from PIL import Image

from tinyimnet.data.dataset import Dataset, is_prepared, open_dataset
from tinyimnet.data.names import is_file_name
from tinyimnet.data.writer import SPLITS, image_bytes, new_folder, progress
from tinyimnet.errors import UserError
from tinyimnet.files import from_utf8

BLOCK = 4096  # bytes: noise of 64 px, 12.3 KB in memory, makes 12.4 KB as PNG, which fill four blocks


def unpack(root: Path, out: Path) -> dict[str, int]:
    """Write <out>/{train,val}/CLASS/ROW.png and <out>/test/NAME.png, and return the number of images of each split.

    Args:
        root: prepared folder.
        out: the folder to create.

    Raises:
        UserError: `root` is not prepared or damaged, a name in it cannot be that of a file, or `out` exists or cannot
            be written.
    """
    dataset = open_dataset(root)
    if is_prepared(out):
        raise UserError(f"--out {out} holds a prepared data set; choose another folder.")
    files = {split: _files(dataset, split) for split in SPLITS if split in dataset.images}
    n = sum(map(len, files.values()))
    with new_folder(out, n * (image_bytes(dataset.image_size) + BLOCK)) as folder, progress("unpacked", n) as advance:
        for split, of_split in files.items():
            for parent in {file.parent for file in of_split}:
                (folder / parent).mkdir(parents=True)
            for file, pixels in zip(of_split, dataset.images[split], strict=True):
                Image.fromarray(pixels).save(folder / file)
                advance(1)
        os.sync()  # once, because a sync of each of 10,000 files took four times as long as writing them
    return {split: len(of_split) for split, of_split in files.items()}


def _files(dataset: Dataset, split: str) -> list[Path]:
    """The file of each image, relative to the folder; rows are numbered with as many digits as the last one needs."""
    n = len(dataset.images[split])
    rows = [f"{row:0{len(str(n - 1))}}" for row in range(n)]
    if split not in dataset.labels:
        names = _without_suffix(dataset.test_files) if len(dataset.test_files) == n else rows
        return [Path(split, from_utf8(_checked(f"{name}.png", dataset))) for name in names]
    folders = [from_utf8(_checked(class_id, dataset)) for class_id in dataset.classes]
    return [Path(split, folders[label], f"{row}.png") for label, row in zip(dataset.labels[split], rows, strict=True)]


def _without_suffix(names: tuple[str, ...]) -> list[str]:
    """The names of files without their suffixes, or with them if two would then be the same."""
    stems = [os.path.splitext(name)[0] for name in names]
    return stems if len(set(stems)) == len(stems) else list(names)


def _checked(name: str, dataset: Dataset) -> str:
    if not is_file_name(name):
        raise UserError(
            f"{dataset.root}/manifest.json has {name!r}, which cannot be the name of a file or folder; prepare the "
            "data with other class ids (--classes)."
        )
    return name
