"""Arrays in .npy and .npz files, read in blocks of rows and without pickle."""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import IO

import numpy as np

from tinyimnet.data.names import is_hidden
from tinyimnet.data.writer import CHUNK
from tinyimnet.errors import UserError
from tinyimnet.files import check_readable, matching, reading

BLOCK = 50_000_000  # bytes of the rows read at once: 500 images of 64 px as float64, or 1 photo of 16 megapixels


@dataclass(frozen=True)
class Array:
    """A .npy file, or a member of an .npz file; a UserError names the one that is damaged, pickled or empty.

    Attributes:
        path: the file.
        member: name of the array in an .npz file; empty for a .npy file.
    """

    path: Path
    member: str = ""

    def __str__(self) -> str:
        return f"{self.path} ({self.member})" if self.member else str(self.path)

    @property
    def stem(self) -> str:
        """The name that tells what it holds."""
        return self.member or self.path.stem

    @property
    def name(self) -> str:
        """Its name in its folder or file."""
        return self.member or self.path.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, with at least one row."""
        return self._header[0]

    @property
    def dtype(self) -> np.dtype:
        """The type of its numbers or strings."""
        return self._header[1]

    @cached_property
    def _header(self) -> tuple[tuple[int, ...], np.dtype]:
        if not self.member:
            array = open_array(self.path)
            return array.shape, array.dtype
        with self._stream() as (_, shape, _, dtype):
            return shape, dtype

    def whole(self) -> np.ndarray:
        """All rows, for labels."""
        return np.concatenate(list(self.blocks()))

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield blocks of at most CHUNK rows in order, so that memory grows with neither number nor size."""
        rows = min(CHUNK, max(1, BLOCK // max(1, prod(self.shape[1:]) * self.dtype.itemsize)))
        if not self.member:
            for start in range(0, self.shape[0], rows):
                # Reopened for each block so that its pages do not add up in memory.
                yield open_array(self.path)[start : start + rows]
            return
        with self._stream() as (file, shape, fortran, dtype):
            if fortran and len(shape) > 1:  # rows are spread over the whole array
                whole = _numbers(file, (*shape[::-1],), dtype).T
                yield from (whole[start : start + rows] for start in range(0, shape[0], rows))
                return
            for start in range(0, shape[0], rows):
                yield _numbers(file, (min(rows, shape[0] - start), *shape[1:]), dtype)

    @contextmanager
    def _stream(self) -> Iterator[tuple[IO[bytes], tuple[int, ...], bool, np.dtype]]:
        """Open a member after its header."""
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{self.member}.npy") as file:
                version = np.lib.format.read_magic(file)
                is_first = version == (1, 0)
                read = np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
                shape, fortran, dtype = read(file)
                if dtype.hasobject:
                    raise ValueError("Object arrays cannot be read without pickle")
                if not shape or not shape[0]:
                    raise UserError(f"{self} is empty; give an array with at least one row.")
                yield file, shape, fortran, dtype
        except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
            raise UserError(
                f"{self} is damaged, or no array of numbers ({error}); save it again with numpy.savez."
            ) from None


def _numbers(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    content = file.read(prod(shape) * dtype.itemsize)
    if len(content) < prod(shape) * dtype.itemsize:
        raise EOFError("it ends before its last row")
    return np.frombuffer(content, dtype).reshape(shape)


def open_array(path: Path) -> np.ndarray:
    """Map a .npy file, copy-on-write, because torch warns about read-only arrays."""
    if path.exists() and not path.is_file():  # opening a named pipe would hang
        raise UserError(f"{path} is no regular file; give a .npy file.")
    try:
        with reading(path):
            array = np.lib.format.open_memmap(path, mode="c")
    except (ValueError, EOFError) as error:
        raise UserError(
            f"{path} is not a valid .npy file of numbers ({error}); save it again with numpy.save."
        ) from None
    if not array.ndim or not len(array):
        raise UserError(f"{path} is empty; give a file with at least one row.")
    return array


def arrays_of(path: Path) -> list[Array]:
    """The array of a .npy file, or all arrays of an .npz file; none if another file is not wholly made of arrays."""
    if path.suffix.lower() == ".npy":
        return [Array(path)]
    if not path.is_file():
        return []
    check_readable(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, OSError) as error:
        if path.suffix.lower() == ".npz":
            raise UserError(f"{path} is not a valid .npz file ({error}); save it again with numpy.savez.") from None
        return []
    are_arrays = names and all(name.endswith(".npy") for name in names)
    return [Array(path, name.removesuffix(".npy")) for name in names] if are_arrays else []


def find_arrays(source: Path) -> list[Array]:
    """The arrays of a folder of .npy and .npz files, or of an .npz file."""
    if source.is_dir():
        files = [file for kind in ("*.npy", "*.npz") for file in matching(source, kind) if not is_hidden(file.name)]
        return [array for file in files for array in arrays_of(file)]
    return [] if source.suffix.lower() == ".npy" else arrays_of(source)
