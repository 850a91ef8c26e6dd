"""Prepare Parquet files as the Hugging Face hub serves Tiny ImageNet: image files and labels in columns.

Every row is an image file of a split: read by the decoding processes, one row group at a time, and named by its file
and row in errors.
"""

import bisect
import json
from pathlib import Path
from typing import Any

import numpy as np

from tinyimnet.data.array_roles import SPLIT_WORDS, meanings
from tinyimnet.data.class_names import WORDS, class_file, listed_ids, readable_classes, words_in
from tinyimnet.data.dataset import IMAGE_SIZE, LABELLED
from tinyimnet.data.decoding import prepare_files
from tinyimnet.data.findings import Findings, Unusable, shortened
from tinyimnet.data.folders import beside
from tinyimnet.data.labels import Labels, as_labels, numbered
from tinyimnet.data.source import UNREADABLE, Files, Source
from tinyimnet.data.splitting import split_rows
from tinyimnet.errors import UserError
from tinyimnet.files import check_readable, matching

SUFFIX = ".parquet"


class Tables(Source):
    """Images in the rows of Parquet files, called FILE:ROW; each process keeps one row group in memory."""

    form = "Parquet files"

    def __init__(self, path: Path, files: list[Path]):
        self.path = path
        self.files = {file.name: file for file in files}
        self._open: tuple[str, Any, list[int]] | None = None  # a file, and the row after each of its row groups
        self._group: tuple[int, Any] | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": None, "_group": None}

    def read(self, name: str) -> bytes:
        """The image in a row."""
        file, _, row = name.rpartition(":")
        try:
            content = self._image(file, int(row))
        except Exception as error:  # damaged bytes raise OSError, ArrowInvalid ...
            raise Unusable(UNREADABLE, str(error)) from None
        if content is None:
            raise Unusable(UNREADABLE, "the row has no bytes")
        return content

    def _image(self, file: str, row: int) -> bytes | None:
        if not self._open or self._open[0] != file:
            table = open_table(self.files[file])
            groups = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
            self._open, self._group = (file, table, np.cumsum(groups).tolist()), None
        _, table, ends = self._open
        number = bisect.bisect_right(ends, row)
        if not self._group or self._group[0] != number:
            self._group = None  # before the next one takes memory
            column = table.read_row_group(number, columns=["image.bytes"], use_threads=False).column("image")
            self._group = number, column
        image = self._group[1][row - (ends[number - 1] if number else 0)].as_py()
        return image and image["bytes"]


def find_tables(source: Path) -> list[Path]:
    """The Parquet files of a folder, in it or in its folder `data`, or the source itself if it is one."""
    if not source.is_dir():
        return [source] if source.is_file() and source.suffix.lower() == SUFFIX else []
    of_folders = (matching(folder, f"[!.]*{SUFFIX}") for folder in (source, source / "data"))
    return next((files for files in of_folders if files), [])


