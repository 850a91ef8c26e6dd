"""What a page is made of besides charts: tiles, tables, pictures. templates/parts.html.j2 shows them."""

import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tinyimnet.errors import UserError

PNG = b"\x89PNG\r\n\x1a\n"  # how such a file begins; its first chunk holds width and height


class Tile(NamedTuple):
    """A key figure: what it is, how much, and a word on it."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Rows under a header.

    Attributes:
        header: a title for each column.
        align: l or r for each column.
        rows: cells.
        looks: the line of each row in the charts, shown before its first cell; empty: rows have none.
    """

    header: Sequence[str]
    align: str
    rows: Sequence[Sequence[Any]]
    looks: Sequence[str] = ()


@dataclass(frozen=True)
class Picture:
    """A PNG file inside the page; a `wide` one holds small text and scrolls on a phone."""

    caption: str
    width: int
    height: int
    base64: str
    wide: bool


def read_picture(file: Path, caption: str, *, wide: bool = False) -> Picture | None:
    """A PNG file; None where there is none.

    Raises:
        UserError: it is something else.
    """
    if not file.exists():
        return None
    content = file.read_bytes()
    if not content.startswith(PNG) or len(content) < 24:
        raise UserError(f"{file} is damaged (no PNG); delete it.")
    width, height = struct.unpack(">II", content[16:24])
    return Picture(caption, width, height, base64.b64encode(content).decode(), wide)
