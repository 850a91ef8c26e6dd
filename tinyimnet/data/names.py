"""What the name of a file tells: an image, a hidden file, its place in natural order; and which names it can have."""

import os
import re
from collections.abc import Iterable

IMAGES = {
    ".jpeg", ".jpg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".bmp", ".dib", ".webp", ".tif", ".tiff",
}  # fmt: skip
OTHER_IMAGES = {
    ".avif", ".heic", ".heif", ".jp2", ".jxl", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".ico", ".psd", ".svg", ".pcx",
    ".exr", ".hdr", ".dds", ".xcf", ".dng", ".cr2", ".nef", ".arw", ".raw", ".eps",
}  # fmt: skip
UNMENTIONED = {".ds_store", "thumbs.db", "desktop.ini"}  # desktops write them into every folder
SYSTEM = UNMENTIONED | {
    "__macosx", "lost+found", "$recycle.bin", "system volume information", "@eadir", "@tmp", "@recycle",
    "@recently-snapshot", "#recycle", "#snapshot", "__pycache__",
}  # fmt: skip


def is_image(name: str) -> bool:
    """Whether images.py decodes files with this suffix, in either case."""
    return os.path.splitext(name)[1].lower() in IMAGES


def is_other_image(name: str) -> bool:
    """Whether the suffix is that of an image format that is not read."""
    return os.path.splitext(name)[1].lower() in OTHER_IMAGES


def is_utf8(name: str) -> bool:
    """Whether all bytes of a name from the file system are UTF-8; Python reads other bytes as surrogates."""
    return not re.search("[\ud800-\udfff]", name)


def is_hidden(name: str) -> bool:
    """Whether an operating system or a tool keeps a file or folder of this name for itself."""
    return name.startswith(".") or name.lower() in SYSTEM


def is_file_name(name: str) -> bool:
    """Whether a file can have this name: a part of a path, without control characters, at most 255 bytes of UTF-8."""
    one_part = name not in ("", ".", "..") and not re.search(r"[/\x00-\x1f\x7f]", name)
    return one_part and len(name.encode("utf-8", "surrogateescape")) <= 255


def natural_order(names: Iterable[str]) -> list[str]:
    """Sort names so that test_2 comes before test_10."""
    parts = {name: re.split(r"([0-9]+)", name) for name in names}
    return sorted(parts, key=lambda name: [int(part) if i % 2 else part for i, part in enumerate(parts[name])])