def prepare_parquet(
    source: Path,
    tables: list[Path],
    out: Path,
    classes: Path | None = None,
    *,
    val_share: float | None = None,
    size: int = IMAGE_SIZE,
    fit: str | None = None,
    strict: bool = False,
) -> dict:
    """Prepare Parquet files whose names tell their split, as in train-00000-of-00001.parquet; train if none is told.

    Args:
        source: the folder or the file.
        tables: its Parquet files.
        out: the folder to create.
        classes: text file with one class id per line in label order; None: the names in the schema, or classes.txt.
        val_share: share of the images of each class to hold out, without a file of val.
        size: width and height of the prepared images in pixels.
        fit: one of images.FITS; None: all images must have that size.
        strict: refuse files that are skipped, and classes without a training image.

    Returns:
        The manifest.

    Raises:
        UserError: pyarrow is missing, or a file does not match this description.
    """
    names, labels, ids = _read_columns(source, tables)
    folder = source if source.is_dir() else source.parent
    of_schema = ids and not classes
    ids, numbers = numbered(labels, ids if of_schema else listed_ids(classes, folder))
    files, problems = Files(Tables(source, tables)), Findings()
    if source.is_dir():
        used = [*tables, folder / WORDS, *([] if of_schema else [class_file(classes, folder)])]
        files.skipped = beside(source, used, enter=("data",))
    rows, how = split_rows(source, names, numbers, ids, val_share, problems, files.skipped)
    assigned = {split: (part, of_split) for part, targets in rows.items() for split, of_split in targets.items()}
    images = {split: [names[part][row] for row in np.flatnonzero(of)] for split, (part, of) in assigned.items()}
    counts = ", ".join(f"{len(of_part):,} rows of {part}" for part, of_part in names.items())
    return prepare_files(
        files,
        images,
        {split: numbers[part][of].tolist() for split, (part, of) in assigned.items() if split in LABELLED},
        out,
        problems,
        classes=readable_classes(ids, words_in(folder)),
        test_files=[f"test_{i}" for i in range(len(images.get("test", ())))],
        origin=source,
        layout=f"{counts}; {how}" if how else counts,
        size=size,
        fit=fit,
        strict=strict,
    )


def _read_columns(source: Path, tables: list[Path]) -> tuple[dict[str, list[str]], dict[str, Labels], list[str] | None]:
    """Name and label of each image in each part, and the names of the classes in label order if the schema has them."""
    names: dict[str, list[str]] = {}
    columns: dict[str, list[np.ndarray]] = {}
    ids: list[str] | None = None
    for path in tables:
        table, part = open_table(path), _part(path)
        ids = ids or _class_names(table)
        names.setdefault(part, []).extend(f"{path.name}:{row}" for row in range(table.metadata.num_rows))
        columns.setdefault(part, []).append(_labels(path, table))
    if "train" not in names:
        listed = shortened([path.name for path in tables])
        raise UserError(f"{source} has no Parquet file of train ({listed}); add it.")
    labels = {part: as_labels(f"{source} ({part})", np.concatenate(found)) for part, found in columns.items()}
    if "test" in labels and (labels["test"].values == -1).all():  # as the hub marks images without labels
        del labels["test"]
    return names, labels, ids


def _part(path: Path) -> str:
    """The part of the data set that the name of a file tells."""
    found = meanings(path.stem, SPLIT_WORDS) or {"train"}
    if len(found) > 1:
        raise UserError(f"{path} names several splits ({', '.join(sorted(found))}); rename it to that of its images.")
    return found.pop()


def _labels(path: Path, table: Any) -> np.ndarray:
    column = table.read(columns=["label"]).column("label")
    if column.null_count:
        raise UserError(f"{path} has {column.null_count:,} rows without a label; remove these.")
    return np.array(column.to_pylist())


def _class_names(table: Any) -> list[str] | None:
    """The names of the classes that the library `datasets` writes into the schema."""
    metadata = json.loads((table.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
    return metadata.get("info", {}).get("features", {}).get("label", {}).get("names")


def open_table(path: Path) -> Any:
    """Open a Parquet file with the columns `image` (struct of bytes and path) and `label`.

    Raises:
        UserError: pyarrow is missing, or the file is damaged or has other columns.
    """
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(
            f"{path} is a Parquet file, which is read with pyarrow; run pip install 'pyarrow>=20,<27'."
        ) from None
    check_readable(path)
    try:
        table = ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} is not a valid Parquet file ({error}); download it again.") from None
    names = table.schema_arrow.names
    image = table.schema_arrow.field("image").type if "image" in names else pyarrow.null()
    fields = {field.name: field.type for field in image} if pyarrow.types.is_struct(image) else {}
    if "label" not in names or fields.get("bytes") not in (pyarrow.binary(), pyarrow.large_binary()):
        raise UserError(
            f"{path} has the columns {', '.join(names)} and must have `image`, a struct with the bytes of an image "
            "file, and `label`; save its images and labels as .npy files."
        )
    return table
