"""PNG files of captioned images, drawn with Pillow alone.

Importing matplotlib would add 0.5 to 1 s to the start of a run.
"""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tinyimnet.data.batches import TrainBatches
from tinyimnet.files import write_atomically

SIDE = 128  # pixels per image side in a picture, whatever the image's resolution: twice 64
GAP = 12
LINE = 16
WRAP = 3  # lines of a caption, for names such as "German short-haired pointer"
TEXT, HEADING = ImageFont.load_default(13), ImageFont.load_default(16)


def image_grid(images: np.ndarray, titles: list[str], path: Path, columns: int = 8) -> None:
    """Write a PNG of images in rows, with a caption under each.

    Args:
        images: (N, S, S, 3) uint8.
        titles: N captions; a line wider than the image is wrapped, to at most WRAP lines.
        path: the file.
        columns: images per row.
    """
    titles = ["\n".join(row for line in title.split("\n") for row in _wrapped(line, SIDE)) for title in titles]
    lines = max(title.count("\n") + 1 for title in titles)
    width, height = SIDE + GAP, SIDE + lines * LINE + GAP
    columns = min(columns, len(images))
    canvas, draw = _blank(columns * width + GAP, -(-len(images) // columns) * height + GAP)
    for i, (image, title) in enumerate(zip(images, titles, strict=True)):
        row, column = divmod(i, columns)
        _place(canvas, draw, image, title, GAP + column * width, GAP + row * height)
    _save(canvas, path)


def image_rows(rows: list[tuple[str, np.ndarray, list[str]]], path: Path, columns: int) -> None:
    """Write a PNG of rows, each a heading and up to `columns` images (n, S, S, 3) uint8 with captions."""
    heading, height = LINE + 8, LINE + 8 + SIDE + LINE + GAP
    canvas, draw = _blank(columns * (SIDE + GAP) + GAP, len(rows) * height + GAP)
    for i, (text, images, captions) in enumerate(rows):
        top = GAP + i * height
        draw.text((GAP, top), _cut(text, HEADING, canvas.width - 2 * GAP), fill="black", font=HEADING)
        for column, (image, caption) in enumerate(zip(images, captions, strict=True)):
            _place(canvas, draw, image, caption, GAP + column * (SIDE + GAP), top + heading)
    _save(canvas, path)


def _blank(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    canvas = Image.new("RGB", (width, height), "white")
    return canvas, ImageDraw.Draw(canvas)


def _place(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, image: np.ndarray, caption: str, left: int, top: int
) -> None:
    canvas.paste(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC), (left, top))
    for i, line in enumerate(caption.split("\n")):
        position = (left, top + SIDE + 2 + i * LINE)
        draw.text(position, _cut(line, TEXT, SIDE), fill="black", font=TEXT)


def _wrapped(text: str, width: int) -> list[str]:
    """Break text between words into at most WRAP lines of a width in pixels; what is still too wide is truncated."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and len(lines) < WRAP and TEXT.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return [_cut(line, TEXT, width) for line in lines]


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Truncate text to a width in pixels, with an ellipsis."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def _save(canvas: Image.Image, path: Path) -> None:
    content = BytesIO()
    canvas.save(content, "PNG")
    write_atomically(path, content.getvalue())


def augmented(batches: TrainBatches, names: Sequence[str], step: int, count: int) -> tuple[np.ndarray, list[str]]:
    """The first images in the global batch of a step, as the network sees them.

    Args:
        batches: the training set.
        names: names of the K classes.
        step: the optimizer step; S is its resolution.
        count: maximum number of images; a global batch may have fewer.

    Returns:
        (n, S, S, 3) uint8, and for each image the name of its class; of a mixture, both names and their shares.
    """
    images, targets = batches.load(batches.draw(step), slice(0, count), step)
    pixels = batches.normalise.inverse(images)
    shown, soft = targets.labels, targets.soft_labels
    if soft is not None:
        shown = shown.lerp(soft, batches.config.soft_label_weight)
    titles = []
    for target in shown.cpu():
        shares, classes = target.topk(2)
        mixed = [f"{100 * s:.0f} % {names[c]}" for s, c in zip(shares, classes, strict=True) if s > 0.02]
        titles.append("\n".join(mixed) if len(mixed) > 1 else names[classes[0]])
    return pixels.round().clamp(0, 255).byte().cpu().numpy(), titles
