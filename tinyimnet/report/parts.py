"""Elements of a page other than charts: tiles, tables and images, rendered by templates/parts.html.j2."""

import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tinyimnet.errors import UserError
from tinyimnet.files import exists, read_bytes

PNG = b"\x89PNG\r\n\x1a\n"  # file signature; the first chunk contains width and height


class Tile(NamedTuple):
    """A key figure: name, value and a short note."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Rows under a header.

    Attributes:
        header: title of each column.
        align: l or r for each column.
        rows: cells of each row.
        looks: line style of each row in the charts, shown before its first cell; empty if rows have none.
    """

    header: Sequence[str]
    align: str
    rows: Sequence[Sequence[Any]]
    looks: Sequence[str] = ()


@dataclass(frozen=True)
class Picture:
    """A PNG file embedded in the page.

    Attributes:
        caption: its title.
        width: in pixels.
        height: in pixels.
        base64: the file.
        look: CSS class: `wide` for small images with text, which scroll in their frame; `plot` for a drawing on white,
            which dark mode inverts; or empty.
    """

    caption: str
    width: int
    height: int
    base64: str
    look: str


def read_picture(file: Path, caption: str, look: str = "") -> Picture | None:
    """Read a PNG file; None if it is missing.

    Raises:
        UserError: the file is not a PNG.
    """
    if not exists(file):
        return None
    content = read_bytes(file)
    if not content.startswith(PNG) or len(content) < 24:
        raise UserError(f"{file} is damaged (not a PNG); delete it.")
    width, height = struct.unpack(">II", content[16:24])
    return Picture(caption, width, height, base64.b64encode(content).decode(), look)
