"""Ids of classes in label order from a file with one per line, and readable names from the words.txt of ImageNet."""

from collections.abc import Iterable
from pathlib import Path

from tinyimnet.data.findings import shortened
from tinyimnet.data.folders import Folder
from tinyimnet.data.source import text_lines
from tinyimnet.errors import UserError
from tinyimnet.files import exists, read_bytes

CLASSES, WORDS = "classes.txt", "words.txt"


def listed_ids(option: Path | None, folder: Path) -> list[str] | None:
    """The ids in the file of --classes or else in classes.txt of the folder, in label order; None without either.

    Raises:
        UserError: the file is not UTF-8, or a line is empty or there twice.
    """
    path = class_file(option, folder)
    return _read_ids(path, f"--classes {path}" if option else str(path)) if option or exists(path) else None


def class_file(option: Path | None, folder: Path) -> Path:
    """Where the ids of the classes are, if there is such a file."""
    return option or folder / CLASSES


def words_in(folder: Path) -> list[str]:
    """The lines of words.txt in a folder; none without it."""
    return Folder(folder).lines(WORDS) if exists(folder / WORDS) else []


def readable_classes(ids: Iterable[str], words: Iterable[str]) -> list[tuple[str, str]]:
    """(id, name) of each class: the first synonym in the lines "ID<tab>synonyms" of words.txt, or else the id."""
    entries = (line.partition("\t") for line in words)
    readable = {class_id: synonyms.split(",")[0].strip() for class_id, _, synonyms in entries}
    return [(class_id, readable.get(class_id) or class_id) for class_id in ids]


def _read_ids(path: Path, where: str) -> list[str]:
    try:
        ids = [line.strip() for line in text_lines(read_bytes(path))]
    except UnicodeDecodeError as error:
        raise UserError(f"{where} cannot be read ({error}); give a text file with one id per line.") from None
    while ids and not ids[-1]:
        ids.pop()
    wrong = [f"line {i} is empty" for i, class_id in enumerate(ids, start=1) if not class_id]
    wrong += [f"{class_id} is there twice" for class_id in sorted(set(ids) - {""}) if ids.count(class_id) > 1]
    if not ids or wrong:
        fault = shortened(wrong) or "it is empty"
        raise UserError(f"{where} must have one id per line in label order ({fault}); correct it.")
    return ids
